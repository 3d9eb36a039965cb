"""Accounting: what a set of noisy releases costs, computed by dp-accounting.

Two accountants. "pld" (privacy loss distributions; Doroshenko et al., "Connect the Dots", 2022) is tight: a
pessimistic estimate on a grid of 1e-3 nats, within 1e-4 of a ten times finer grid. "rdp" (Mironov et al.,
2019) is looser, and faster where nothing can be reused; fixed-size samples and Skellam noise have no other.
Both are upper bounds. Gaussian DP is not offered: its estimate lies below the true value. Above `VACUOUS`
nats the tight value is not computed; the RDP bound stands in, where it is not too loose for that
(`Mechanism.rough`).

>>> step = Mechanism(noise_multiplier=1.0, sampling_rate=0.1)
>>> round(epsilon(((step, 50),), delta=1e-3), 2)
3.31
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dp_accounting import NeighboringRelation

Accountant = Literal["pld", "rdp"]
Kind = Literal["gaussian", "skellam"]
Sampling = Literal["none", "poisson", "truncated_poisson", "without_replacement"]
Neighbours = Literal["add_remove", "zero_out", "replace_one"]
PLD_GRID = 1e-3
VACUOUS = 50.0
"""Nats above which a guarantee excludes next to nothing, whatever its delta: it is called meaningless."""
NOISE_STEP = 1e-3
FAINT_NOISE = 0.1
"""Noise multiplier of a release that costs `VACUOUS` nats on average, 1 / (2 z^2), if its unit takes part.
Below, privacy loss distributions are too long to be worth their time."""
LEAST_NOISE, MOST_NOISE = 1e-12, 2.0**20
"""Noise multipliers that a stage may be given: the least excludes nothing, the largest leaves nothing to
learn."""
ACCOUNTED_NOISE = 1e-100
"""Least noise multiplier that is accounted: with less, squares leave the range of floats, and dp-accounting
fails or even reports 0. Less than `LEAST_NOISE` is left of shared noise where others tell their shares."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Mechanism:
    """One noisy release whose noise has standard deviation ``noise_multiplier`` times sensitivity.

    Sensitivity is the largest norm of one unit's contribution. Neighbours add or remove a unit, or let it
    take part with zeros ("zero_out", where who takes part is known and its noise stays); exchanging a unit
    for another (``neighbours`` "replace_one") moves the sum by up to twice that, which is accounted for here.

    =====================  ==================================================================================
    "none"                 every unit takes part
    "poisson"              each takes part independently, at ``sampling_rate``
    "truncated_poisson"    likewise, but of ``population`` units at most ``sample_size``, the rest is left out
    "without_replacement"  ``sample_size`` of ``population`` units, all equally likely; "replace_one" only
    =====================  ==================================================================================

    ``kind`` "skellam" is integer noise; ``excess`` is what it costs above Gaussian noise of its variance, in
    nats at every Renyi order (Agarwal et al., "The Skellam Mechanism for Differentially Private Federated
    Learning", 2021: 3 D1 / (2 mu)). It is not amplified.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    sampling: Sampling = "poisson"
    population: int = 0
    sample_size: int = 0
    neighbours: Neighbours = "add_remove"
    kind: Kind = "gaussian"
    excess: float = 0.0

    def __post_init__(self) -> None:
        if not ACCOUNTED_NOISE <= self.noise_multiplier < math.inf:
            raise ValueError(
                f"noise_multiplier={self.noise_multiplier} must be finite and at least {ACCOUNTED_NOISE}: "
                "less cannot be accounted"
            )
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate={self.sampling_rate} must be in (0, 1]")
        for name, choices in (("sampling", Sampling), ("neighbours", Neighbours), ("kind", Kind)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; choose one of {get_args(choices)}"
                )
        if self.sampling in ("none", "without_replacement") and self.sampling_rate != 1.0:
            raise ValueError(f"sampling_rate={self.sampling_rate} with sampling={self.sampling!r} must be 1")
        counted = self.sampling in ("truncated_poisson", "without_replacement")
        if counted != (self.population > 0) or counted != (self.sample_size > 0):
            raise ValueError(
                f"population={self.population} and sample_size={self.sample_size} go with samples of bounded "
                f"size, not with {self.sampling!r}, and must then be positive"
            )
        if self.sampling == "without_replacement" and self.neighbours != "replace_one":
            raise ValueError("sampling='without_replacement' is accounted for neighbours='replace_one' only")
        if (
            self.neighbours == "replace_one"
            and self.sampling_rate < 1
            and self.sampling == "truncated_poisson"
        ):
            raise ValueError("sampling='truncated_poisson' is accounted for neighbours='add_remove' only")
        if self.kind == "skellam" and (self.sampling != "none" or self.neighbours == "replace_one"):
            raise ValueError(
                "kind='skellam' goes with sampling='none' and neighbours other than 'replace_one'"
            )
        if not 0 <= self.excess < math.inf or (self.excess > 0) != (self.kind == "skellam"):
            raise ValueError(f"excess={self.excess} is positive for kind='skellam', and 0 else")

    @property
    def relation(self) -> NeighboringRelation:
        from dp_accounting import NeighboringRelation

        if self.neighbours == "replace_one":
            return NeighboringRelation.REPLACE_ONE
        return NeighboringRelation.ADD_OR_REMOVE_ONE

    @property
    def tight(self) -> bool:
        """Whether its privacy loss distribution is known, and worth its time."""
        sampled = self.sampling == "without_replacement" and self.sample_size < self.population
        return self.kind == "gaussian" and not sampled and self.noise_multiplier >= FAINT_NOISE

    @property
    def rough(self) -> bool:
        """Whether its RDP bound forgoes an amplification that its privacy loss distribution has."""
        return self.sampling == "truncated_poisson" or (
            self.sampling == "poisson" and self.sampling_rate < 1 and self.neighbours == "replace_one"
        )

    def event(self) -> Any:
        """The event that the RDP accountant of dp-accounting charges for one release.

        That accountant does not double the sensitivity when a unit is exchanged, so the noise is halved here.
        A truncated sample has no RDP event: leaving units out because of others can only be bounded by an
        exchange of two in every sum, without amplification.
        """
        import dp_accounting

        if self.kind == "skellam":
            return dp_accounting.ZCDpEvent(rho=1 / (2 * self.noise_multiplier**2), xi=self.excess)
        doubled = self.neighbours == "replace_one" or self.sampling == "truncated_poisson"
        gaussian = dp_accounting.GaussianDpEvent(self.noise_multiplier / (2 if doubled else 1))
        if self.sampling == "without_replacement" and self.sample_size < self.population:
            return dp_accounting.SampledWithoutReplacementDpEvent(self.population, self.sample_size, gaussian)
        if self.sampling == "poisson" and self.sampling_rate < 1.0 and self.neighbours != "replace_one":
            return dp_accounting.PoissonSampledDpEvent(self.sampling_rate, gaussian)
        return gaussian


Composition = tuple[tuple[Mechanism, int], ...]
"""How often each mechanism was released, ordered by mechanism."""


@lru_cache(maxsize=65536)
def epsilon(composition: Composition, *, delta: float, accountant: Accountant = "pld") -> float:
    """Epsilon in nats of all releases together at ``delta``.

    *Guarantees.* An upper bound of the true value. Adding releases never lowers it by more than
    rounding (1e-9): where the RDP bound of what is not `rough` counts, it still does beside what is.
    The result is remembered by composition, so repeated queries cost microseconds.

    *Edge cases.* No releases: 0. Where one of them is not `tight`, "pld" gives the RDP bound. Releases for
    different ``neighbours`` do not compose: ``ValueError``.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta} must be in (0, 1)")
    if accountant not in ("pld", "rdp"):
        raise ValueError(f"accountant={accountant!r} is unknown; choose 'pld' or 'rdp'")
    if not composition:
        return 0.0
    if len({mechanism.neighbours for mechanism, _ in composition}) > 1:
        raise ValueError("releases for neighbours='add_remove' and 'replace_one' do not compose")
    loose = _loose(composition, delta)
    if not all(mechanism.tight for mechanism, _ in composition):
        return loose
    plain = tuple((mechanism, steps) for mechanism, steps in composition if not mechanism.rough)
    floor = loose if plain == composition else _loose(plain, delta)
    settled = accountant == "rdp" or floor > VACUOUS
    if settled and plain == composition:
        return floor
    tight = min(loose, _tight(composition, delta))
    return max(floor, tight) if settled else tight


