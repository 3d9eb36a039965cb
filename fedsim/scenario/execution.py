"""The engine's part of a scenario: where clients run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedsim.config import Config, Float, Int


class RayConfig(Config):
    """Flower's simulation runtime on Ray: clients train in worker processes, each with its own base."""

    address: str | None = None
    """A running cluster, for example ``auto`` or ``10.0.0.1:6379``; null takes the environment's RAY_ADDRESS,
    or starts Ray on this machine."""
    cpus: Int | None = Field(default=None, ge=1)
    """CPUs that Ray may use when it starts on this machine; null is all."""
    cpus_per_worker: Int = Field(default=1, ge=1)
    """CPUs of a worker, and its threads of torch; as many workers are started as fit."""
    gpus_per_worker: Annotated[Float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of a worker, or a share of one; ``auto`` is one where the device is a GPU, else none."""


class DeploymentConfig(Config):
    """A SuperLink and its SuperNodes on this machine, over TLS on the loopback interface."""

    nodes: Int = Field(default=2, ge=1, le=64)
    """SuperNodes; clients are dealt out among them. As many as clients makes each a node of its own."""


class ExecutionConfig(Config):
    """What changes speed and safety; results change by rounding at most."""

    engine: Literal["in-process", "ray", "deployment"] = "in-process"
    """Where clients run: in this process, in Ray's workers, or behind SuperNodes."""
    client_timeout: Float = Field(default=600.0, gt=0)
    """Seconds without an answer from any client after which those still missing have failed; in-process
    clients are always waited for."""
    ray: RayConfig = RayConfig()
    deployment: DeploymentConfig = DeploymentConfig()
    device: str = "auto"
    """``cpu``, ``cuda:N``, ``cuda`` (all GPUs share the clients), or ``auto``: cuda where there is one."""
    threads: Annotated[Int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    """Cohorts that train at once on the CPU, a thread each, and threads of whatever else torch computes;
    ``auto`` measures one and all cores when the run begins."""
    cohort: Annotated[Int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    """Most clients of a cohort; 1 is one at a time; ``auto`` goes by tokens of a step and memory."""
    checkpoint_every: Int = Field(default=10, ge=1)
    """Rounds between two checkpoints."""
