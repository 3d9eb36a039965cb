"""Accounting: what a set of noisy releases costs, computed by dp-accounting.

Two accountants. "pld" (privacy loss distributions; Doroshenko et al., "Connect the Dots", 2022) is
tight: a pessimistic estimate on a grid of 1e-3 nats, within 1e-4 of a ten times finer grid. "rdp"
(Mironov et al., 2019) is looser, and faster where nothing can be reused. Both are upper bounds, for
neighbours that differ by adding or removing one unit. Gaussian DP is not offered: its estimate lies
below the true value. Above `VACUOUS` nats the tight value is not computed; the RDP bound stands in.

>>> step = Mechanism(noise_multiplier=1.0, sampling_rate=0.1)
>>> round(epsilon(((step, 50),), delta=1e-3), 2)
3.31
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import dp_accounting
import numpy as np
from dp_accounting import rdp
from dp_accounting.pld import privacy_loss_distribution
from numpy.typing import NDArray

Accountant = Literal["pld", "rdp"]
PLD_GRID = 1e-3
VACUOUS = 50.0
NOISE_STEP = 1e-3
LARGEST_NOISE = 2**20 * 1000
"""In thousandths."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Mechanism:
    """One Gaussian release whose noise has standard deviation ``noise_multiplier`` times sensitivity.

    ``sampling_rate`` is the Poisson rate at which units take part; 1 means no sampling.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier={self.noise_multiplier} must be positive and finite")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate={self.sampling_rate} must be in (0, 1]")

    def event(self) -> Any:
        """The event that dp-accounting charges for one release."""
        gaussian = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_rate == 1.0:
            return gaussian
        return dp_accounting.PoissonSampledDpEvent(self.sampling_rate, gaussian)


Composition = tuple[tuple[Mechanism, int], ...]
"""How often each mechanism was released, ordered by mechanism."""


@lru_cache(maxsize=65536)
def epsilon(composition: Composition, *, delta: float, accountant: Accountant = "pld") -> float:
    """Epsilon in nats of all releases together at ``delta``.

    *Guarantees.* An upper bound of the true value. Adding releases never lowers it by more than
    rounding (1e-9). The result is remembered by composition, so repeated queries cost microseconds.

    *Edge cases.* No releases: 0.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta} must be in (0, 1)")
    if accountant not in ("pld", "rdp"):
        raise ValueError(f"accountant={accountant!r} is unknown; choose 'pld' or 'rdp'")
    if not composition:
        return 0.0
    orders = _orders()
    total = np.sum([steps * _rdp_of(mechanism) for mechanism, steps in composition], axis=0)
    loose = float(rdp.compute_epsilon(orders, total, delta)[0])
    if accountant == "rdp" or loose > VACUOUS:
        return loose
    parts = [_pld_of(mechanism).self_compose(steps) for mechanism, steps in composition]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part)
    return min(loose, float(whole.get_epsilon_for_delta(delta)))


@lru_cache(maxsize=1)
def _orders() -> NDArray[np.float64]:
    return np.asarray(rdp.RdpAccountant().orders, dtype=np.float64)


@lru_cache(maxsize=1024)
def _rdp_of(mechanism: Mechanism) -> NDArray[np.float64]:
    """Renyi divergence of one release at each order; infinite where the series does not converge."""
    with _quiet():
        return np.asarray(rdp.RdpAccountant().compose(mechanism.event()).rdp, dtype=np.float64)


@lru_cache(maxsize=128)
def _pld_of(mechanism: Mechanism) -> Any:
    """Privacy loss distribution of one release."""
    return privacy_loss_distribution.from_gaussian_mechanism(
        mechanism.noise_multiplier,
        sampling_prob=mechanism.sampling_rate,
        value_discretization_interval=PLD_GRID,
        use_connect_dots=True,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence dp-accounting's note on each order it leaves out; leaving orders out is safe."""

    def keep(record: logging.LogRecord) -> bool:
        return "Excluding this order" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@lru_cache(maxsize=1024)
def calibrate_noise(
    *, target_epsilon: float, delta: float, sampling_rate: float, steps: int, accountant: Accountant = "pld"
) -> float:
    """Smallest noise multiplier, in multiples of 1e-3, for ``steps`` releases within ``target_epsilon``.

    ``steps`` counts every release the unit will ever be part of, over all rounds: calibrating each
    round afresh spends the budget once per round.

    *Guarantees.* The epsilon of the result, by the same accountant, is at most ``target_epsilon``.

    *Edge cases.* A target that not even a noise multiplier of 2^20 reaches raises ``ValueError``.
    """
    if not 0 < target_epsilon < math.inf or steps < 1:
        raise ValueError(f"target_epsilon={target_epsilon} must be positive, steps={steps} at least 1")

    def within(thousandths: int, kind: Accountant) -> bool:
        mechanism = Mechanism(noise_multiplier=thousandths * NOISE_STEP, sampling_rate=sampling_rate)
        return epsilon(((mechanism, steps),), delta=delta, accountant=kind) <= target_epsilon

    high = 1000
    while not within(high, "rdp"):
        high *= 2
        if high > LARGEST_NOISE:
            raise ValueError(f"target_epsilon={target_epsilon} is out of reach for steps={steps}; raise it")
    high = _least(lambda x: within(x, "rdp"), high=high, stride=high // 2)
    if accountant == "pld":  # what the loose bound allows, the tight one allows too
        high = _least(lambda x: within(x, "pld"), high=high, stride=high // 8)
    return round(high * NOISE_STEP, 3)


def _least(holds: Callable[[int], bool], *, high: int, stride: int) -> int:
    """The least whole number of at least 1 for which a monotone condition holds, given that ``high`` does."""
    low = high - max(stride, 1)
    while low > 0 and holds(low):
        low, high = low - max(stride, 1), low
    low = max(low, 0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupGuarantee:
    """(epsilon, delta) for ``size`` units at once. ``vacuous`` when it excludes nothing (delta >= 1)."""

    size: int
    epsilon: float
    delta: float
    vacuous: bool


def group_guarantee(*, epsilon: float, delta: float, size: int) -> GroupGuarantee:
    """From one unit to ``size`` units: k epsilon, and delta (e^{k epsilon} - 1) / (e^epsilon - 1).

    Dwork and Roth, "The Algorithmic Foundations of Differential Privacy" (2014), with the geometric
    sum. An epsilon per record says little about a client with many records; this says how little.
    """
    if epsilon < 0 or not 0 <= delta <= 1 or size < 1:
        raise ValueError(f"epsilon={epsilon} and delta={delta} must be a guarantee, size={size} at least 1")
    largest = 600.0
    if size * epsilon > largest:
        return GroupGuarantee(size=size, epsilon=size * epsilon, delta=1.0, vacuous=True)
    growth = size if epsilon == 0 else math.expm1(size * epsilon) / math.expm1(epsilon)
    inflated = min(1.0, delta * growth)
    return GroupGuarantee(size=size, epsilon=size * epsilon, delta=inflated, vacuous=inflated >= 1.0)
