"""Distributed DP: clients add a share of the noise each, and only under masks does it add up to enough.

Agarwal et al., "The Skellam Mechanism for Differentially Private Federated Learning" (2021), after Kairouz et
al., "The Distributed Discrete Gaussian Mechanism" (2021). An update is rotated, so that no coordinate sticks
out, scaled, rounded to whole numbers at random under the condition that its norm stays bounded, and gets
Skellam noise, which is closed under sums. The server reads the noisy sum alone, needs not be trusted with
noise, and rotates back.

>>> import numpy as np
>>> stage = DistributedDpStage(DistributedDpConfig(noise_multiplier=1.0, delta=1e-5, min_survivors=4))
>>> wire = stage.wire(Wire(kind="float", l2_bound=1.0, dimension=3), Nominal(max_cohort=8, max_weight=1.0))
>>> wire.kind, wire.dimension, wire.min_cohort
('grid', 4, 4)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from privacy.accounting import Mechanism, epsilon
from privacy.contexts import ClientContext, Nominal, RoundContext
from privacy.errors import ClientUpdateError, PipelineError
from privacy.ledger import Ledger, Release
from privacy.local import LocalTask, Metrics
from privacy.noise import Budget, bounded
from privacy.rotation import padded, rotate, rotate_back
from privacy.stage import Facts, Stage, Wire
from privacy.transport import Vector

ROUNDING = math.exp(-0.5)
"""Chance that unconditional rounding would leave the norm bound; at a retry each, a few tries are enough."""
TAIL = 12.0
"""Standard deviations of a client's noise for which the integers have room; beyond lies a chance below
1e-30."""
MODULUS_HALF = 2**31
TRIES = 100


class DistributedDpConfig(Budget):
    """Clients add shares of noise that are enough together, and only under masks."""

    stage: Literal["distributed_dp"] = "distributed_dp"
    min_survivors: int = Field(
        ge=2, description="fewest contributors of a sum; their shares of noise are enough together"
    )


class DistributedDpStage(Stage):
    """Rotation, scaling, conditional rounding and Skellam noise at the clients; the inverse at the server.

    *Guarantees.* Neighbours let a client take part with zeros instead of its update: its share of noise
    stays. The sum over n >= ``min_survivors`` contributors carries noise of standard deviation at least
    ``noise_multiplier`` times the sensitivity, and is charged for what n shares make. With c contributors
    that tell their shares to the server, n - c shares are left. Integers wrap around with a chance below
    1e-30 a coordinate.

    *Edge cases.* Nothing but `secure_aggregation` may follow: one client's share alone protects little. Fewer
    survivors: the round aborts. A planned weight scales the update before it is rounded, so that the noise
    keeps its size; the sensitivity is that of the largest weight.
    """

    def __init__(self, config: DistributedDpConfig) -> None:
        self.config = config
        self.scale = 1.0
        self.dimension = 0
        self.norm = 0.0
        self.noise_multiplier = 0.0
        self._clipped = 0.0

    @property
    def facts(self) -> Facts:
        return Facts(
            name="distributed_dp",
            place="update",
            charges="client",
            delta=self.config.delta,
            accountant=self.config.accountant,
            noised_by="clients together",
        )

    def wire(self, incoming: Wire, nominal: Nominal) -> Wire:
        sensitivity = bounded(incoming, "distributed_dp")
        if incoming.codec is not None:
            raise PipelineError(
                "distributed_dp after compression undoes it: it rotates and rounds anew; take compression out"
            )
        if incoming.dimension is None or nominal.max_cohort is None or nominal.max_weight is None:
            raise PipelineError(
                f"distributed_dp cannot rule out overflow with dimension={incoming.dimension}, "
                f"max_cohort={nominal.max_cohort}, max_weight={nominal.max_weight}; give all three"
            )
        self.dimension = incoming.dimension
        self._clipped = sensitivity * nominal.max_weight
        size = padded(self.dimension)
        self._settle(size, nominal.max_cohort, nominal.rounds)
        largest = (self.norm + TAIL * self._share_std()) / self.scale
        return Wire(
            kind="grid",
            l2_bound=sensitivity,
            step=1 / self.scale,
            largest=largest,
            dimension=size,
            min_cohort=max(incoming.min_cohort, self.config.min_survivors),
        )

    def client(self, update: Vector, context: ClientContext) -> tuple[Vector, Metrics]:
        if context.generator is None:
            raise ValueError("distributed_dp needs a generator; give one to the client")
        rotated = rotate(update * context.weight, sign_key=_sign_key(context)) * self.scale
        whole = self._rounded(rotated, context.generator)
        half = self._share_std() ** 2 / 2
        size = whole.shape
        noise = context.generator.poisson(half, size) - context.generator.poisson(half, size)
        return (whole + noise) / self.scale, {"noise_std": self._share_std() / self.scale}

    def read(self, context: RoundContext) -> None:
        if context.ledger is None:
            raise ValueError("distributed_dp needs a ledger; give one to open_round")
        shares = len(context.contributors) / self.config.min_survivors
        strength = self.noise_multiplier * math.sqrt(shares)
        context.ledger.append(self._release(context.contributors, context, strength))

    def sum(self, total: Vector, context: RoundContext) -> tuple[Vector, Metrics]:
        back = rotate_back(total, sign_key=_sign_key(context), dimension=self.dimension)
        return back, {"noise_std": self._share_std() * math.sqrt(len(context.contributors)) / self.scale}

    def promise(self, nominal: Nominal, tasks: Sequence[LocalTask], *, colluders: int = 0) -> float | None:
        honest = self.config.min_survivors - colluders
        if honest < 1 or not nominal.rounds:
            return math.inf
        strength = self.noise_multiplier * math.sqrt(honest / self.config.min_survivors)
        release = self._mechanism(strength, padded(self.dimension), scale=self.scale)
        if colluders == 0:
            return self.config.bound(((release, nominal.rounds),))
        return epsilon(
            ((release, nominal.rounds),), delta=self.config.delta, accountant=self.config.accountant
        )

    def affordable(self, client: str, context: RoundContext, ledger: Ledger) -> bool:
        return self.config.allows(ledger, self._release((client,), context, self.noise_multiplier))

    def _release(self, clients: tuple[str, ...], context: RoundContext, strength: float) -> Release:
        mechanism = self._mechanism(strength, padded(self.dimension), scale=self.scale)
        return self.config.release(mechanism, clients, context)

    def _mechanism(self, noise_multiplier: float, size: int, *, scale: float) -> Mechanism:
        """Skellam noise of variance mu on integers of norms D2 and D1; the excess is 3 D1 / (2 mu)."""
        norm = _rounded_norm(scale * self._clipped, size)
        sum_of_sizes = min(math.sqrt(size) * norm, norm**2)
        variance = (noise_multiplier * norm) ** 2
        return Mechanism(
            noise_multiplier=noise_multiplier,
            sampling="none",
            neighbours="zero_out",
            kind="skellam",
            excess=1.5 * sum_of_sizes / variance,
        )

    def _settle(self, size: int, cohort: int, rounds: int | None) -> None:
        """Noise and scale depend on each other a little: the finer the integers, the less noise is needed."""
        self.scale = 2.0**20
        for _ in range(TRIES):
            before = self.scale
            life = ((self._mechanism(1.0, size, scale=before), rounds),) if rounds else ()
            self.noise_multiplier = self.config.multiplier(life)
            self.scale = min(self._largest_scale(size, cohort), before)
            if self.scale == before:
                break
        self.norm = _rounded_norm(self.scale * self._clipped, size)

    def _share_std(self) -> float:
        """Standard deviation of one client's share, in whole numbers."""
        return self.noise_multiplier * self.norm / math.sqrt(self.config.min_survivors)

    def _largest_scale(self, size: int, cohort: int) -> float:
        """The largest power of two at which a full cohort's integers stay below half the modulus."""
        for exponent in range(20, -41, -1):
            self.scale = 2.0**exponent
            self.norm = _rounded_norm(self.scale * self._clipped, size)
            if cohort * (self.norm + TAIL * self._share_std() + 1) < MODULUS_HALF:
                return self.scale
        raise PipelineError(
            f"distributed_dp finds no scale at which {cohort} clients fit below 2^31; lower noise_multiplier"
        )

    def _rounded(self, vector: Vector, generator: np.random.Generator) -> Vector:
        """Each number to one of its whole neighbours, unbiased, again until the norm is within the bound."""
        low = np.floor(vector)
        for _ in range(TRIES):
            whole: Vector = low + (generator.random(vector.shape) < vector - low)
            if math.sqrt(float(np.square(whole).sum())) <= self.norm:
                return whole
        raise ClientUpdateError(f"no rounding within the norm bound in {TRIES} tries: the update is too long")


def _rounded_norm(scaled: float, size: int) -> float:
    """Norm that a rounded vector may have (Kairouz et al., 2021).

    It is at most that of rounding each coordinate up, and what rounding at random exceeds with a chance of
    ``ROUNDING``.
    """
    worst = scaled + math.sqrt(size)
    likely = math.sqrt(
        scaled**2 + size / 4 + math.sqrt(2 * math.log(1 / ROUNDING)) * (scaled + math.sqrt(size) / 2)
    )
    return min(worst, likely)


def _sign_key(context: RoundContext | ClientContext) -> tuple[str | int, ...]:
    """What the rotation of a round is drawn from: public, the same for all."""
    return (context.session, context.round_id, context.branch, context.attempt)
