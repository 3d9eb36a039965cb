"""Secure aggregation: the server adds up integers of which it can read only the sum.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (2017), in the
form in which every client that advertised must also report. Each client encodes its contribution in
fixed point modulo 2^32 and adds one mask per peer; a pair's two masks are opposite, so they cancel in
the sum. Peers are all others, or some of them (Bell et al., "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead", 2020): the cost of a round then grows with the cohort and not with its square.
Parties are separate objects that exchange bytes:

1. client `advertise`: public key, bound to session, round, branch and attempt
2. server `collect`: the roster of everybody's keys, broadcast
3. client `seal`: checks the roster, masks, sends
4. server `total`: adds, checks, decodes

What is masked: [weight * update (d), weight, metrics, 1]. The last entry counts contributors and lets
the server notice masks that did not cancel.

>>> from privacy.stage import Nominal, Wire
>>> stage = SecureAggregationStage(SecureAggregationConfig())
>>> wire = Wire(kind="float", l2_bound=1.0)
>>> stage.channel(wire, Nominal(max_cohort=20, max_weight=1.0)).interactive
True
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from privacy.errors import CohortTooSmall, MalformedMessage, OverflowRiskError, PipelineError, RoundAborted
from privacy.fixed_point import FixedPoint
from privacy.masks import KEY_BYTES, digest, pair_stream, private_key, public_bytes
from privacy.roster import Roster, decode_advert, encode_advert
from privacy.stage import (
    Channel,
    ClientChannel,
    ClientContext,
    Contribution,
    Facts,
    Nominal,
    Payload,
    RoundContext,
    ServerChannel,
    Stage,
    Total,
    Wire,
)

COARSEST_MEAN = 1e-3
"""Largest error of a mean's coordinate that rounding may cause, as a fraction of the clip norm."""


class SecureAggregationConfig(BaseModel):
    """Masks updates so that the server learns only their sum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal["secure_aggregation"] = "secure_aggregation"
    threshold: float = Field(
        default=1.0,
        gt=0.5,
        le=1.0,
        description="share of the masked clients that must report; only 1.0 works yet",
    )
    min_cohort: int = Field(default=2, ge=2, description="fewest contributors of which a sum is formed")
    neighbours: int | None = Field(
        default=None,
        ge=2,
        multiple_of=2,
        description="clients with whom each shares masks; all when left out. A client whose neighbours all "
        "collude with the server is unmasked",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where things stand in the masked vector, and in which units."""

    update: FixedPoint
    weight: FixedPoint
    metrics: tuple[FixedPoint, ...]
    max_cohort: int

    @classmethod
    def plan(cls, incoming: Wire, nominal: Nominal) -> Layout:
        """Finest coders that cannot overflow; errors name what to lower."""
        bound, cohort, weight = incoming.l2_bound, nominal.max_cohort, nominal.max_weight
        if bound is None:
            raise PipelineError(
                "secure_aggregation cannot rule out overflow of updates that nothing bounds; put clip before"
            )
        if cohort is None or weight is None:
            raise PipelineError(
                f"secure_aggregation cannot rule out overflow with max_cohort={cohort}, max_weight={weight}; "
                "give both"
            )
        coarsest = 2 * COARSEST_MEAN * bound
        weights = FixedPoint.fit(bound=weight, max_terms=cohort, coarsest=1.0)
        largest = weights.largest_code * weights.step  # a rounded weight may lie above max_weight
        update = FixedPoint.fit(bound=largest * bound, max_terms=cohort, coarsest=coarsest)
        metrics = tuple(FixedPoint.fit(bound=m.bound, max_terms=cohort) for m in nominal.metrics)
        return cls(update=update, weight=weights, metrics=metrics, max_cohort=cohort)

    @property
    def tail(self) -> int:
        """Entries after the update: weight, metrics, count."""
        return len(self.metrics) + 2

    def encode(self, contribution: Contribution) -> NDArray[np.uint32]:
        """Contribution -> uint32 (d + tail,). The update is scaled by the weight as it will be read."""
        weight_code = self.weight.encode(np.array([contribution.weight]))
        weight = float(self.weight.decode(weight_code)[0])
        values = zip(self.metrics, contribution.metrics, strict=True)
        numbers = [coder.encode(np.array([value])) for coder, value in values]
        count = np.ones(1, dtype=np.uint32)
        return np.concatenate(
            [self.update.encode(contribution.update * weight), weight_code, *numbers, count]
        )

    def decode(self, total: NDArray[np.uint32], contributors: tuple[str, ...]) -> Total:
        """The sum of encoded contributions -> numbers; `RoundAborted` if masks did not cancel."""
        size = total.size - self.tail
        if int(total[-1]) != len(contributors):
            raise RoundAborted("masks did not cancel: somebody masked for another roster; repeat the round")
        metrics = total[size + 1 : -1]
        return Total(
            update=self.update.decode(total[:size]),
            weight=float(self.weight.decode(total[size : size + 1])[0]),
            metrics=tuple(float(coder.decode(metrics[i : i + 1])[0]) for i, coder in enumerate(self.metrics)),
            contributors=contributors,
            error=len(contributors) * self.update.step / 2,
        )


