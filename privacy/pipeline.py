"""The pipeline: stages put in order, checked once, and driven round by round by separate parties.

>>> import numpy as np
>>> pipeline = Pipeline(weighting="examples")          # no stages: a plain weighted mean
>>> here = dict(round_id=1, branch="main", attempt=0)
>>> updates = {"a": (np.float32([1.0, 0.0]), 1), "b": (np.float32([0.0, 4.0]), 3)}
>>> server = pipeline.open_round(cohort=["a", "b"], **here)
>>> payloads = {
...     name: pipeline.client(name, **here).prepare(update, weight=n).payload
...     for name, (update, n) in updates.items()
... }
>>> server.receive(payloads)
{}
>>> result = server.aggregate({})
>>> result.update.tolist(), result.total_weight
([0.25, 3.0], 4.0)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from privacy.channel import PlainChannel
from privacy.composition import check_accounted, check_order, fold
from privacy.contexts import ClientContext, Draw, Metric, Nominal, RoundContext, Unit, Weighting
from privacy.errors import CohortTooSmall, PipelineError
from privacy.local import LocalRule
from privacy.parties import ClientParty, ServerRound
from privacy.stage import Facts, Reveals, Stage
from privacy.transport import Channel

if TYPE_CHECKING:
    from privacy.ledger import Ledger


class Pipeline:
    """Stages from the client's training to the server's mean, type-checked when built.

    ``weighting``: every contributor counts the same, or by its number of examples. ``max_weight`` is
    the largest weight a client may have (1 under "uniform" unless given), ``max_cohort`` the largest
    cohort, ``dimension`` the length of an update where it is known beforehand. ``metrics`` are the
    numbers clients may report; nothing else leaves a client. ``public_counts`` declares that the
    clients' numbers of examples are public, which DP does not protect. ``max_update_norm`` is the longest
    update that the server takes, where no stage bounds them.

    *Guarantees.* Construction fails with `PipelineError` if stages are out of order or doubled, a
    modular stage would get unbounded updates, a sum could overflow, noise has no sensitivity, or a
    DP stage would sit beside numbers that nobody accounts for. The server sees of a round only
    what `reveals` says.

    *Edge cases.* No stages: a plain weighted mean. ``min_cohort`` is at least 2 under masks.
    """

    def __init__(
        self,
        stages: Sequence[Stage] = (),
        *,
        weighting: Weighting = "uniform",
        max_weight: float | None = None,
        max_cohort: int | None = None,
        dimension: int | None = None,
        min_cohort: int = 1,
        metrics: Sequence[Metric] = (),
        public_counts: bool = False,
        session: str = "",
        rounds: int | None = None,
        draws: Sequence[Draw] = (),
        invitations: int = 0,
        cohort_known: bool = False,
        max_update_norm: float | None = None,
    ) -> None:
        if weighting not in ("uniform", "examples"):
            raise PipelineError(f"weighting={weighting!r} is unknown; choose 'uniform' or 'examples'")
        for name, value in (
            ("max_weight", max_weight),
            ("max_cohort", max_cohort),
            ("max_update_norm", max_update_norm),
        ):
            if value is not None and not 0 < value < float("inf"):
                raise PipelineError(f"{name}={value} must be positive and finite")
        if min_cohort < 1:
            raise PipelineError(f"min_cohort={min_cohort} must be at least 1")
        self.stages = tuple(stages)
        self.weighting: Weighting = weighting
        self.nominal = Nominal(
            max_cohort=max_cohort,
            max_weight=1.0 if max_weight is None and weighting == "uniform" else max_weight,
            dimension=dimension,
            min_cohort=min_cohort,
            metrics=tuple(metrics),
            session=session,
            rounds=rounds,
            draws=tuple(draws),
            invitations=invitations,
            cohort_known=cohort_known or any(stage.facts.reveals == "sum" for stage in stages),
            max_update_norm=max_update_norm,
        )
        check_order(self.facts)
        check_accounted(self.facts, weighting, self.nominal.metrics, public_counts)
        self.wires, channel = fold(self.stages, self.nominal)
        if max_update_norm is not None and self.longest is not None:
            raise PipelineError(
                f"max_update_norm={max_update_norm} beside stages that bound every update at "
                f"{self.longest:.3g} already, which the server checks; leave max_update_norm out"
            )
        self.channel: Channel = channel or PlainChannel(
            min_cohort=0 if self.releases_anyway else min_cohort,
            metric_names=tuple(m.name for m in metrics),
            dimension=self.wires[-1].dimension,
            codec=self.wires[-1].codec,
            weighting=weighting,
            max_weight=self.nominal.max_weight,
            max_norm=max_update_norm if self.longest is None else self.longest,
        )
        self.min_cohort = self.channel.min_cohort

    @property
    def facts(self) -> tuple[Facts, ...]:
        """What each stage declares, in order."""
        return tuple(stage.facts for stage in self.stages)

    @property
    def interactive(self) -> bool:
        """Whether clients must advertise before they prepare."""
        return self.channel.interactive

    @property
    def reveals(self) -> Reveals:
        """What the server sees of updates: each one, or only their sum."""
        return "sum" if any(fact.reveals == "sum" for fact in self.facts) else "individual"

    @property
    def bearable_colluders(self) -> int:
        """Clients that may collude with the server without giving away another's update."""
        return self.channel.bearable_colluders

    @property
    def central(self) -> bool:
        """Whether the server adds noise for whoever could have taken part."""
        return any(fact.central for fact in self.facts)

    @property
    def releases_anyway(self) -> bool:
        """Whether a round to which nobody comes is released like any other, since that is private, too."""
        return self.reveals == "individual" and self.central

    @property
    def protects(self) -> frozenset[Unit]:
        """The units for which a stage releases with differential privacy."""
        return frozenset(fact.charges for fact in self.facts if fact.charges is not None)

    @property
    def l2_bound(self) -> float | None:
        """Largest L2 norm of one client's unweighted update, None if unbounded."""
        return self.wires[-1].l2_bound

    @property
    def longest(self) -> float | None:
        """Largest L2 norm of what an honest client sends, but for a chance that can be neglected; None if the
        stages leave it open."""
        return self.l2_bound if self.l2_bound is not None else self.wires[-1].longest

    @property
    def _sums_updates(self) -> bool:
        """Whether what is summed under masks are bounded updates alone, without clients' noise."""
        return self.reveals == "sum" and all(wire.kind != "grid" for wire in self.wires)

    def local_rule(self) -> LocalRule | None:
        """The rule that owns local training, if a stage brings one."""
        rules = [rule for stage in self.stages if (rule := stage.local()) is not None]
        return rules[0] if rules else None

    def affordable(
        self,
        client: str,
        *,
        ledger: Ledger,
        round_id: int,
        branch: str,
        draw: Draw | None,
        invited: bool = False,
    ) -> bool:
        """Whether a client's budget allows it to be drawn in a round, or to be invited to it; without a
        ``draw``, it is not among those who could be. Changes nothing."""
        context = RoundContext(
            round_id=round_id,
            branch=branch,
            attempt=0,
            roster=() if draw is None else (client,),
            invited=(client,) if invited else (),
            draw=Draw() if draw is None else draw,
        )
        return all(stage.affordable(client, context, ledger) for stage in self.stages)

    def spent(self, ledger: Ledger) -> dict[str, dict[Unit, float]]:
        """By client, the epsilon spent for each unit that a stage protects, at that stage's delta."""
        found: dict[str, dict[Unit, float]] = {}
        for fact in self.facts:
            if fact.charges is None or fact.delta is None:
                continue
            unit, delta, accountant = fact.charges, fact.delta, fact.accountant
            for client in ledger.clients(unit=unit):
                value = ledger.epsilon(client, unit=unit, delta=delta, accountant=accountant)
                found.setdefault(client, {})[unit] = value
        return found

    def client(
        self,
        client: str,
        *,
        round_id: int,
        branch: str,
        attempt: int = 0,
        secret: bytes | None = None,
        memory: bytes = b"",
        generator: np.random.Generator | None = None,
        planned_weight: float | None = None,
        ledger: Ledger | None = None,
        state: Mapping[str, float] | None = None,
    ) -> ClientParty:
        """One client's party; rebuilt from its ``memory`` (see `ClientParty.memory`) after a message."""
        context = ClientContext(
            client=client,
            round_id=round_id,
            branch=branch,
            attempt=attempt,
            session=self.nominal.session,
            secret=secret,
            memory=memory,
            generator=generator,
            planned_weight=planned_weight,
            ledger=ledger,
            state=dict(state or {}),
        )
        return ClientParty(
            stages=self.stages,
            nominal=self.nominal,
            weighting=self.weighting,
            context=context,
            channel=self.channel.client(context),
        )

    def open_round(
        self,
        *,
        round_id: int,
        branch: str,
        cohort: Sequence[str],
        attempt: int = 0,
        planned_weights: Mapping[str, float] | None = None,
        normalise: bool = True,
        ledger: Ledger | None = None,
        generator: np.random.Generator | None = None,
        roster: Sequence[str] = (),
        invited: Sequence[str] = (),
        draw: Draw | None = None,
        planned_total: float | None = None,
        largest_weight: float | None = None,
        state: Mapping[str, float] | None = None,
        counts: Mapping[str, float] | None = None,
    ) -> ServerRound:
        """The server's party for one attempt.

        ``roster``, ``draw``, ``invited`` say from whom the cohort was drawn and how (see `RoundContext`).
        ``largest_weight`` bounds planned weights by a number that does not depend on who was drawn.

        ``counts`` are the examples that the server knows each client of the cohort to train on; under
        "examples" any other weight is its sender's fault, or under masks makes the sum unusable.

        ``planned_weights`` are public weights by client that replace the pipeline's weighting (an
        unlearning round's gamma for the target and alpha/n for each helper); clients must be given
        the same as ``planned_weight``. ``normalise=False`` gives the weighted sum, not the mean.
        """
        if len(set(cohort)) != len(cohort):
            raise ValueError(f"cohort={list(cohort)} names a client twice")
        if planned_weights is not None and set(planned_weights) != set(cohort):
            raise ValueError(f"planned_weights for {sorted(planned_weights)} must cover {sorted(cohort)}")
        if planned_weights is not None:
            heard = sum(weight != 0 for weight in planned_weights.values())
            if heard < self.min_cohort:
                raise CohortTooSmall(
                    f"planned_weights={dict(planned_weights)} leave {heard} clients in the sum, fewer than "
                    f"min_cohort={self.min_cohort}"
                )
        context = RoundContext(
            round_id=round_id,
            branch=branch,
            attempt=attempt,
            session=self.nominal.session,
            cohort=tuple(sorted(cohort)),
            ledger=ledger,
            generator=generator,
            roster=tuple(sorted(roster)),
            invited=tuple(sorted(invited)),
            draw=Draw() if draw is None else draw,
            planned_weights=None if planned_weights is None else dict(planned_weights),
            counts=counts if self.weighting == "examples" and planned_weights is None else None,
            planned_total=planned_total,
            largest_weight=_largest(planned_weights) if largest_weight is None else largest_weight,
            state=dict(state or {}),
        )
        return ServerRound(
            stages=self.stages,
            nominal=self.nominal,
            context=context,
            channel=self.channel.server(context),
            min_cohort=self.min_cohort,
            normalise=normalise,
            longest=self.l2_bound if self._sums_updates else None,
        )


def _largest(weights: Mapping[str, float] | None) -> float:
    return max(map(abs, weights.values()), default=1.0) if weights is not None else 1.0
