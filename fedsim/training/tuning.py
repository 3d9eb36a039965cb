"""What ``auto`` means: threads, clients at once, how memory is kept. Changes speed, and results by rounding.

Choices are made once for a run and written down with it. Cohorts are sized by a rule and not by a
measurement, so that equal scenarios form equal cohorts and give equal bytes.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from fedsim.model.adapter import AdapterModel
from fedsim.training.cohorts import CohortLimit

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
    """How many clients of a model go together on a device; from sizes alone.

    Of the memory that the base leaves, half is for activations and a fifth for clients' vectors; the rest is
    for what example-level DP keeps of the backward pass. On a CPU, every core may have a cohort at once.
    """
    on_gpu = device.startswith("cuda")
    parameters = model.module.parameters()
    free = max(0.9 * device_memory(device) - sum(p.numel() * p.element_size() for p in parameters), 0.0)
    free /= 1 if on_gpu else cores()
    dimension = sum(parameter.numel() for parameter in model.parameters().values())
    most = GPU_TOKENS if on_gpu else CPU_TOKENS
    return CohortLimit(
        clients=_at_most(CLIENTS, 0.2 * free / (4 * STACKED_COPIES * dimension)),
        tokens=_at_most(most, 0.5 * free / activation_bytes(model)),
    )


def _at_most(bound: int, value: float) -> int:
    return max(1, min(bound, int(value)))


def device_memory(device: str) -> int:
    """All memory of a device, or of the machine, in bytes."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def activation_bytes(model: AdapterModel) -> float:
    """About what training keeps for the backward pass, in bytes per token, each counted as an answer."""
    module: Any = model.module
    config = module.config.get_text_config()
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    width = 4 + next(iter(model.module.parameters())).element_size()
    return float(config.num_hidden_layers * width * (10 * hidden + 4 * inner) + 12 * config.vocab_size)


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fastest_threads(work: Callable[[], object], *, trials: int = 3) -> int:
    """How many threads run ``work`` fastest, of one and all cores; in doubt one.

    Leaves torch with that number.
    """
    every = cores()
    if every > 1:
        _seconds(work, threads=every)
        alone = min(_seconds(work, threads=1) for _ in range(trials))
        if all(_seconds(work, threads=every) * FASTER < alone for _ in range(trials)):
            return every
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
