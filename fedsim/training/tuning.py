"""What ``auto`` means for threads, and how memory is kept. Changes speed, and results by rounding.

Choices are made once for a run and written down with it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable

import torch

FASTER = 1.2
"""By how much more threads must pay, in each trial; less is noise, and threads that wait stall each other."""


def device_memory(device: str) -> int:
    """All memory of a device, or of the machine, in bytes."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
