"""The server of secure aggregation: it passes keys and shares on, adds up, and takes masks off the sum.

A client's fault is that client's: it is left out and named in ``rejected``. A fault that leaves too few for a
sum aborts the attempt; a secret that does not come out as its owner committed to ends the round, since it
shows only when others were told already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from privacy.contexts import RoundContext
from privacy.errors import CohortTooSmall, MalformedMessage, RoundAborted, SumUnusable, ViewError
from privacy.secagg.layout import Terms, place_of
from privacy.secagg.masks import KEY_BYTES, agree, private_key
from privacy.secagg.messages import decode, encode, rows, unpack
from privacy.secagg.protocol import (
    ALIVE,
    ANSWER,
    DELIVERY,
    DROPPED,
    REQUEST,
    SHARES,
    checksum,
    holders_of,
    share_digest,
)
from privacy.secagg.roster import Keys, Roster, decode_advert
from privacy.secagg.unmasking import Unmasking, WrongSecret
from privacy.transport import Contribution, Payload, Total


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shared:
    """What a client's message of shares says.

    It has a digest of its seed, and by holder the sealed shares with the digests of its shares of the mask
    key and of the seed.
    """

    seed: bytes
    sealed: Mapping[str, bytes]
    digests: Mapping[tuple[str, str], bytes]


@dataclass(kw_only=True)
class SecAggServer:
    """The server in one attempt: `collect`, `deliver`, `receive`, `total`, each once and in this order.

    *Guarantees.* The total is the sum of the encoded contributions of ``contributors`` exactly, or
    `RoundAborted` is raised. It asks for the seed of who reported and for the mask key of who did not.
    """

    terms: Terms
    context: RoundContext
    rejected: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, float] = field(default_factory=dict)
    _roster: Roster | None = None
    _shared: dict[str, _Shared] | None = None
    _sum: NDArray[np.uint32] | None = None
    _reported: tuple[str, ...] = ()
    _damaged: Mapping[str, frozenset[str]] = field(default_factory=dict)

    # ------------------------------------------------------------------------- the four steps

    def collect(self, messages: Mapping[str, bytes]) -> bytes:
        """Adverts by client -> roster."""
        if self._roster is not None:
            raise RoundAborted("a roster was already broadcast in this attempt; start another attempt")
        place = place_of(self.context, self.terms)
        keys: dict[str, Keys] = {}
        for client in self._of_cohort(messages, self.context.cohort):
            with _blamed_on(self.rejected, client):
                keys[client] = _usable(decode_advert(messages[client], place=place, client=client))
        uses = Counter(key for pair in keys.values() for key in (pair.masks, pair.shares))
        for client, pair in list(keys.items()):
            if uses[pair.masks] + uses[pair.shares] > 2:
                self.rejected[client] = "has the same public key as another client"
                del keys[client]
        self._enough(len(keys), "advertised")
        self._roster = Roster.build(place, keys)
        return self._roster.to_bytes()

    def deliver(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        """Messages of shares by client -> what each of the clients that are still in gets.

        A client too few of whose holders shared is left out, since nobody could take its mask off.
        """
        if self._roster is None or self._shared is not None:
            raise RoundAborted("shares come once, after the roster: a step was left out or repeated")
        roster = self._roster
        shared: dict[str, _Shared] = {}
        for client in self._of_cohort(messages, roster.keys):
            with _blamed_on(self.rejected, client):
                shared[client] = self._read_shares(client, messages[client])
        self._enough(len(shared), "shared their secrets")
        while alone := [name for name in shared if not self._recoverable(name, shared)]:
            for client in alone:
                self.rejected[client] = "too few of its neighbours shared their secrets"
                del shared[client]
        self._enough(len(shared), "have enough neighbours that shared theirs")
        self._shared = shared
        return {
            client: encode(
                DELIVERY,
                roster.fingerprint,
                [part for name in self._held_by(client) for part in self._for_holder(name, client)],
            )
            for client in shared
        }

    def receive(self, payloads: Mapping[str, Payload]) -> dict[str, bytes]:
        """Payloads by client -> the request to each client that reported."""
        if self._shared is None or self._sum is not None:
            raise RoundAborted("payloads come once, after the shares: a step was left out or repeated")
        roster, shared, size = self._known, self._shared, self._size(payloads)
        total = np.zeros(size, dtype=np.uint32)
        damaged: dict[str, frozenset[str]] = {}
        for client in self._of_cohort(payloads, shared):
            with _blamed_on(self.rejected, client):
                array, damaged[client] = self._read_payload(client, payloads[client], size)
                np.add(total, array, out=total)
        reported = tuple(damaged)
        self._enough(len(reported), "reported")
        self._sum, self._reported, self._damaged = total, reported, damaged
        for owner in self._to_unmask():
            if not self._recoverable(owner, set(self._holders(owner)) - self._complaining(owner)):
                self.rejected[owner] = "dealt shares that are not those it committed to"
        lost = [
            owner
            for owner in self._to_unmask()
            if not self._recoverable(owner, set(reported) - self._complaining(owner))
        ]
        if lost:
            raise RoundAborted(
                f"{len(shared) - len(reported)} of {len(shared)} masked clients did not report, and fewer "
                f"than threshold={self.terms.threshold} of those who could unmask {len(lost)} are left with "
                "usable shares"
            )
        return {
            client: encode(
                REQUEST,
                roster.fingerprint,
                [part for name in self._held_by(client) for part in (name, self._fate(name))],
            )
            for client in reported
        }

    def total(self, answers: Mapping[str, bytes]) -> Total:
        """Answers by client -> the sum over all that reported, exactly.

        `RoundAborted` otherwise; `SumUnusable` once a share was told, since whoever knows others may be
        able to read the sum.
        """
        if self._sum is None:
            raise RoundAborted("no payloads in this attempt: call receive before aggregate")
        found: dict[str, dict[str, bytes]] = {name: {} for name in self._to_unmask()}
        for client in self._of_cohort(answers, self._reported):
            with _blamed_on(self.rejected, client):
                for owner, share in self._read_answer(client, answers[client]).items():
                    if owner in found:
                        found[owner][client] = share
        committed = {name: said.seed for name, said in (self._shared or {}).items()}
        unmasking = Unmasking(
            terms=self.terms, roster=self._known, committed=committed, reported=self._reported
        )
        try:
            return self.terms.layout.decode(unmasking.unmasked(self._sum, found), self._reported)
        except RoundAborted as error:
            if isinstance(error, WrongSecret):
                self.rejected[error.owner] = str(error)
            if answers:
                raise SumUnusable(str(error), self._reported) from error
            raise

    def individuals(self) -> Mapping[str, Contribution]:
        """`ViewError`: masks come off the sum alone."""
        raise ViewError("under secure_aggregation the server learns the sum of the updates and none of them")

    # ---------------------------------------------------------------------------- who holds what

    @property
    def _known(self) -> Roster:
        assert self._roster is not None, "steps are checked by the callers"
        return self._roster

    def _holders(self, client: str) -> tuple[str, ...]:
        return holders_of(self._known, client, self.terms)

    def _complaining(self, owner: str) -> set[str]:
        """Those that reported and cannot use their share of a client's secrets."""
        return {holder for holder, owners in self._damaged.items() if owner in owners}

    def _for_holder(self, owner: str, holder: str) -> tuple[str, bytes, bytes, bytes]:
        """What a client hears of another's shares: sealed for it, with the digests of both."""
        assert self._shared is not None
        said = self._shared[owner]
        digests = said.digests[holder, DROPPED], said.digests[holder, ALIVE]
        return owner, said.sealed[holder], *digests

    def _held_by(self, client: str) -> list[str]:
        """The clients that are in and of whom ``client`` holds shares."""
        assert self._shared is not None
        return [name for name in self._holders(client) if name in self._shared]

    def _recoverable(self, client: str, left: Collection[str]) -> bool:
        """Whether enough of a client's holders are among those who are left."""
        holders = self._holders(client)
        here = sum(name in left for name in holders)
        return here >= self.terms.shares_needed(len(holders))

    def _fate(self, client: str) -> str:
        return ALIVE if client in self._reported else DROPPED

    def _to_unmask(self) -> list[str]:
        """Whose secrets are needed.

        Those of all that reported, and of those who dropped out and share a mask with one.
        """
        assert self._shared is not None
        reported = set(self._reported)
        return [name for name in self._shared if name in reported or reported & set(self._holders(name))]

    # ------------------------------------------------------------------------------- messages

    def _of_cohort(self, messages: Mapping[str, object], expected: Collection[str]) -> Iterator[str]:
        """The senders in order; who has no business here is rejected."""
        for client in sorted(messages):
            if client in expected:
                yield client
            elif client not in self.rejected:
                self.rejected[client] = "sent a message out of turn, or is not in this round's cohort"

    def _enough(self, clients: int, did: str) -> None:
        if clients < self.terms.min_cohort:
            raise CohortTooSmall(
                f"{clients} clients {did}, fewer than min_cohort={self.terms.min_cohort}"
                + (f"; rejected: {self.rejected}" if self.rejected else "")
            )

    def _read_shares(self, client: str, message: bytes) -> _Shared:
        fields = decode(SHARES, self._known.fingerprint, message)
        ((sender, seed),) = rows(fields[:2], str, bytes) or [("", b"")]
        found = rows(fields[2:], str, bytes, bytes, bytes)
        if sender != client or tuple(row[0] for row in found) != self._holders(client):
            raise MalformedMessage("its shares are another client's, or not for its own neighbours")
        sealed, digests = {}, {}
        for name, content, of_key, of_seed in cast(list[tuple[str, bytes, bytes, bytes]], found):
            sealed[name] = content
            digests[name, DROPPED], digests[name, ALIVE] = of_key, of_seed
        return _Shared(seed=cast(bytes, seed), sealed=sealed, digests=digests)

    def _read_payload(
        self, client: str, payload: Payload, size: int
    ) -> tuple[NDArray[np.uint32], frozenset[str]]:
        """The masked vector, and whose shares the client cannot use."""
        fields, array = dict(payload.fields), payload.array
        if fields.get("client") != client or fields.get("roster") != self._known.fingerprint.hex():
            raise MalformedMessage("its payload belongs to another client, round or attempt")
        if array.dtype != np.uint32 or array.shape != (size,):
            raise MalformedMessage(f"its payload holds {array.dtype}{array.shape}, expected uint32({size},)")
        if fields.get("check") != checksum(array):
            raise MalformedMessage("its payload was damaged on the way")
        try:
            damaged = cast(list[str], unpack(bytes.fromhex(str(fields.get("damaged")))))
        except ValueError as error:
            raise MalformedMessage(f"its payload does not say whose shares it can use: {error}") from error
        if not set(damaged) <= set(self._held_by(client)) - {client}:
            raise MalformedMessage("its payload complains of shares that it does not hold")
        return cast(NDArray[np.uint32], array), frozenset(damaged)

    def _read_answer(self, client: str, message: bytes) -> dict[str, bytes]:
        """Shares by owner, without those that their owner did not commit to.

        Such a share is the holder's fault unless it has said so before.
        """
        roster, shared = self._known, self._shared
        assert shared is not None
        sender, *fields = decode(ANSWER, roster.fingerprint, message) or [""]
        found = cast(list[tuple[str, bytes]], rows(fields, str, bytes))
        if sender != client or [name for name, _ in found] != self._held_by(client):
            raise MalformedMessage("its answer is another client's, or not about those it was asked about")
        good = {}
        for owner, share in found:
            kind = self._fate(owner)
            if shared[owner].digests[client, kind] == share_digest(roster, kind, owner, client, share):
                good[owner] = share
            elif owner not in self._damaged[client]:
                self.rejected.setdefault(client, f"tells another share than client {owner!r} dealt")
        return good

    def _size(self, payloads: Mapping[str, Payload]) -> int:
        if self.terms.dimension is not None:
            return self.terms.dimension + self.terms.layout.tail
        sizes = [payloads[client].array.size for client in sorted(payloads)]
        return max(sizes, key=sizes.count, default=self.terms.layout.tail)


def _usable(keys: Keys) -> Keys:
    """The keys, if others can agree on something with them."""
    probe = private_key(bytes(KEY_BYTES), "probe")
    for public in (keys.masks, keys.shares):
        agree(probe, public, info=b"probe")
    return keys


@contextmanager
def _blamed_on(rejected: dict[str, str], client: str) -> Iterator[None]:
    """What is malformed inside is the fault of one client, which is left out."""
    try:
        yield
    except MalformedMessage as error:
        rejected[client] = str(error)
