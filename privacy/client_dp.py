"""Client-level DP at the server: noise on the sum hides whether any one client was there at all.

McMahan et al., "Learning Differentially Private Recurrent Language Models" (2018). Every client counts the
same, the sum of clipped updates gets Gaussian noise of standard deviation ``noise_multiplier * sensitivity``,
and it is divided by a public constant, the expected size of a cohort; a mean over those who came would tell
how many.

>>> from privacy.clipping import ClipConfig, ClipStage
>>> from privacy.pipeline import Pipeline
>>> stage = ClientDpStage(ClientDpConfig(noise_multiplier=1.0, delta=1e-5))
>>> pipeline = Pipeline([ClipStage(ClipConfig(norm=1.0)), stage])
>>> sorted(pipeline.protects)
['client']
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from privacy.accounting import Composition
from privacy.contexts import Draw, Nominal, RoundContext
from privacy.ledger import Ledger, Release
from privacy.local import LocalTask, Metrics
from privacy.noise import Budget, bounded, charged
from privacy.stage import Facts, Stage, Wire
from privacy.transport import Vector


class ClientDpConfig(Budget):
    """Adds noise to the sum at the server, so that no client's presence shows in the model."""

    stage: Literal["client_dp"] = "client_dp"
    expected_cohort: float | None = Field(
        default=None,
        gt=0,
        description="public divisor of the sum; default: the expected size of the round's cohort",
    )


class ClientDpStage(Stage):
    """Central Gaussian noise, accounted as the cohorts were really drawn.

    *Guarantees.* One client changes the noiseless sum by at most the sensitivity, the clip norm times the
    largest weight. A round is charged to all who could have been drawn for it, by the draw that was made:
    Poisson sampling, with a cap or without, or a fixed number without replacement, for which neighbours
    exchange a client. Whoever is asked whatever the draw (a forgetting client in its unlearning) is charged
    once more, without amplification. Noise is drawn and charged even if nobody came: that nobody came is
    private, too.

    *Edge cases.* Under secure aggregation it is known who takes part, since too small a cohort is refused:
    the contributors are charged without amplification. Unbounded updates, weights that differ:
    `PipelineError`. A client whose charge would exceed ``target_epsilon`` is left out of the draw from then
    on.
    """

    def __init__(self, config: ClientDpConfig) -> None:
        self.config = config
        self.sensitivity = 0.0
        self.noise_multiplier = 0.0
        self.known = False

    @property
    def facts(self) -> Facts:
        return Facts(
            name="client_dp",
            place="update",
            charges="client",
            delta=self.config.delta,
            accountant=self.config.accountant,
            noised_by="server",
            central=True,
            on_sum="adds its noise to their sum",
        )

    def wire(self, incoming: Wire, nominal: Nominal) -> Wire:
        self.sensitivity = bounded(incoming, "client_dp")
        self.known = nominal.cohort_known
        self.noise_multiplier = max(self.config.multiplier(life) for life in _lives(nominal, 1.0))
        return incoming

    def promise(self, nominal: Nominal, tasks: Sequence[LocalTask], *, colluders: int = 0) -> float | None:
        return max(self.config.bound(life) for life in _lives(nominal, self.noise_multiplier))

    def affordable(self, client: str, context: RoundContext, ledger: Ledger) -> bool:
        return self.config.allows(ledger, *self._releases(replace(context, contributors=(client,))))

    def divisor(self, context: RoundContext) -> float | None:
        if context.planned_weights is not None:
            return context.planned_total
        return self.config.expected_cohort or max(context.draw.expected(), 1.0)

    def sum(self, total: Vector, context: RoundContext) -> tuple[Vector, Metrics]:
        if context.generator is None or context.ledger is None:
            raise ValueError("client_dp needs a generator and a ledger; give both to open_round")
        std = self.noise_multiplier * self.sensitivity * context.weight_bound()
        for release in self._releases(context):
            context.ledger.append(release)
        return total + context.generator.normal(0.0, std, total.shape), {"noise_std": std}

    def _releases(self, context: RoundContext) -> list[Release]:
        """What a round costs those who could have been sampled.

        Those who were invited are charged once more, be they among them or not; where it is known who takes
        part, those who did.
        """
        drawn, invited = (context.contributors, ()) if self.known else (context.roster, context.invited)
        return [
            self.config.release(
                charged(
                    context.draw, noise_multiplier=self.noise_multiplier, invited=asked, known=self.known
                ),
                names,
                context,
            )
            for names, asked in ((drawn, False), (invited, True))
            if names
        ]


def _lives(nominal: Nominal, noise_multiplier: float) -> list[Composition]:
    """What a client is charged at most, for each way in which cohorts are sampled.

    Every round is charged by that draw, and the rounds to which it is invited.
    """
    rounds = nominal.rounds
    if not rounds:
        return [()]
    if nominal.cohort_known:
        return [((charged(Draw(), noise_multiplier=noise_multiplier, known=True), rounds),)]
    lives = {
        (
            (charged(draw, noise_multiplier=noise_multiplier), rounds),
            (charged(draw, noise_multiplier=noise_multiplier, invited=True), nominal.invitations),
        )
        for draw in nominal.draws or (Draw(),)
    }
    return sorted(lives)
