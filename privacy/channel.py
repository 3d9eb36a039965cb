"""The plain channel: vectors are added in the clear, in an order that does not depend on arrival.

This is the null object of secure aggregation, and the reference that a masked sum is tested against.

>>> from privacy.contexts import ClientContext, RoundContext
>>> from privacy.transport import Contribution
>>> import numpy as np
>>> here = dict(round_id=0, branch="main", attempt=0)
>>> channel = PlainChannel()
>>> payload = channel.client(ClientContext(client="a", **here)).seal(
...     Contribution(update=np.ones(2), weight=3.0), b"")
>>> server = channel.server(RoundContext(cohort=("a",), **here))
>>> server.receive({"a": payload})
{}
>>> server.total({}).update.tolist()
[3.0, 3.0]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from privacy.clipping import l2_norm
from privacy.codecs import pack
from privacy.contexts import ClientContext, RoundContext
from privacy.errors import ClientUpdateError, CohortTooSmall, RoundAborted
from privacy.transport import ClientChannel, Codec, Contribution, Payload, ServerChannel, Total, Vector
from privacy.units import Weighting

ROUNDING = 1e-6
"""Relative error of a norm by the rounding of an update to fp32 behind the stage that bounds it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainChannel:
    """Adds in float64, in the order of client ids. With a ``codec``, vectors travel packed.

    *Guarantees.* The order in which payloads arrive changes no bit. One client's NaN, wrong size, missing
    field, weight that is not its own, or bytes that cannot be unpacked are that client's: it is left out and
    named in ``rejected``. So is one whose update is longer than ``max_norm``. A packed vector arrives bit by
    bit.

    *Edge cases.* No usable payload, or fewer than ``min_cohort``: `CohortTooSmall`. Sizes that differ:
    the size of the majority counts, ties go to the smaller id.
    """

    min_cohort: int = 1
    metric_names: tuple[str, ...] = ()
    dimension: int | None = None
    codec: Codec | None = None
    weighting: Weighting = "examples"
    max_weight: float | None = None
    max_norm: float | None = None

    @property
    def interactive(self) -> bool:
        return False

    @property
    def bearable_colluders(self) -> int:
        return 0

    def client(self, context: ClientContext) -> ClientChannel:
        return _PlainClient(context=context, metric_names=self.metric_names, codec=self.codec)

    def server(self, context: RoundContext) -> ServerChannel:
        return _PlainServer(channel=self, context=context)


@dataclass(frozen=True, kw_only=True, slots=True)
class _PlainClient:
    context: ClientContext
    metric_names: tuple[str, ...]
    codec: Codec | None

    @property
    def memory(self) -> bytes:
        return b""

    def advertise(self) -> bytes:
        return b""

    def share(self, broadcast: bytes) -> bytes:
        return b""

    def unmask(self, request: bytes) -> bytes:
        return b""

    def seal(self, contribution: Contribution, delivery: bytes) -> Payload:
        fields: dict[str, int | float | str] = {
            "client": self.context.client,
            "round": self.context.round_id,
            "branch": self.context.branch,
            "attempt": self.context.attempt,
            "weight": contribution.weight,
        }
        fields |= {f"metric.{n}": v for n, v in zip(self.metric_names, contribution.metrics, strict=True)}
        update = contribution.update.astype(np.float32)
        return Payload(array=update if self.codec is None else pack(self.codec, update), fields=fields)


