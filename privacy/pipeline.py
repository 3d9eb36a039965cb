"""The pipeline: stages put in order, checked once, and driven round by round by separate parties.

>>> import numpy as np
>>> pipeline = Pipeline(weighting="examples")          # no stages: a plain weighted mean
>>> here = dict(round_id=1, branch="main")
>>> updates = {"a": (np.float32([1.0, 0.0]), 1), "b": (np.float32([0.0, 4.0]), 3)}
>>> server = pipeline.open_round(RoundContext(cohort=("a", "b"), **here))
>>> payloads = {
...     name: pipeline.client(ClientContext(client=name, **here)).prepare(update, weight=n).payload
...     for name, (update, n) in updates.items()
... }
>>> server.receive(payloads)
{}
>>> result = server.aggregate({})
>>> result.update.tolist(), result.total_weight
([0.25, 3.0], 4.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from privacy.channel import PlainChannel
from privacy.composition import check_accounted, check_order, fold
from privacy.contexts import ClientContext, Nominal, RoundContext
from privacy.errors import CohortTooSmall, PipelineError
from privacy.ledger import Ledger
from privacy.local import LocalRule
from privacy.parties import ClientParty, ServerRound
from privacy.stage import Facts, Reveals, Stage
from privacy.transport import Channel
from privacy.units import Unit, Weighting


class Pipeline:
    """Stages from the client's training to the server's mean, type-checked when built.

    ``nominal`` holds the worst cases that the stages are checked against; under "uniform" its ``max_weight``
    is 1 unless given. ``weighting``: every contributor counts the same, or by its number of examples.
    ``public_counts`` declares that the clients' numbers of examples are public, which DP does not protect.

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
        nominal: Nominal | None = None,
        weighting: Weighting = "uniform",
        public_counts: bool = False,
    ) -> None:
        if weighting not in ("uniform", "examples"):
            raise PipelineError(f"weighting={weighting!r} is unknown; choose 'uniform' or 'examples'")
        self.stages = tuple(stages)
        self.weighting: Weighting = weighting
        self.nominal = self._completed(nominal if nominal is not None else Nominal())
        check_order(self.facts)
        check_accounted(self.facts, weighting, self.nominal.metrics, public_counts)
        self.wires, channel = fold(self.stages, self.nominal)
        self._check_longest()
        self.channel: Channel = channel or self._plain_channel()
        self.min_cohort = self.channel.min_cohort

    def _completed(self, nominal: Nominal) -> Nominal:
        """The worst cases, and what follows for them; `PipelineError` for impossible ones."""
        for name in ("max_weight", "max_cohort", "max_update_norm"):
            value = getattr(nominal, name)
            if value is not None and not 0 < value < float("inf"):
                raise PipelineError(f"{name}={value} must be positive and finite")
        if nominal.min_cohort < 1:
            raise PipelineError(f"min_cohort={nominal.min_cohort} must be at least 1")
        largest = nominal.max_weight
        return replace(
            nominal,
            max_weight=1.0 if largest is None and self.weighting == "uniform" else largest,
            cohort_known=nominal.cohort_known or self.reveals == "sum",
        )

    def _check_longest(self) -> None:
        longest = self.nominal.max_update_norm
        if longest is not None and self.longest is not None:
            raise PipelineError(
                f"max_update_norm={longest} beside stages that bound every update at {self.longest:.3g} "
                "already, which the server checks; leave max_update_norm out"
            )

    def _plain_channel(self) -> PlainChannel:
        """Updates one by one, each no longer than the stages leave it, or else than the server takes."""
        longest, wire = self.nominal.max_update_norm, self.wires[-1]
        return PlainChannel(
            min_cohort=0 if self.releases_anyway else self.nominal.min_cohort,
            metric_names=tuple(metric.name for metric in self.nominal.metrics),
            dimension=wire.dimension,
            codec=wire.codec,
            weighting=self.weighting,
            max_weight=self.nominal.max_weight,
            max_norm=longest if self.longest is None else self.longest,
        )

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
        """Largest L2 norm of what an honest client sends, but for a chance that can be neglected.

        None if the stages leave it open.
        """
        return self.l2_bound if self.l2_bound is not None else self.wires[-1].longest

    @property
    def _sums_updates(self) -> bool:
        """Whether what is summed under masks are bounded updates alone, without clients' noise."""
        return self.reveals == "sum" and all(wire.kind != "grid" for wire in self.wires)

    def local_rule(self) -> LocalRule | None:
        """The rule that owns local training, if a stage brings one."""
        rules = [rule for stage in self.stages if (rule := stage.local()) is not None]
        return rules[0] if rules else None

    def affordable(self, client: str, context: RoundContext, ledger: Ledger) -> bool:
        """Whether a client's budget allows it to be sampled in a round, or to be invited to it.

        ``context`` names it alone, in the roster or among the invited. Changes nothing.
        """
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

    def client(self, context: ClientContext) -> ClientParty:
        """One client's party; rebuilt from its ``memory`` (see `ClientParty.memory`) after a message."""
        context = replace(context, session=self.nominal.session)
        return ClientParty(
            stages=self.stages,
            nominal=self.nominal,
            weighting=self.weighting,
            context=context,
            channel=self.channel.client(context),
        )

    def open_round(self, context: RoundContext, *, normalise: bool = True) -> ServerRound:
        """The server's party for one attempt.

        Under "examples" any weight but a client's ``counts`` is its sender's fault, or under masks makes the
        sum unusable. ``planned_weights`` replace the pipeline's weighting (an unlearning round's gamma for
        the target and alpha/n for each helper); clients must be given the same as ``planned_weight``.
        ``normalise=False`` gives the weighted sum, not the mean.

        Raises:
            ValueError: a client is named twice, or planned weights are not those of the cohort.
            CohortTooSmall: planned weights leave fewer than ``min_cohort`` clients in the sum.
        """
        planned = context.planned_weights
        if len(set(context.cohort)) != len(context.cohort):
            raise ValueError(f"cohort={list(context.cohort)} names a client twice")
        if planned is not None and set(planned) != set(context.cohort):
            raise ValueError(f"planned_weights for {sorted(planned)} must cover {sorted(context.cohort)}")
        if planned is not None:
            heard = sum(weight != 0 for weight in planned.values())
            if heard < self.min_cohort:
                raise CohortTooSmall(
                    f"planned_weights={dict(planned)} leave {heard} clients in the sum, fewer than "
                    f"min_cohort={self.min_cohort}"
                )
        context = replace(
            context,
            session=self.nominal.session,
            cohort=tuple(sorted(context.cohort)),
            roster=tuple(sorted(context.roster)),
            invited=tuple(sorted(context.invited)),
            counts=context.counts if self.weighting == "examples" and planned is None else None,
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
