"""How much noise: a noise multiplier, or a target epsilon over the whole life from which one follows.

>>> life = ((Mechanism(noise_multiplier=1.0, sampling_rate=0.1), 50),)
>>> Budget(target_epsilon=3.31, delta=1e-3).multiplier(life)
1.001
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Self

from pydantic import Field, model_validator

from privacy.accounting import (
    LEAST_NOISE,
    MOST_NOISE,
    Accountant,
    Composition,
    Mechanism,
    calibrate_noise,
    epsilon,
)
from privacy.config import Config
from privacy.contexts import ClientContext, Draw, RoundContext
from privacy.errors import PipelineError
from privacy.ledger import Ledger, Release
from privacy.stage import Wire


def charged(draw: Draw, *, noise_multiplier: float, invited: bool = False, known: bool = False) -> Mechanism:
    """What noise on a sum is charged as, to each client that could have been sampled or was asked.

    With ``known`` everybody may know who takes part: it costs those who do, and nothing is amplified.
    """
    if known:
        return Mechanism(noise_multiplier=noise_multiplier, sampling="none", neighbours="zero_out")
    fixed = draw.kind == "without_replacement"
    bare = Mechanism(
        noise_multiplier=noise_multiplier,
        sampling="none",
        neighbours="replace_one" if fixed else "add_remove",
    )
    capped = draw.kind == "truncated_poisson" and draw.size < draw.population
    if invited or draw.kind == "none":
        return bare
    if fixed or capped:
        size = min(draw.size, draw.population)
        rate = 1.0 if fixed else draw.rate
        return replace(
            bare, sampling=draw.kind, sampling_rate=rate, population=draw.population, sample_size=size
        )
    return replace(bare, sampling="poisson", sampling_rate=draw.rate)


def bounded(incoming: Wire, stage: str) -> float:
    """The sensitivity that noise is sized for; `PipelineError` without one."""
    if incoming.l2_bound is None:
        raise PipelineError(f"{stage} cannot size noise for updates that nothing bounds; put clip before")
    return incoming.l2_bound


class Budget(Config):
    """How much noise a stage adds."""

    noise_multiplier: float | None = Field(
        default=None,
        ge=LEAST_NOISE,
        le=MOST_NOISE,
        description="noise std over sensitivity; or give target_epsilon",
    )
    target_epsilon: float | None = Field(
        default=None, ge=1e-6, le=1e6, description="epsilon over the whole life; noise follows from it"
    )
    delta: float = Field(gt=0, lt=1, description="delta at which epsilon is quoted")
    accountant: Accountant = Field(default="pld", description="calibrates the noise and guards the budget")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise ValueError(
                f"noise_multiplier={self.noise_multiplier} and target_epsilon={self.target_epsilon}: give "
                "exactly one"
            )
        return self

    def multiplier(self, life: Composition) -> float:
        """As configured, or calibrated for all releases of a life; `PipelineError` if out of reach."""
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        assert self.target_epsilon is not None
        if not life:
            raise PipelineError(
                f"target_epsilon={self.target_epsilon} needs the number of rounds of the whole life; give "
                "rounds, or noise_multiplier"
            )
        try:
            return calibrate_noise(
                life, target_epsilon=self.target_epsilon, delta=self.delta, accountant=self.accountant
            )
        except ValueError as error:
            raise PipelineError(str(error)) from error

    def bound(self, life: Composition) -> float:
        """Epsilon of a whole life whose noise is known; infinite without a number of rounds."""
        if self.target_epsilon is not None and life:
            return self.target_epsilon
        if not life:
            return math.inf
        parts = tuple(sorted((mechanism, count) for mechanism, count in life if count))
        return epsilon(parts, delta=self.delta, accountant=self.accountant)

    def release(
        self, mechanism: Mechanism, clients: Iterable[str], context: RoundContext | ClientContext
    ) -> Release:
        """What noise in this attempt is charged to ``clients``, as whole clients."""
        return Release.of(
            mechanism,
            round_id=context.round_id,
            branch=context.branch,
            attempt=context.attempt,
            clients=tuple(clients),
            unit="client",
            delta=self.delta,
        )

    def allows(self, ledger: Ledger, *releases: Release) -> bool:
        """Whether releases together keep everybody they concern within ``target_epsilon``.

        Always, without one.
        """
        if self.target_epsilon is None:
            return True
        return not ledger.would_exceed(
            *releases, max_epsilon=self.target_epsilon, delta=self.delta, accountant=self.accountant
        )