def _tight(composition: Composition, delta: float) -> float:
    """By privacy loss distributions."""
    parts = [loss_of(mechanism).self_compose(steps) for mechanism, steps in composition]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part)
    return float(whole.get_epsilon_for_delta(delta))


def _loose(composition: Composition, delta: float) -> float:
    """The RDP bound; under Skellam noise over whole orders, for which alone its bound is proven."""
    from dp_accounting import rdp

    if not composition:
        return 0.0
    orders = _orders()
    total = np.sum([steps * _rdp_of(mechanism) for mechanism, steps in composition], axis=0)
    if any(mechanism.kind == "skellam" for mechanism, _ in composition):
        whole = (orders == np.floor(orders)) & (orders >= 2)
        orders, total = orders[whole], total[whole]
    with _quiet():
        return float(rdp.compute_epsilon(orders, total, delta)[0])


@lru_cache(maxsize=1)
def _orders() -> NDArray[np.float64]:
    from dp_accounting import rdp

    return np.asarray(rdp.RdpAccountant().orders, dtype=np.float64)


@lru_cache(maxsize=1024)
def _rdp_of(mechanism: Mechanism) -> NDArray[np.float64]:
    """Renyi divergence of one release at each order; infinite where the series does not converge."""
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(neighboring_relation=mechanism.relation)
    with _quiet():
        return np.asarray(accountant.compose(mechanism.event()).rdp, dtype=np.float64)


