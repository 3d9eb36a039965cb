"""Who takes part in one attempt of secure aggregation, with which keys, and who is whose neighbour.

>>> keys = {name: Keys(masks=bytes([number]) * 32, shares=bytes([number + 9]) * 32)
...         for number, name in enumerate(["alice", "bob", "carol"])}
>>> roster = Roster.build(bytes(32), keys)
>>> roster.neighbours("bob", None)
('alice', 'carol')
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from privacy.errors import MalformedMessage
from privacy.secagg.masks import KEY_BYTES
from privacy.secagg.messages import decode, digest, encode, rows

ADVERT, ROSTER = b"SAA2", b"SAR2"


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """A client's public keys, 32 bytes each.

    One agrees on masks and may be given away if the client drops out, the other protects shares and stays.
    """

    masks: bytes
    shares: bytes


def encode_advert(place: bytes, client: str, keys: Keys) -> bytes:
    """A client's name and keys."""
    return encode(ADVERT, place, [client, keys.masks, keys.shares])


def decode_advert(message: bytes, *, place: bytes, client: str) -> Keys:
    """The keys in an advert of ``client``, or `MalformedMessage`."""
    found = rows(decode(ADVERT, place, message), str, bytes, bytes)
    if len(found) != 1 or found[0][0] != client:
        raise MalformedMessage(f"advert filed under client {client!r} names another client")
    return _keys(*found[0][1:])


def _keys(masks: object, shares: object) -> Keys:
    keys = Keys(masks=cast(bytes, masks), shares=cast(bytes, shares))
    if len(keys.masks) != KEY_BYTES or len(keys.shares) != KEY_BYTES:
        raise MalformedMessage(f"a public key has not {KEY_BYTES} bytes")
    return keys


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Roster:
    """Public keys by client id, in the order of ids. Parsed once, however many clients read it.

    ``fingerprint`` is 32 bytes that depend on every entry; masks and sealed shares are derived from it.
    """

    place: bytes
    keys: Mapping[str, Keys]
    fingerprint: bytes

    @classmethod
    def build(cls, place: bytes, keys: Mapping[str, Keys]) -> Roster:
        """Check and order the entries; `MalformedMessage` if a key appears twice."""
        ordered = {client: keys[client] for client in sorted(keys)}
        public = [key for pair in ordered.values() for key in (pair.masks, pair.shares)]
        if len(set(public)) != len(public):
            raise MalformedMessage("two clients have the same public key; one of them is not who it says")
        parts = [part for name, pair in ordered.items() for part in (name, pair.masks, pair.shares)]
        return cls(place=place, keys=ordered, fingerprint=digest("roster", place, *parts))

    def to_bytes(self) -> bytes:
        """Name and keys of each client."""
        parts = [part for name, pair in self.keys.items() for part in (name, pair.masks, pair.shares)]
        return encode(ROSTER, self.place, parts)

    @classmethod
    @lru_cache(maxsize=8)
    def from_bytes(cls, message: bytes, *, place: bytes) -> Roster:
        """Parse and check a roster; every flaw is a `MalformedMessage`."""
        entries = rows(decode(ROSTER, place, message), str, bytes, bytes)
        roster = cls.build(place, {cast(str, name): _keys(*keys) for name, *keys in entries})
        if roster.to_bytes() != message:
            raise MalformedMessage("roster names a client twice or is not in order")
        return roster

    def check_member(self, client: str, keys: Keys) -> None:
        """`MalformedMessage` unless ``client`` is listed with its own keys."""
        if self.keys.get(client) != keys:
            raise MalformedMessage(f"roster does not list client {client!r} with its own public keys")

    def points(self) -> dict[str, int]:
        """Where in a polynomial each client's shares lie."""
        return {client: place for place, client in enumerate(self.keys, start=1)}

    def neighbours(self, client: str, count: int | None) -> tuple[str, ...]:
        """With whom a client shares masks: everybody, or ``count`` (even) others.

        Clients stand on a ring in an order drawn from the fingerprint, and each has the ``count / 2`` nearest
        on either side, so that neighbours agree on it and the graph is connected (Bell et al., 2020).
        """
        if count is None or count >= len(self.keys) - 1:
            return tuple(name for name in self.keys if name != client)
        ring = _ring(self)
        place = ring.index(client)
        offsets = (offset for distance in range(1, count // 2 + 1) for offset in (-distance, distance))
        return tuple(ring[(place + offset) % len(ring)] for offset in offsets)


@lru_cache(maxsize=8)
def _ring(roster: Roster) -> list[str]:
    return sorted(roster.keys, key=lambda name: digest("ring", roster.fingerprint, name))
