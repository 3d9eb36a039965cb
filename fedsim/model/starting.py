"""What LoRA's factors start with, and what that means for an adapter on disk.

Where the base has given up what the factors start with, an adapter is of use only beside that changed base.
So it is written as one for the base as it was: of twice the rank, s (B A - B_0 A_0) = s [B, -B_0] [A; A_0].
PEFT and everybody else can load that, and the first half of it is the adapter, bit for bit.

Legend: O, I features out and in, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedsim.model.vectors import Arrays

ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class Start:
    """How the factors start.

    ``factors`` are those that are put in place as they are, by parameter name, untrained ones too; None: they
    are drawn anew as ``init`` says. With ``off_base`` the base is without what they add; ``rounding`` is the
    share of a layer's weight that its type has then rounded away, at most over layers (Frobenius norms).
    """

    init: str = "default"
    factors: Arrays | None = None
    off_base: bool = False
    rounding: float = 0.0


def rounding_sentence(start: Start, dtype: str) -> str | None:
    """What a base of low precision makes of a start that was taken off it; None where it is exact enough.

    >>> print(rounding_sentence(Start(init="pissa", off_base=True, rounding=0.0016), "bfloat16"))
    lora.init=pissa leaves a base that bfloat16 rounds, in a layer by up to 0.16% of its weight. ...
    """
    if not start.off_base or dtype == "float32":
        return None
    return (
        f"lora.init={start.init} leaves a base that {dtype} rounds, in a layer by up to {start.rounding:.2%} "
        "of its weight. By as much the start is not the base, and a saved adapter, which is for the base as "
        "published, not what was measured; with dtype: float32 neither is so."
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread of torch: decompositions round differently on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def draw(layer: Any, init: str) -> None:
    """Draw a layer's factors, which are on the CPU, from torch's global generator."""
    if init == "orthogonal":
        _draw_orthogonal(layer)
    else:
        layer.reset_lora_parameters(ADAPTER, init_lora_weights=True if init == "default" else init)


@torch.no_grad()
def _draw_orthogonal(layer: Any) -> None:
    """Factors in orthogonal halves of the rank's directions: neither is zero, and B A is, up to rounding.

    In float32 whatever the base's type, in which PEFT rounds them: then B A would be something.
    """
    a_RI, b_OR = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    rank, (features, outputs) = len(a_RI), (a_RI.shape[1], len(b_OR))
    with one_thread():
        directions_RR, _ = torch.linalg.qr(torch.randn(rank, rank))
        a_RI.copy_((torch.randn(features, rank // 2) @ directions_RR[0::2]).T / 10)
        b_OR.copy_(torch.randn(rank // 2, outputs).T @ directions_RR[1::2] / 10)


def for_the_base_as_it_was(tensors: Arrays, factors: Arrays) -> Arrays:
    """What PEFT stores of an adapter, with a second half that takes ``factors`` off again."""
    found = dict(tensors)
    for name, start in factors.items():
        axis, sign = _second_half(name)
        stored = _stored(name)
        found[stored] = np.concatenate([tensors[stored], sign * start], axis=axis)
    return found


def for_the_changed_base(tensors: Arrays, factors: Arrays) -> Arrays:
    """The inverse: what PEFT stores of the adapter itself.

    Raises:
        ValueError: the second half is not what takes ``factors`` off.
    """
    found = dict(tensors)
    for name, start in factors.items():
        axis, sign = _second_half(name)
        stored = _stored(name)
        halves = np.split(tensors[stored], [start.shape[axis]], axis=axis) if stored in tensors else []
        if not halves or not np.array_equal(halves[1], sign * start):
            raise ValueError(f"{stored} does not take off what the adapter started with")
        found[stored] = np.ascontiguousarray(halves[0])
    return found


def settings_for_the_base_as_it_was(settings: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's configuration of an adapter of twice the rank and of the same scale.

    The scale is alpha / r, or alpha / sqrt(r) with rsLoRA.
    """
    more = math.sqrt(2) if settings["use_rslora"] else 2
    return {
        **settings,
        "r": 2 * settings["r"],
        "lora_alpha": more * settings["lora_alpha"],
        "rank_pattern": {at: 2 * rank for at, rank in (settings["rank_pattern"] or {}).items()},
        "alpha_pattern": {at: more * alpha for at, alpha in (settings["alpha_pattern"] or {}).items()},
    }


def _second_half(name: str) -> tuple[int, int]:
    """The axis of a factor's rank, and the sign with which its start stands there."""
    return (0, 1) if ".lora_A." in name else (1, -1)


def _stored(name: str) -> str:
    """A parameter's name where PEFT stores it: without that of the adapter."""
    return f"{name.removesuffix(f'.{ADAPTER}.weight')}.weight"
