"""Which number type this machine computes a base's products in fastest.

Processors without instructions for bfloat16 emulate it and take several times as long as in float32; those
with them, and GPUs, take half as long. ``model.dtype: auto`` is decided by trying, once in a process.

>>> faster_of(float32=1.0, bfloat16=0.6), faster_of(float32=1.0, bfloat16=0.9)
('bfloat16', 'float32')
"""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch

Dtype = Literal["float32", "bfloat16", "float16"]
ROWS, INNER, OUTER = 256, 512, 1024
"""Shape of the product that is timed: about one layer's on a short step."""
TRIALS = 5
FASTER = 1.2
"""By how much bfloat16 must pay, as it rounds to 8 bits."""
SLOW = 1.5
"""How many times as long as in float32 a product may take before it is worth a word."""


def fastest_dtype(device: str) -> Dtype:
    """bfloat16 where it is clearly faster on the device, else float32."""
    return faster_of(float32=seconds(device, "float32"), bfloat16=seconds(device, "bfloat16"))


def faster_of(*, float32: float, bfloat16: float) -> Dtype:
    """The type to take, given the times that both took."""
    return "bfloat16" if bfloat16 * FASTER < float32 else "float32"


def resolved(dtype: Dtype | Literal["auto"], device: str) -> Dtype:
    """A type as it is named, or the fastest one for ``auto``."""
    return fastest_dtype(device) if dtype == "auto" else dtype


def slow_sentence(dtype: Dtype | Literal["auto"], device: str) -> str | None:
    """A sentence where a rounded type takes much longer than float32 on this device."""
    dtype = resolved(dtype, device)
    times = seconds(device, dtype) / seconds(device, "float32")
    if dtype == "float32" or times < SLOW:
        return None
    return (
        f"Matrix products in {dtype} take {times:.1f} times as long as in float32 on this machine; "
        f"model.dtype: auto is {fastest_dtype(device)} here."
    )


@cache
def seconds(device: str, dtype: Dtype) -> float:
    """The time of one matrix product, the best of a few."""
    kind = getattr(torch, dtype)
    left = torch.ones(ROWS, INNER, device=device, dtype=kind)
    right = torch.ones(OUTER, INNER, device=device, dtype=kind)
    return min(_once(left, right) for _ in range(TRIALS))


def _once(left: torch.Tensor, right: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.nn.functional.linear(left, right)
    if left.is_cuda:
        torch.cuda.synchronize(left.device)
    return time.perf_counter() - started
