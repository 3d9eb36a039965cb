"""The two parties of a round: a client that prepares, a server that aggregates.

They share nothing but bytes and arrays. A client rebuilt from its memory continues where the former
object stopped, which is what a stateless client app needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from privacy.clipping import l2_norm
from privacy.contexts import ClientContext, Nominal, RoundContext
from privacy.errors import ClientUpdateError, CohortTooSmall, SumUnusable, ViewError
from privacy.local import Metrics
from privacy.stage import Stage, acts_on_sum
from privacy.transport import ClientChannel, Contribution, Payload, ServerChannel, Total, Update, Vector
from privacy.units import Weighting


class Prepared(NamedTuple):
    """What leaves the client, and metrics of its stages ("clip.norm") that stay there."""

    payload: Payload
    metrics: Metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundResult:
    """What comes out of a round.

    ``update`` is the mean (or weighted sum), fp32 (d,). ``metrics`` holds the contributors' mean of each
    declared metric and "contributors", their number, and under masks "quantisation_error", a bound on the
    error of each coordinate of the update. ``rejected`` names clients of whom a message could not be used,
    with reasons; one that was asked last may have contributed. ``state`` is what the stages keep for the next
    round of the branch. ``lengths`` holds by client the L2 norm of what it sent, times its weight, where the
    server sees that.
    """

    update: Update
    total_weight: float
    metrics: Metrics
    contributors: tuple[str, ...]
    rejected: Mapping[str, str]
    state: Mapping[str, float] = field(default_factory=dict)
    lengths: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientParty:
    """One client in one attempt of one round. Made by `Pipeline.client`."""

    stages: tuple[Stage, ...]
    nominal: Nominal
    weighting: Weighting
    context: ClientContext
    channel: ClientChannel

    @property
    def memory(self) -> bytes:
        """What to rebuild this party from; it never leaves the client."""
        return self.channel.memory

    def advertise(self) -> bytes:
        """First message; empty unless the pipeline is interactive."""
        return self.channel.advertise()

    def share(self, broadcast: bytes) -> bytes:
        """Second message, in answer to the roster."""
        return self.channel.share(broadcast)

    def unmask(self, request: bytes) -> bytes:
        """Last message, once the server has said who reported."""
        return self.channel.unmask(request)

    def prepare(
        self,
        update: Update,
        *,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        delivery: bytes = b"",
    ) -> Prepared:
        """Check an update, pass it through the stages, seal it.

        ``update`` is fp32 (d,); ``weight`` the number of examples, not used under "uniform" or when a
        weight is planned; ``metrics`` exactly those declared by the pipeline.

        *Guarantees.* NaN, infinity and wrong sizes raise `ClientUpdateError` before anything is
        masked. The update is not changed. If it travels packed, "compression.ratio" says how many times fewer
        bytes that took than fp32. A second, different update in one attempt is refused under masks:
        their difference would be bare.
        """
        value: Vector = _checked(update, self.nominal.dimension).astype(np.float64)
        reported = self._reported(metrics or {})
        context = replace(self.context, weight=self._weight(weight))
        local: Metrics = {}
        for stage in self.stages:
            value, found = stage.client(value, context)
            local |= {f"{stage.facts.name}.{name}": number for name, number in found.items()}
        contribution = Contribution(update=value, weight=context.weight, metrics=reported)
        payload = self.channel.seal(contribution, delivery)
        if payload.array.dtype == np.uint8:
            local["compression.ratio"] = 4.0 * value.size / payload.array.nbytes
        return Prepared(payload, local)

    def _weight(self, given: float) -> float:
        limit = math.inf if self.nominal.max_weight is None else self.nominal.max_weight
        planned = self.context.planned_weight
        if planned is not None:
            if not abs(planned) <= limit:
                raise ClientUpdateError(f"planned_weight={planned} exceeds max_weight={limit}")
            return planned
        if self.weighting == "uniform":
            return 1.0
        if not 1 <= given <= limit or given != int(given):
            raise ClientUpdateError(
                f"weight={given} must be a whole number of examples from 1 to max_weight={limit}"
            )
        return float(given)

    def _reported(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        names = [metric.name for metric in self.nominal.metrics]
        if set(metrics) != set(names):
            raise ClientUpdateError(f"metrics={sorted(metrics)} must be exactly the declared {sorted(names)}")
        bad = [name for name in names if math.isnan(metrics[name])]
        if bad:
            raise ClientUpdateError(f"metrics {bad} are NaN")
        return tuple(min(max(metrics[m.name], -m.bound), m.bound) for m in self.nominal.metrics)


def _checked(update: Update, dimension: int | None) -> Update:
    """The update itself if it can be used."""
    if (
        not isinstance(update, np.ndarray)
        or update.dtype != np.float32
        or update.ndim != 1
        or not update.size
    ):
        kind = f"{update.dtype}{update.shape}" if isinstance(update, np.ndarray) else type(update).__name__
        raise ClientUpdateError(f"update is {kind}; give a non-empty float32 vector")
    if dimension is not None and update.size != dimension:
        raise ClientUpdateError(f"update has {update.size} entries, expected dimension={dimension}")
    if not np.isfinite(update).all():
        raise ClientUpdateError("update holds NaN or infinity; this client cannot contribute")
    return update


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerRound:
    """The server in one attempt of one round. Made by `Pipeline.open_round`.

    ``longest`` bounds each update of a masked sum, hence the sum; None if nothing does.
    """

    stages: tuple[Stage, ...]
    nominal: Nominal
    context: RoundContext
    channel: ServerChannel
    min_cohort: int
    normalise: bool
    longest: float | None = None

    def __post_init__(self) -> None:
        if len(self.context.cohort) < self.min_cohort:
            raise CohortTooSmall(
                f"cohort of {len(self.context.cohort)} is below min_cohort={self.min_cohort}"
            )

    @property
    def rejected(self) -> Mapping[str, str]:
        """Clients of whom a message could not be used so far, with reasons."""
        return self.channel.rejected

    def collect(self, messages: Mapping[str, bytes]) -> bytes:
        """Advertised messages by client -> what every one of them gets."""
        return self.channel.collect(messages)

    def deliver(self, messages: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Second messages by client -> what each client that is still in gets before it prepares."""
        return self.channel.deliver(messages)

    def receive(self, payloads: Mapping[str, Payload]) -> Mapping[str, bytes]:
        """Payloads by client -> what those that sent one are asked; nothing unless interactive."""
        return self.channel.receive(payloads)

    def aggregate(self, answers: Mapping[str, bytes]) -> RoundResult:
        """Answers by client (none unless interactive) -> mean update of what was received.

        *Guarantees.* The order of messages changes no bit of the result. Under masks the sum of the
        encoded contributions is exact, or `RoundAborted` is raised; a `SumUnusable` is charged like a sum.
        """
        try:
            total = self.channel.total(answers)
        except SumUnusable as error:
            self._read(error.contributors)
            raise
        if len(total.contributors) < self.min_cohort:
            raise CohortTooSmall(
                f"{len(total.contributors)} contributors, below min_cohort={self.min_cohort}"
            )
        context = self._read(total.contributors)
        self._check_weights(total)
        self._check_length(total)
        divisor = self._divisor(total, context)
        value = total.update
        metrics = self._means(total)
        if total.error:
            metrics["quantisation_error"] = total.error / divisor
        for stage in self.stages:
            value, found = stage.sum(value, context)
            metrics |= {f"{stage.facts.name}.{name}": number for name, number in found.items()}
        value = value / divisor
        state: dict[str, float] = {}
        for stage in reversed(self.stages):
            state |= stage.next_state(value, context)
            value, found = stage.server(value, context)
            metrics |= {f"{stage.facts.name}.{name}": number for name, number in found.items()}
        return RoundResult(
            state=state,
            update=value.astype(np.float32),
            total_weight=total.weight,
            metrics=metrics,
            contributors=total.contributors,
            rejected=dict(self.channel.rejected),
            lengths=dict(self.channel.lengths),
        )

    def individuals(self) -> Mapping[str, Contribution]:
        """What each contributor sent, by client in the order of ids, for rules that combine one by one.

        After `receive`. Updates are float64 (d,), not weighted, as they came out of the clients' stages.
        `ViewError` where a masked sum is all there is, or where a stage acts on the sum, which would be left
        out here; `RoundAborted` before anything was received.
        """
        acting = [stage.facts.name for stage in self.stages if acts_on_sum(stage)]
        if acting:
            raise ViewError(f"{' and '.join(acting)} acts on the sum, which updates one by one leave out")
        return self.channel.individuals()

    def _read(self, contributors: tuple[str, ...]) -> RoundContext:
        """Have stages charge for a sum over these clients; the context in which it is used."""
        context = replace(self.context, contributors=contributors)
        for stage in self.stages:
            stage.read(context)
        return context

    def _divisor(self, total: Total, context: RoundContext) -> float:
        """What makes a mean of the sum: a stage's public constant, or the total weight."""
        constants = [value for stage in self.stages if (value := stage.divisor(context)) is not None]
        divisor = (constants or [total.weight])[0] if self.normalise else 1.0
        if not divisor > 0:
            raise SumUnusable(
                f"weights add up to {divisor}; a mean needs a positive total", total.contributors
            )
        return divisor

    def _means(self, total: Total) -> Metrics:
        count = max(len(total.contributors), 1)
        metrics = {
            metric.name: value / count
            for metric, value in zip(self.nominal.metrics, total.metrics, strict=True)
        }
        return metrics | {"contributors": float(count)}

    def _check_weights(self, total: Total) -> None:
        """Check by their total that clients used the planned weights, or the server's counts."""
        planned = self.context.planned_weights
        weights = self.context.counts if planned is None else planned
        if weights is None:
            return
        due = math.fsum(weights[client] for client in total.contributors)
        if not math.isclose(due, total.weight, rel_tol=1e-5, abs_tol=1e-5):
            whence = "was planned" if planned is not None else "is what these clients hold"
            raise SumUnusable(f"weights add up to {total.weight}, but {due} {whence}", total.contributors)

    def _check_length(self, total: Total) -> None:
        """Check that a masked sum is no longer than the declared bounds of all that are in it.

        Which client's update was longer, masks hide.
        """
        if self.longest is None:
            return
        planned = self.context.planned_weights
        weight = total.weight
        if planned is not None:
            weight = math.fsum(abs(planned[client]) for client in total.contributors)
        length, most = l2_norm(total.update), self.longest * weight
        if length > most * (1 + 1e-3):
            raise SumUnusable(
                f"the sum is of L2 norm {length:.3g}, longer than the {most:.3g} that updates within the "
                "declared bound add up to; masks hide whose was longer",
                total.contributors,
            )
