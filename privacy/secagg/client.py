"""One client of secure aggregation: it advertises, shares its secrets, masks, and helps to unmask.

>>> from privacy.secagg import SecureAggregationConfig, SecureAggregationStage
>>> from privacy.contexts import ClientContext, Nominal
>>> from privacy.stage import Wire
>>> stage = SecureAggregationStage(SecureAggregationConfig())
>>> channel = stage.channel(Wire(kind="float", l2_bound=1.0), Nominal(max_cohort=20, max_weight=1.0))
>>> alice = channel.client(ClientContext(client="alice", round_id=1, branch="main", attempt=0))
>>> alice.advertise()[:4]
b'SAA2'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privacy.contexts import ClientContext
from privacy.errors import CohortTooSmall, MalformedMessage, RoundAborted
from privacy.secagg.layout import Terms, place_of
from privacy.secagg.masks import agree, derive, private_key, public_bytes, seal, stream, unseal
from privacy.secagg.messages import decode, encode, pack, rows, unpack
from privacy.secagg.protocol import (
    ALIVE,
    ANSWER,
    DELIVERY,
    DROPPED,
    REQUEST,
    SHARE_BYTES,
    SHARES,
    checksum,
    holders_of,
    pair_info,
    seed_digest,
    share_digest,
    share_info,
)
from privacy.secagg.roster import Keys, Roster, encode_advert
from privacy.secagg.shamir import MERSENNE, Shamir
from privacy.transport import Contribution, Payload


@dataclass(kw_only=True)
class SecAggClient:
    """One client in one attempt; restored from its ``memory``, it goes on where it stopped.

    *Guarantees.* Masks and sealed shares depend on the whole roster, so they never repeat across rounds,
    branches or attempts, not even if the caller repeats a secret. A client goes by one roster and one
    delivery, masks one contribution and answers one request; whoever asks again for something else is
    refused, so nobody gets both kinds of share of one client from it, or two vectors under one mask. With
    ``neighbours`` the ring is drawn from all keys: clients that follow the protocol cannot choose their
    places, but the last to advertise could try keys until it likes its own.

    *Edge cases.* What belongs to another round or roster, lacks this client, has a foreign key in its place,
    names somebody twice or was damaged: `MalformedMessage`. Too few holders left: `CohortTooSmall`.
    """

    terms: Terms
    context: ClientContext
    secret: bytes = field(repr=False)
    _seen: dict[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def restored(cls, terms: Terms, context: ClientContext) -> SecAggClient:
        """The client that had the memory in ``context``."""
        secret, *seen = unpack(context.memory)
        pairs = [(cast(str, step), cast(bytes, message)) for step, message in rows(seen, str, bytes)]
        return cls(terms=terms, context=context, secret=cast(bytes, secret), _seen=dict(pairs))

    @property
    def memory(self) -> bytes:
        """All private state."""
        return pack([self.secret, *(part for pair in self._seen.items() for part in pair)])

    def advertise(self) -> bytes:
        """Client id and public keys for this attempt."""
        return encode_advert(place_of(self.context, self.terms), self.context.client, self._keys)

    def share(self, broadcast: bytes) -> bytes:
        """A share of each of this client's secrets for each of its holders, sealed for that one alone."""
        self._take("roster", broadcast)
        roster, me = self._roster, self.context.client
        shares = zip(
            self._shares("mask key", self._mask_key.private_bytes_raw()),
            self._shares("self seed", self._self_seed),
            strict=True,
        )
        fields: list[str | int | bytes] = [me, seed_digest(roster, me, self._self_seed)]
        for holder, (mask_key, self_seed) in zip(self._holders, shares, strict=True):
            sealed = seal(self._share_key(holder, me, holder), mask_key + self_seed)
            commitments = (
                share_digest(roster, DROPPED, me, holder, mask_key),
                share_digest(roster, ALIVE, me, holder, self_seed),
            )
            fields += [holder, sealed, *commitments]
        return encode(SHARES, roster.fingerprint, fields)

    def seal(self, contribution: Contribution, delivery: bytes) -> Payload:
        """Mask a contribution for the neighbours whose shares were delivered."""
        self._roster_of("roster")
        self._take("delivery", delivery)
        roster, me = self._roster, self.context.client
        delivered = self._delivered
        needed = self.terms.shares_needed(len(self._holders))
        if len(delivered) < needed:
            raise CohortTooSmall(
                f"{len(delivered)} holders of shares are left, fewer than the {needed} needed"
            )
        masked = self.terms.layout.encode(contribution)
        self._take("contribution", checksum(masked).encode())
        np.add(masked, stream(self._self_seed, length=masked.size), out=masked)
        for peer in delivered:
            if peer != me:
                add = np.add if me < peer else np.subtract
                key = agree(self._mask_key, roster.keys[peer].masks, info=pair_info(roster, me, peer))
                add(masked, stream(key, length=masked.size), out=masked)
        damaged = [owner for owner, (mask_key, _) in self._held.items() if not mask_key]
        fields: dict[str, int | float | str] = {
            "client": me,
            "roster": roster.fingerprint.hex(),
            "check": checksum(masked),
            "damaged": pack(damaged).hex(),
        }
        return Payload(array=masked, fields=fields)

    def unmask(self, request: bytes) -> bytes:
        """Shares of the seeds of those who reported, of the mask keys of those who dropped out."""
        roster = self._roster_of("contribution")
        fields = rows(decode(REQUEST, roster.fingerprint, request), str, str)
        fates = {cast(str, name): fate for name, fate in fields}
        if len(fates) != len(fields) or not set(fates.values()) <= {ALIVE, DROPPED}:
            raise MalformedMessage("a request names a client twice, or says neither alive nor dropped")
        if set(fates) != set(self._delivered) or fates[self.context.client] != ALIVE:
            raise MalformedMessage("a request is not about those whose shares are held here")
        alive = sum(fate == ALIVE for fate in fates.values())
        least = self.terms.shares_needed(len(self._holders))
        if len(self._holders) == len(roster.keys):
            least = max(least, self.terms.min_cohort)
        if alive < least:
            raise CohortTooSmall(f"{alive} of those that hide this client reported, fewer than {least}")
        self._take("request", request)
        answer: list[str | int | bytes] = [self.context.client]
        for name, (mask_key, self_seed) in self._held.items():
            answer += [name, self_seed if fates[name] == ALIVE else mask_key]
        return encode(ANSWER, roster.fingerprint, answer)

    # ------------------------------------------------------------------------------- inside

    def _take(self, step: str, message: bytes) -> None:
        """Go by a message, once; another one for the same step is refused."""
        before = self._seen.get(step)
        if before is not None and before != message:
            raise MalformedMessage(f"another {step} than before in this attempt")
        self._seen[step] = message
        if step == "roster":
            self._roster.check_member(self.context.client, self._keys)
            self.terms.check_size(len(self._roster.keys))

    def _roster_of(self, step: str) -> Roster:
        """The roster, if this client has come as far as ``step``."""
        if step not in self._seen:
            raise RoundAborted(f"no {step} in this attempt yet: a step was left out")
        return self._roster

    @cached_property
    def _roster(self) -> Roster:
        return Roster.from_bytes(self._seen["roster"], place=place_of(self.context, self.terms))

    @cached_property
    def _holders(self) -> tuple[str, ...]:
        return holders_of(self._roster, self.context.client, self.terms)

    @cached_property
    def _delivered(self) -> dict[str, tuple[bytes, bytes, bytes]]:
        """By owner, the sealed shares that came for this client.

        With them come the digests that the owner committed to.
        """
        fields = decode(DELIVERY, self._roster.fingerprint, self._seen["delivery"])
        found = cast(list[tuple[str, bytes, bytes, bytes]], rows(fields, str, bytes, bytes, bytes))
        owners = [owner for owner, *_ in found]
        if owners != sorted(set(owners)) or not {self.context.client} <= set(owners) <= set(self._holders):
            raise MalformedMessage("a delivery is not from the neighbours of its receiver, or lacks its own")
        return {owner: (sealed, of_key, of_seed) for owner, sealed, of_key, of_seed in found}

    @cached_property
    def _held(self) -> dict[str, tuple[bytes, bytes]]:
        """By owner, the shares of its mask key and of its self seed that this client holds.

        Empty if they are not those that the owner committed to.
        """
        roster, me = self._roster, self.context.client
        held = {}
        for owner, (sealed, *committed) in self._delivered.items():
            try:
                content = unseal(self._share_key(owner, owner, me), sealed)
            except MalformedMessage:
                content = b""
            shares = content[:SHARE_BYTES], content[SHARE_BYTES:]
            kinds = zip((DROPPED, ALIVE), shares, strict=True)
            good = [share_digest(roster, kind, owner, me, share) for kind, share in kinds] == committed
            held[owner] = shares if good else (b"", b"")
        return held

    def _share_key(self, peer: str, sender: str, holder: str) -> bytes:
        """The key under which ``sender`` seals shares for ``holder``; ``peer`` is the other of the two."""
        info = share_info(self._roster, sender, holder)
        return agree(self._own_share_key, self._roster.keys[peer].shares, info=info)

    def _shares(self, kind: str, value: bytes) -> Sequence[bytes]:
        """A secret's shares, in the order of holders."""
        points = self._roster.points()
        count = self.terms.shares_needed(len(self._holders)) - 1
        key = derive(self.secret, "coefficients", kind, self._roster.fingerprint, self.context.client)
        data = stream(key, length=count * 17).tobytes()
        wide = [int.from_bytes(data[68 * i : 68 * (i + 1)], "little") for i in range(count)]
        shares = Shamir().split(
            int.from_bytes(value, "little"),
            points=[points[holder] for holder in self._holders],
            coefficients=[number & MERSENNE for number in wide],
        )
        return [share.to_bytes(SHARE_BYTES, "little") for share in shares.values()]

    @cached_property
    def _keys(self) -> Keys:
        return Keys(masks=public_bytes(self._mask_key), shares=public_bytes(self._own_share_key))

    @cached_property
    def _mask_key(self) -> X25519PrivateKey:
        return private_key(self.secret, "mask key", place_of(self.context, self.terms), self.context.client)

    @cached_property
    def _own_share_key(self) -> X25519PrivateKey:
        return private_key(self.secret, "share key", place_of(self.context, self.terms), self.context.client)

    @cached_property
    def _self_seed(self) -> bytes:
        return derive(self.secret, "self seed", self._roster.fingerprint, self.context.client)
