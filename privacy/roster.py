"""Messages of secure aggregation: adverts and rosters as bytes.

Every message starts with a tag and with the 32 bytes that stand for session, round, branch and
attempt, so a replayed or misdirected message is noticed before anything is computed from it.

>>> message = encode_advert(bytes(32), "alice", bytes(range(32)))
>>> decode_advert(message, place=bytes(32), client="alice") == bytes(range(32))
True
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from privacy.errors import MalformedMessage
from privacy.masks import KEY_BYTES, digest

ADVERT, ROSTER = b"SAA1", b"SAR1"
HEADER = 4 + KEY_BYTES


def encode_advert(place: bytes, client: str, public: bytes) -> bytes:
    """tag (4), place (32), public key (32), client id (UTF-8)."""
    return ADVERT + place + public + client.encode()


def decode_advert(message: bytes, *, place: bytes, client: str) -> bytes:
    """The public key in an advert of ``client``, or `MalformedMessage`."""
    if len(message) != HEADER + KEY_BYTES + len(client.encode()) or message[:4] != ADVERT:
        raise MalformedMessage(f"advert of client {client!r} has the wrong length, sender or tag")
    if message[4:HEADER] != place:
        raise MalformedMessage(f"advert of client {client!r} belongs to another session, round or attempt")
    if message[HEADER + KEY_BYTES :] != client.encode():
        raise MalformedMessage(f"advert filed under client {client!r} names another client")
    return message[HEADER : HEADER + KEY_BYTES]


@dataclass(frozen=True, kw_only=True, slots=True)
class Roster:
    """Who takes part in one attempt: public keys (32 bytes) by client id, in the order of ids.

    ``fingerprint`` is 32 bytes that depend on every entry; masks are derived from it.
    """

    place: bytes
    keys: Mapping[str, bytes]
    fingerprint: bytes

    @classmethod
    def build(cls, place: bytes, keys: Mapping[str, bytes]) -> Roster:
        """Check and order the entries; `MalformedMessage` if two clients have one key."""
        ordered = {client: keys[client] for client in sorted(keys)}
        if len(set(ordered.values())) != len(ordered):
            raise MalformedMessage("two clients have the same public key; one of them is not who it says")
        parts = [part for client, key in ordered.items() for part in (client, key)]
        return cls(place=place, keys=ordered, fingerprint=digest("roster", place, *parts))

    def to_bytes(self) -> bytes:
        """tag (4), place (32), then per client: id length (4, little-endian), id, key (32)."""
        entries = [
            len(client.encode()).to_bytes(4, "little") + client.encode() + key
            for client, key in self.keys.items()
        ]
        return ROSTER + self.place + b"".join(entries)

    @classmethod
    def from_bytes(cls, message: bytes, *, place: bytes) -> Roster:
        """Parse and check a roster; every flaw is a `MalformedMessage`."""
        if message[:4] != ROSTER or len(message) < HEADER:
            raise MalformedMessage("roster has the wrong tag or is too short")
        if message[4:HEADER] != place:
            raise MalformedMessage("roster belongs to another session, round or attempt")
        keys: dict[str, bytes] = {}
        position = HEADER
        while position < len(message):
            size = int.from_bytes(message[position : position + 4], "little")
            entry = message[position + 4 : position + 4 + size + KEY_BYTES]
            if len(entry) != size + KEY_BYTES:
                raise MalformedMessage("roster is cut off inside an entry")
            client = entry[:size].decode(errors="replace")
            if client in keys:
                raise MalformedMessage(f"roster names client {client!r} twice")
            keys[client] = entry[size:]
            position += 4 + size + KEY_BYTES
        roster = cls.build(place, keys)
        if roster.to_bytes() != message:
            raise MalformedMessage("roster is not in canonical order or form")
        return roster

    def check_member(self, client: str, public: bytes) -> None:
        """`MalformedMessage` unless ``client`` is listed with its own key."""
        if self.keys.get(client) != public:
            raise MalformedMessage(f"roster does not list client {client!r} with its own public key")

    def neighbours(self, client: str, count: int | None) -> tuple[str, ...]:
        """With whom a client shares masks: everybody, or ``count`` (even) others.

        Clients stand on a ring in an order drawn from the fingerprint, and each has the ``count / 2`` nearest
        on either side, so that neighbours agree on it and the graph is connected (Bell et al., 2020).
        """
        others = len(self.keys) - 1
        if count is None or count >= others:
            return tuple(name for name in self.keys if name != client)
        ring = sorted(self.keys, key=lambda name: digest("ring", self.fingerprint, name))
        place = ring.index(client)
        offsets = (offset for distance in range(1, count // 2 + 1) for offset in (-distance, distance))
        return tuple(ring[(place + offset) % len(ring)] for offset in offsets)