class SecureAggregationStage(Stage):
    """Takes a bounded float wire, gives integers modulo 2^32, reveals the sum."""

    def __init__(self, config: SecureAggregationConfig) -> None:
        if config.threshold < 1.0:
            raise PipelineError(
                f"threshold={config.threshold}: recovery from dropouts is not available, so every masked "
                "client must report; set threshold to 1.0"
            )
        self.config = config

    @property
    def facts(self) -> Facts:
        return Facts(
            name="secure_aggregation", place="channel", gives="modular", reveals="sum", needs_all=True
        )

    def wire(self, incoming: Wire, nominal: Nominal) -> Wire:
        Layout.plan(incoming, nominal)
        return Wire(kind="modular", l2_bound=incoming.l2_bound)

    def channel(self, incoming: Wire, nominal: Nominal) -> Channel:
        layout = Layout.plan(incoming, nominal)
        least = max(self.config.min_cohort, nominal.min_cohort)
        if layout.max_cohort < least:
            raise PipelineError(f"max_cohort={layout.max_cohort} is below min_cohort={least}")
        return MaskedChannel(
            layout=layout,
            min_cohort=least,
            dimension=nominal.dimension,
            neighbours=self.config.neighbours,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedChannel:
    """Makes the two ends."""

    layout: Layout
    min_cohort: int
    dimension: int | None = None
    neighbours: int | None = None

    @property
    def interactive(self) -> bool:
        return True

    def client(self, context: ClientContext) -> ClientChannel:
        secret = context.secret if context.secret is not None else os.urandom(KEY_BYTES)
        return SecAggClient(channel=self, context=context, secret=secret)

    def server(self, context: RoundContext) -> ServerChannel:
        if len(context.cohort) > self.layout.max_cohort:
            raise OverflowRiskError(
                f"cohort of {len(context.cohort)} exceeds max_cohort={self.layout.max_cohort}: overflow"
            )
        return SecAggServer(channel=self, context=context)


def place_of(context: ClientContext | RoundContext) -> bytes:
    """32 bytes that stand for session, round, branch and attempt."""
    return digest("place", context.session, context.round_id, context.branch, context.attempt)


@dataclass(frozen=True, kw_only=True)
class SecAggClient:
    """One client in one attempt. All its private state is ``secret``; it can be rebuilt between messages.

    *Guarantees.* Masks depend on the whole roster, so they never repeat across rounds, branches or
    attempts, not even if the caller repeats a secret; a client that was shown another roster
    contributes noise, and the server aborts. With ``neighbours`` the ring is drawn from all keys: clients
    that follow the protocol cannot choose their places, but the last to advertise could try keys until it
    likes its own.

    *Edge cases.* A roster from another round, without this client, with a foreign key in its place,
    with repeated names or keys, or too small: `MalformedMessage` or `CohortTooSmall`.
    """

    channel: MaskedChannel
    context: ClientContext
    secret: bytes = field(repr=False)

    def _key(self) -> X25519PrivateKey:
        return private_key(self.secret, info=digest("key", place_of(self.context), self.context.client))

    def advertise(self) -> bytes:
        """Client id and public key for this attempt."""
        return encode_advert(place_of(self.context), self.context.client, public_bytes(self._key()))

    def seal(self, contribution: Contribution, broadcast: bytes) -> Payload:
        """Mask a contribution for the roster in ``broadcast``. Call once per attempt."""
        key, me = self._key(), self.context.client
        roster = Roster.from_bytes(broadcast, place=place_of(self.context))
        roster.check_member(me, public_bytes(key))
        if not self.channel.min_cohort <= len(roster.keys) <= self.channel.layout.max_cohort:
            raise CohortTooSmall(
                f"roster of {len(roster.keys)} is outside min_cohort={self.channel.min_cohort} .. "
                f"max_cohort={self.channel.layout.max_cohort}"
            )
        masked = self.channel.layout.encode(contribution)
        for peer in roster.neighbours(me, self.channel.neighbours):
            low, high = sorted((me, peer))
            stream = pair_stream(
                key, roster.keys[peer], info=digest(roster.fingerprint, low, high), length=masked.size
            )
            (np.add if me == low else np.subtract)(masked, stream, out=masked)
        return Payload(array=masked, fields={"client": me, "roster": roster.fingerprint.hex()})


@dataclass(kw_only=True)
class SecAggServer:
    """The server in one attempt: first `collect`, then `total`, each once."""

    channel: MaskedChannel
    context: RoundContext
    _roster: Roster | None = None

    def collect(self, messages: Mapping[str, bytes]) -> bytes:
        """Adverts by client -> roster. Clients that did not advertise are simply not part of it."""
        if self._roster is not None:
            raise RoundAborted("a roster was already broadcast in this attempt; start another attempt")
        keys = {}
        for client in sorted(messages):
            if client not in self.context.cohort:
                raise MalformedMessage(f"client {client!r} is not in this round's cohort")
            keys[client] = decode_advert(messages[client], place=place_of(self.context), client=client)
        if len(keys) < self.channel.min_cohort:
            raise CohortTooSmall(
                f"{len(keys)} clients advertised, fewer than min_cohort={self.channel.min_cohort}"
            )
        self._roster = Roster.build(place_of(self.context), keys)
        return self._roster.to_bytes()

    def total(self, payloads: Mapping[str, Payload]) -> Total:
        """The sum over the whole roster, exactly, or `RoundAborted`."""
        if self._roster is None:
            raise RoundAborted("no roster in this attempt: call collect before aggregate")
        roster, size = self._roster, self._size(payloads)
        missing = sorted(roster.keys.keys() - payloads.keys())
        if missing:
            raise RoundAborted(f"masked clients {missing} did not report; repeat the round without them")
        total = np.zeros(size, dtype=np.uint32)
        for client in sorted(payloads):
            payload = payloads[client]
            expected = {"client": client, "roster": roster.fingerprint.hex()}
            if client not in roster.keys or dict(payload.fields) != expected:
                raise MalformedMessage(f"payload of {client!r} belongs to another client, round or attempt")
            if payload.array.dtype != np.uint32 or payload.array.shape != (size,):
                raise MalformedMessage(
                    f"payload of {client!r} holds {payload.array.dtype}{payload.array.shape}, "
                    f"expected uint32({size},)"
                )
            np.add(total, payload.array, out=total)
        return self.channel.layout.decode(total, tuple(sorted(payloads)))

    def _size(self, payloads: Mapping[str, Payload]) -> int:
        if self.channel.dimension is not None:
            return self.channel.dimension + self.channel.layout.tail
        sizes = [payloads[client].array.size for client in sorted(payloads)]
        return max(sizes, key=sizes.count, default=0)
