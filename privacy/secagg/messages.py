"""Messages of secure aggregation as bytes.

A message is a tag, the 32 bytes of the place it belongs to (session, round, branch and attempt, or a roster),
and a list of fields. What is replayed, misdirected, cut off or not in canonical form is noticed before
anything is computed from it.

>>> message = encode(b"TEST", bytes(32), ["alice", 7, b"key"])
>>> decode(b"TEST", bytes(32), message)
['alice', 7, b'key']
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from privacy.errors import MalformedMessage

Field = str | int | bytes
PLACE_BYTES = 32
_TAG_BYTES = 4
_SIZE_BYTES = 4
_KINDS = {str: b"s", int: b"i", bytes: b"b"}


def pack(fields: Iterable[Field]) -> bytes:
    """Fields as bytes, each with its type and length in front: no two lists of fields look alike."""
    parts = []
    for item in fields:
        data = item if isinstance(item, bytes) else str(item).encode()
        parts.append(_KINDS[type(item)] + len(data).to_bytes(_SIZE_BYTES, "little") + data)
    return b"".join(parts)


def unpack(data: bytes) -> list[Field]:
    """The inverse of ``pack``; `MalformedMessage` for anything that ``pack`` does not write."""
    fields: list[Field] = []
    position = 0
    while position < len(data):
        start = position + 1 + _SIZE_BYTES
        end = start + int.from_bytes(data[position + 1 : start], "little")
        body = data[start:end]
        try:
            match data[position : position + 1]:
                case b"s":
                    fields.append(body.decode())
                case b"i":
                    fields.append(int(body))
                case b"b":
                    fields.append(body)
                case kind:
                    raise ValueError(f"unknown kind of field {kind!r}")
        except ValueError as error:
            raise MalformedMessage(f"a message cannot be read: {error}") from error
        position = end
    if pack(fields) != data:
        raise MalformedMessage("a message is cut off or not in canonical form")
    return fields


def digest(*fields: Field) -> bytes:
    """SHA-256 (32 bytes) of the packed fields."""
    return hashlib.sha256(pack(fields)).digest()


def encode(tag: bytes, place: bytes, fields: Iterable[Field]) -> bytes:
    """A message of four bytes of tag, 32 of place, and fields."""
    return tag + place + pack(fields)


def decode(tag: bytes, place: bytes, message: bytes) -> list[Field]:
    """The fields of a message of this kind and place, or `MalformedMessage`."""
    if message[:_TAG_BYTES] != tag:
        raise MalformedMessage(
            f"expected a {tag.decode()} message, got one that begins {message[:_TAG_BYTES]!r}"
        )
    if message[_TAG_BYTES : _TAG_BYTES + PLACE_BYTES] != place:
        raise MalformedMessage(
            f"{tag.decode()} message belongs to another session, round, attempt or roster, or to other terms"
        )
    return unpack(message[_TAG_BYTES + PLACE_BYTES :])


def rows(fields: Sequence[Field], *types: type) -> list[tuple[Field, ...]]:
    """Fields cut into rows of the given types, or `MalformedMessage`."""
    width = len(types)
    if len(fields) % width:
        raise MalformedMessage(f"{len(fields)} fields do not make whole rows of {width}")
    cut = [tuple(fields[start : start + width]) for start in range(0, len(fields), width)]
    if any(type(item) is not kind for row in cut for item, kind in zip(row, types, strict=True)):
        raise MalformedMessage(f"a message has fields that are not {[kind.__name__ for kind in types]}")
    return cut
