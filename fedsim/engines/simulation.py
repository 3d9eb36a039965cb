"""Flower's simulation runtime: clients train in Ray's workers, on this machine or on a Ray cluster.

On this machine Ray listens on the loopback interface alone (``fedsim.engines.loopback``).

The ServerApp is a whole run, in this process, with the run directory as its only state; a run that was killed
goes on like any other. Each worker is a process with a base of its own.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim.assembly.engine_check import gpus_per_worker
from fedsim.assembly.simulation import CheckedScenario
from fedsim.engines.errors import EngineStoppedError
from fedsim.engines.loopback import on_loopback
from fedsim.engines.processes import end, signals
from fedsim.engines.remote import Link, RemoteGrid, any_node, wait_for
from fedsim.engines.worker import WorkerSource, make_worker_app
from fedsim.federation.runtime import ClientRuntime
from fedsim.scenario.execution import RayConfig
from fedsim.scenario.file import dump_scenario

LANES = 32
"""Flower's nodes: each takes one message every tenth of a second and speaks for any client. More nodes cost
time, because Flower looks at every one of them each time."""
START_SECONDS = 120.0
UNKNOWN_ERROR = 0
"""Flower's code for a fault that is not the ClientApp's: the worker is gone. Flower would ask the dead worker
again and again, so the run ends; a resumed one has new workers."""


def run_on_ray(simulation: CheckedScenario, live: Callable[[CheckedScenario], None]) -> None:
    """Run ``live`` as the ServerApp of a simulation whose clients are Ray's workers."""
    execution = simulation.loaded.scenario.execution
    source = WorkerSource(
        scenario=dump_scenario(simulation.loaded.scenario),
        device="cpu" if simulation.devices[0] == "cpu" else "cuda:0",
        threads=execution.ray.cpus_per_worker,
    )
    stopping = threading.Event()
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        link = Link(
            flower=grid,
            timeout=execution.client_timeout,
            poll=0.02,
            stopping=stopping,
            fatal_codes=frozenset({UNKNOWN_ERROR}),
        )
        where = any_node(link)
        wait_for(where, [0], link=link, seconds=START_SECONDS)

        def connect(runtime: ClientRuntime, variant: str, seed: int) -> RemoteGrid:
            return RemoteGrid(link, where, variant=variant, seed=seed)

        live(replace(simulation, connect=connect))

    with on_loopback(execution.ray), _stopped_by_signals(stopping), _quiet_flower():
        from flwr.simulation import run_simulation

        run_simulation(
            server_app=server,
            client_app=make_worker_app(source),
            num_supernodes=LANES,
            backend_config=_backend(execution.ray, simulation.devices[0]),
        )


@contextmanager
def _stopped_by_signals(stopping: threading.Event) -> Iterator[None]:
    """The first signal stops the server where it waits for clients, the second ends the process at once.

    Ray hangs when an exception interrupts it while workers are busy, so it is left to finish what they do.
    """
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if asked:
            os._exit(128 + number)
        asked.append(number)
        stopping.set()
        print("stopping; workers finish what they do (once more to end at once)", file=sys.stderr)

    with signals(stop):
        try:
            yield
        except EngineStoppedError:
            end(asked[0], None)


@contextmanager
def _quiet_flower() -> Iterator[None]:
    """Flower prints the traceback of every client that fails; the run tells of them in its own way."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _backend(config: RayConfig, device: str) -> dict[str, Any]:
    """Flower's settings for Ray."""
    start: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if config.address is not None:
        start["address"] = config.address
    if config.cpus is not None:
        start["num_cpus"] = config.cpus
    resources = {"num_cpus": config.cpus_per_worker, "num_gpus": gpus_per_worker(config, device)}
    return {"init_args": start, "client_resources": resources}
