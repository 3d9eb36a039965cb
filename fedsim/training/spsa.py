"""Training by one byte a step: two losses along a random direction, and the slope between them.

Zelikman et al., "Just One Byte (per gradient)" (2023, arXiv:2306.10015), after Spall's SPSA (1992) and
Malladi et al., "Fine-Tuning Language Models with Just Forward Passes" (2023). A step draws a direction z from
a keyed stream that whoever knows its address can draw again, measures
g = (L(w + h z) - L(w - h z)) / 2h, rounds it to a byte and moves by -lr g z. The bytes are all that has to be
told: `replay` makes the same update of them, bit by bit. Suffix: D parameters.

Replaying a log without one client's bytes is no exact deletion of that client: every later byte of the others
was measured at a point to which it had moved the model.

>>> import numpy as np
>>> address = Address(seed=1, round=3, client=7)
>>> found = descend(lambda w_D, step: float(((w_D - 1) ** 2).sum()), address, dimension=3, lr=0.1, steps=60)
>>> bool(np.abs(found.update_D - 1).max() < 0.1), len(found.codes)
(True, 60)
>>> bool((replay(found.codes, address, dimension=3, lr=0.1) == found.update_D).all())
True
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.rng import stream

PERTURBATION = 1e-3
"""h, how far to either side of the model a loss is measured, in standard deviations of z."""
FINENESS = 16
"""Levels for each factor e of the slope: rounding moves it by at most 1/32 nat, or 3.2%."""
MIDDLE = 64
"""The level of slope 1; levels 1 to 127 are slopes from 0.0195 to 51.3, level 0 is no slope."""
MOST = 127

Update = NDArray[np.float32]
Loss = Callable[[Update, int], float]
"""(what has been added to the start (D,), step) -> mean loss of that step's batch in nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a client's directions of one round are drawn; public, so that they can be drawn again."""

    seed: int
    round: int
    client: int

    def direction(self, step: int, dimension: int) -> Update:
        """A standard normal vector (D,), a pure function of address and step."""
        generator = stream(self.seed, "spsa", self.round, self.client, step)
        return generator.standard_normal(dimension, dtype=np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Descent:
    """A byte a step, what they replay to, and the mean of each step's two losses."""

    codes: bytes
    update_D: Update
    losses: tuple[float, ...]


def encode(slope: float) -> int:
    """The sign of a slope times a level from 0 to 127, `MIDDLE` + 16 ln|slope| rounded.

    *Edge cases.* Too steep a slope: the steepest. Too flat a one, zero: 0. NaN, infinity: ``ValueError``.
    """
    if not math.isfinite(slope):
        raise ValueError(f"slope={slope} is not finite: the loss diverged; lower lr")
    if slope == 0:
        return 0
    level = min(max(round(MIDDLE + FINENESS * math.log(abs(slope))), 0), MOST)
    return level if slope > 0 else -level


def decode(code: int) -> float:
    """The slope of a code from -127 to 127; ``ValueError`` beyond."""
    if not -MOST <= code <= MOST:
        raise ValueError(f"code={code} must be from -{MOST} to {MOST}")
    return math.copysign(math.exp((abs(code) - MIDDLE) / FINENESS), code) if code else 0.0


def slope_between(above: float, below: float) -> float:
    """The projected gradient, from the losses at w + h z and w - h z."""
    return (above - below) / (2 * PERTURBATION)


def descend(loss: Loss, address: Address, *, dimension: int, lr: float, steps: int) -> Descent:
    """Take steps from a zero update; the loss is asked twice a step, at two points near the present one.

    *Guarantees.* ``update_D`` is what `replay` makes of ``codes``, bit by bit: rounding to a byte comes
    before the step. *Edge cases.* No steps: a zero update. A loss that is not finite: ``ValueError``.
    """
    update_D = np.zeros(dimension, dtype=np.float32)
    codes, losses = [], []
    for step in range(steps):
        away_D = np.float32(PERTURBATION) * address.direction(step, dimension)
        above, below = loss(update_D + away_D, step), loss(update_D - away_D, step)
        codes.append(encode(slope_between(above, below)))
        losses.append((above + below) / 2)
        update_D = _moved(update_D, codes[-1], address.direction(step, dimension), lr)
    return Descent(codes=np.array(codes, dtype=np.int8).tobytes(), update_D=update_D, losses=tuple(losses))


def replay(codes: bytes, address: Address, *, dimension: int, lr: float) -> Update:
    """The update (D,) of a client from its bytes and address alone.

    Raises:
        ValueError: a byte is no code.
    """
    update_D = np.zeros(dimension, dtype=np.float32)
    for step, code in enumerate(np.frombuffer(codes, dtype=np.int8)):
        update_D = _moved(update_D, int(code), address.direction(step, dimension), lr)
    return update_D


def _moved(update_D: Update, code: int, direction_D: Update, lr: float) -> Update:
    """One step: fp32 throughout, each coordinate on its own, so that it is the same everywhere."""
    return update_D - np.float32(lr * decode(code)) * direction_D