@dataclass(kw_only=True, slots=True)
class _PlainServer:
    channel: PlainChannel
    context: RoundContext
    rejected: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, float] = field(default_factory=dict)
    _total: Total | None = None
    _used: dict[str, Payload] = field(default_factory=dict)

    def collect(self, messages: Mapping[str, bytes]) -> bytes:
        return b""

    def deliver(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        return {}

    def receive(self, payloads: Mapping[str, Payload]) -> dict[str, bytes]:
        self._total = self._added(self._unpacked(payloads))
        return {}

    def total(self, answers: Mapping[str, bytes]) -> Total:
        if self._total is None:
            raise RoundAborted("no payloads in this attempt: call receive before aggregate")
        return self._total

    def _unpacked(self, payloads: Mapping[str, Payload]) -> Mapping[str, Payload]:
        """Payloads as vectors, without those that cannot be unpacked."""
        if self.channel.codec is None:
            return payloads
        vectors = {}
        for client in sorted(payloads):
            try:
                array = self.channel.codec.decode(payloads[client].array)
                vectors[client] = replace(payloads[client], array=array)
            except ClientUpdateError as error:
                self.rejected[client] = str(error)
        return vectors

    def individuals(self) -> dict[str, Contribution]:
        total = self.total({})
        return {client: self._contribution(self._used[client]) for client in total.contributors}

    def _contribution(self, payload: Payload) -> Contribution:
        return Contribution(
            update=payload.array.astype(np.float64),
            weight=float(payload.fields["weight"]),
            metrics=tuple(float(payload.fields[f"metric.{name}"]) for name in self.channel.metric_names),
        )

    def _added(self, payloads: Mapping[str, Payload]) -> Total:
        size = self._expected_size(payloads)
        faults = {client: self._fault(client, payloads[client], size) for client in sorted(payloads)}
        self.rejected |= {client: fault for client, fault in faults.items() if fault}
        good = tuple(client for client, fault in faults.items() if not fault)
        if len(good) < self.channel.min_cohort:
            raise CohortTooSmall(
                f"{len(good)} usable updates, fewer than min_cohort={self.channel.min_cohort}; "
                f"rejected: {self.rejected}"
            )
        self._used = {client: payloads[client] for client in good}
        self.lengths = {
            client: l2_norm(sent.array) * abs(float(sent.fields["weight"]))
            for client, sent in self._used.items()
        }
        update: Vector = np.zeros(size, dtype=np.float64)
        for client in good:
            update += payloads[client].array.astype(np.float64) * float(payloads[client].fields["weight"])
        metrics = tuple(
            math.fsum(float(payloads[client].fields[f"metric.{name}"]) for client in good)
            for name in self.channel.metric_names
        )
        return Total(
            update=update,
            weight=math.fsum(float(payloads[client].fields["weight"]) for client in good),
            metrics=metrics,
            contributors=good,
        )

    def _expected_size(self, payloads: Mapping[str, Payload]) -> int:
        if self.channel.dimension is not None or not payloads:
            return self.channel.dimension or 0
        sizes = [payloads[client].array.size for client in sorted(payloads)]
        return max(sizes, key=sizes.count)

    def _fault(self, client: str, payload: Payload, size: int) -> str:
        """Why this payload cannot be used, or an empty string."""
        fields = payload.fields
        if client not in self.context.cohort:
            return "is not in this round's cohort"
        here = self.context
        expected = {
            "client": client,
            "round": here.round_id,
            "branch": here.branch,
            "attempt": here.attempt,
        }
        if any(fields.get(name) != value for name, value in expected.items()):
            return f"answers for another client, round or attempt: {dict(fields)}"
        if payload.array.dtype != np.float32 or payload.array.shape != (size,):
            return f"holds {payload.array.dtype}{payload.array.shape}, expected float32({size},)"
        numbers = ("weight", *(f"metric.{name}" for name in self.channel.metric_names))
        if not all(_is_finite(fields.get(name)) for name in numbers):
            return f"lacks one of the numbers {numbers}"
        if not self._allowed(client, float(fields["weight"])):
            return f"claims a weight of {fields['weight']}, which is not its own"
        if not np.isfinite(payload.array).all():
            return "holds NaN or infinity"
        length, most = l2_norm(payload.array), self.channel.max_norm
        if most is not None and length > most * (1 + ROUNDING):
            return f"is of L2 norm {length:.3g}, longer than the {most:.3g} that is declared"
        return ""

    def _allowed(self, client: str, weight: float) -> bool:
        """Whether a weight is the planned one, the server's count, or one that the weighting can give."""
        if self.context.planned_weights is not None:
            return math.isclose(weight, self.context.planned_weights[client], rel_tol=1e-9)
        if self.channel.weighting == "uniform":
            return weight == 1.0
        if self.context.counts is not None:
            return weight == self.context.counts[client]
        most = math.inf if self.channel.max_weight is None else self.channel.max_weight
        return 1 <= weight <= most and weight == int(weight)


def _is_finite(value: int | float | str | None) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