@lru_cache(maxsize=128)
def loss_of(mechanism: Mechanism, *, grid: float = PLD_GRID) -> Any:
    """Privacy loss distribution of one release of Gaussian noise, on a grid in nats.

    dp-accounting doubles the sensitivity itself when a unit is exchanged. A fixed-size sample counts as none.
    """
    from dp_accounting.pld import privacy_loss_distribution

    if mechanism.sampling == "truncated_poisson":
        return privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism(
            dataset_size=mechanism.population,
            sampling_probability=mechanism.sampling_rate,
            truncated_batch_size=mechanism.sample_size,
            noise_multiplier=mechanism.noise_multiplier,
            value_discretization_interval=grid,
            neighboring_relation=mechanism.relation,
        )
    return privacy_loss_distribution.from_gaussian_mechanism(
        mechanism.noise_multiplier,
        sampling_prob=mechanism.sampling_rate,
        value_discretization_interval=grid,
        use_connect_dots=True,
        neighboring_relation=mechanism.relation,
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
    templates: Composition, *, target_epsilon: float, delta: float, accountant: Accountant = "pld"
) -> float:
    """Smallest noise multiplier, in multiples of 1e-3, of all releases together within ``target_epsilon``.

    ``templates`` are the mechanisms whose common ``noise_multiplier`` is sought, with one of 1 and each with
    its number of steps. It counts every release the unit will ever be part of, over all rounds: calibrating
    each round afresh spends the budget once per round.

    *Guarantees.* The epsilon of the result, by the same accountant, is at most ``target_epsilon``.

    *Edge cases.* A target that not even `MOST_NOISE` reaches raises ``ValueError``.
    """
    steps = sum(count for _, count in templates)
    if not 0 < target_epsilon < math.inf or steps < 1:
        raise ValueError(f"target_epsilon={target_epsilon} must be positive, steps={steps} at least 1")

    def within(thousandths: int, kind: Accountant) -> bool:
        noise = thousandths * NOISE_STEP
        parts = tuple(sorted((_scaled(template, noise), n) for template, n in templates if n))
        return epsilon(parts, delta=delta, accountant=kind) <= target_epsilon

    high = 1000
    while not within(high, "rdp"):
        high *= 2
        if high * NOISE_STEP > MOST_NOISE:
            raise ValueError(f"target_epsilon={target_epsilon} is out of reach for steps={steps}; raise it")
    high = _least(lambda x: within(x, "rdp"), high=high, stride=high // 2)
    if accountant == "pld":  # what the loose bound allows, the tight one allows too
        high = _least(lambda x: within(x, "pld"), high=high, stride=high // 8)
    return round(high * NOISE_STEP, 3)


def _scaled(template: Mechanism, noise: float) -> Mechanism:
    """The mechanism with other noise; what integers cost above Gaussian noise falls with its variance."""
    return replace(template, noise_multiplier=noise, excess=template.excess / noise**2)


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
