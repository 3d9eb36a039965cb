"""What ``auto`` means: threads, clients at once, and how memory is kept. Changes speed, not results.

Choices are made once for a run and written down with it. Cohorts are sized by a rule and not by a
measurement, so that equal scenarios form equal cohorts and give equal bytes.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable

import torch

from fedsim.cohort import CohortLimit
from fedsim.model import AdapterModel

CPU_TOKENS = 2048
"""Tokens of a joint step on a CPU: enough to keep matrix products busy, few enough for its caches."""
GPU_TOKENS = 16_384
"""More fill no GPU better."""
CLIENTS = 1024
STACKED_COPIES = 8
"""Vectors that a client needs in a cohort: start, parameters, gradients, moments, what is in between."""
FASTER = 1.2
"""By how much more threads must pay, in each trial; less is noise, and threads that wait stall each other."""


def cohort_limit(model: AdapterModel, *, device: str) -> CohortLimit:
    """How many clients of a model go together on a device; from sizes alone."""
    dimension = sum(parameter.numel() for parameter in model.parameters().values())
    if not device.startswith("cuda"):
        return CohortLimit(clients=CLIENTS, tokens=CPU_TOKENS)
    memory = torch.cuda.get_device_properties(torch.device(device)).total_memory
    tokens = int(memory * 0.5 / activation_bytes(model))
    clients = int(memory * 0.2 / (4 * STACKED_COPIES * dimension))
    return CohortLimit(clients=max(1, min(CLIENTS, clients)), tokens=max(1, min(GPU_TOKENS, tokens)))


def activation_bytes(model: AdapterModel) -> float:
    """About what training keeps for the backward pass, in bytes per token."""
    config = model.module.config
    hidden = getattr(config, "hidden_size", 1024)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    layers = getattr(config, "num_hidden_layers", 24)
    width = 4 + torch.finfo(next(iter(model.module.parameters())).dtype).bits / 8
    return float(layers * width * (10 * hidden + 4 * inner))


def fastest_threads(work: Callable[[], object], *, trials: int = 3) -> int:
    """How many threads run ``work`` fastest, of one and all cores; in doubt one.

    Leaves torch with that number.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores > 1:
        work()
        alone = min(_seconds(work, threads=1) for _ in range(trials))
        if all(_seconds(work, threads=cores) * FASTER < alone for _ in range(trials)):
            return cores
    torch.set_num_threads(1)
    return 1


def _seconds(work: Callable[[], object], *, threads: int) -> float:
    torch.set_num_threads(threads)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free instead of returning it to the system, which must clear it anew.

    Activations of a step come and go by the megabyte; where page faults are dear, clearing them takes longer
    than computing them. Does nothing on other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # numbers of malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
