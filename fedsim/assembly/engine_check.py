"""Whether an engine can run here; said before anything starts."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import torch

from fedsim.scenario.execution import ExecutionConfig, RayConfig

PROGRAMS = ("flwr", "flower-superlink", "flower-supernode", "flower-superexec")


def check_engine(execution: ExecutionConfig, device: str) -> None:
    """ValueError when the engine of a scenario cannot run here, with the way out."""
    if execution.engine == "ray":
        _check_ray(execution.ray, device)
    if execution.engine == "deployment":
        _check_deployment()


def gpus_per_worker(config: RayConfig, device: str) -> float:
    """GPUs, or a share of one, that a worker gets."""
    if config.gpus_per_worker == "auto":
        return 1.0 if device.startswith("cuda") else 0.0
    return config.gpus_per_worker


def _check_ray(config: RayConfig, device: str) -> None:
    if importlib.util.find_spec("ray") is None:
        raise ValueError(
            "engine=ray needs Ray; install it with: "
            ".venv/bin/pip install -c constraints.txt -e '.[simulation]'"
        )
    if config.address is not None or "RAY_ADDRESS" in os.environ:
        if config.cpus is not None:
            raise ValueError(f"ray.cpus={config.cpus}: a running cluster has its own CPUs; leave it out")
        return
    cpus = config.cpus or os.cpu_count() or 1
    if config.cpus_per_worker > cpus:
        raise ValueError(f"ray.cpus_per_worker={config.cpus_per_worker} is more than the {cpus} CPUs for Ray")
    gpus = gpus_per_worker(config, device)
    if gpus == 0 and device != "cpu":
        raise ValueError(f"ray.gpus_per_worker=0 on device={device}: workers need a share of a GPU, or cpu")
    if gpus > torch.cuda.device_count():
        raise ValueError(
            f"ray.gpus_per_worker={gpus:g} is more than the {torch.cuda.device_count()} GPUs here"
        )


def programs() -> Path:
    """The folder of this environment's commands."""
    return Path(sys.executable).parent


def _check_deployment() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name, path=str(programs())) is None]
    if missing:
        raise ValueError(f"engine=deployment needs {', '.join(missing)} in {programs()}; run make install")
    if sys.platform == "win32":
        raise ValueError("engine=deployment needs Unix sockets; use in-process or ray on Windows")
