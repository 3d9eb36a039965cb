"""Codecs: vectors that compression made, packed into bytes and back, bit for bit.

A codec loses nothing; what is lost was lost before, where the client could still see it (see
`privacy.compression`). A packed vector starts with its length (4 bytes); whole bytes, little endian
throughout, spare bits zero. Suffixes: D coordinates, K of them that are not zero.

========== ====================================================================
`SignCodec`   1 bit a coordinate says where, 1 bit a value its sign; one size
`ValueCodec`  1 bit a coordinate says where, 16 or 32 bits a value
`GridCodec`   1 to 8 bits a coordinate: a multiple of one step
========== ====================================================================

>>> import numpy as np
>>> codec = SignCodec(density=0.5)
>>> packed = pack(codec, np.float32([0.0, -0.5, 0.5, 0.0]))
>>> packed.nbytes, codec.decode(packed).tolist()
(10, [0.0, -0.5, 0.5, 0.0])
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from privacy.errors import ClientUpdateError
from privacy.transport import Codec, Packed, Update

Values = Literal["float16", "float32"]


def pack(codec: Codec, vector_D: Update) -> Packed:
    """The packed vector, checked.

    *Guarantees.* ``codec.decode`` of it gives every bit of ``vector_D``, or `ClientUpdateError` is raised: a
    vector that did not come from the codec's own compression is never sent as another.
    """
    packed = codec.encode(vector_D)
    if codec.decode(packed).tobytes() != vector_D.tobytes():
        raise ClientUpdateError(
            "the update is not as compression left it, so it cannot be packed; put no stage that changes "
            "updates at the client behind compression"
        )
    return packed


def kept(size: int, density: float) -> int:
    """Coordinates that are sent of ``size``: the share ``density``, rounded down, at least one."""
    return max(1, math.floor(density * size))


def levels(bits: int) -> int:
    """Largest multiple of the step in ``bits`` bits: zero and as many above as below it, +-1 in one bit."""
    return max(1, (1 << bits - 1) - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class SignCodec:
    """Vectors of which at most `kept` coordinates are plus or minus one size, the others +0.0."""

    density: float
    data_dependent: bool = field(default=True, init=False)

    def encode(self, vector_D: Update) -> Packed:
        values_K = vector_D[vector_D != 0]
        size = np.abs(values_K[:1]) if values_K.size else np.zeros(1)
        return _joined(vector_D.size, _bits(vector_D != 0), size.astype("<f4"), _bits(values_K < 0))

    def decode(self, packed: NDArray[Any]) -> Update:
        reader = _Reader(packed)
        sent_D = _positions(reader, self.density)
        size = reader.number("<f4")
        if not 0 <= size < math.inf or (size > 0) != bool(sent_D.any()):
            raise _fault(f"size={size} of {int(sent_D.sum())} values")
        negative_K = reader.flags(int(sent_D.sum()))
        reader.end()
        return _scattered(sent_D, np.where(negative_K, -size, size))


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueCodec:
    """Vectors of which at most `kept` coordinates are not +0.0, each a number of the given precision."""

    density: float
    values: Values
    data_dependent: bool = field(default=True, init=False)

    def encode(self, vector_D: Update) -> Packed:
        sent_D = vector_D != 0
        with np.errstate(over="ignore"):
            values_K = vector_D[sent_D].astype(self._kind)
        return _joined(vector_D.size, _bits(sent_D), values_K)

    def decode(self, packed: NDArray[Any]) -> Update:
        reader = _Reader(packed)
        sent_D = _positions(reader, self.density)
        values_K = reader.array(self._kind, int(sent_D.sum()))
        reader.end()
        if not np.isfinite(values_K).all() or not values_K.all():
            raise _fault("a value that is zero, infinite or NaN")
        return _scattered(sent_D, values_K)

    @property
    def _kind(self) -> str:
        return "<f2" if self.values == "float16" else "<f4"


@dataclass(frozen=True, kw_only=True, slots=True)
class GridCodec:
    """Vectors of whole multiples of ``step``, at most `levels` of them; with None, a step is sent along."""

    bits: int
    step: float | None

    @property
    def data_dependent(self) -> bool:
        return self.step is None

    def encode(self, vector_D: Update) -> Packed:
        most = levels(self.bits)
        step = _step_of(vector_D, most) if self.step is None else self.step
        multiples_D = np.rint(vector_D.astype(np.float64) / step) if step else np.zeros(vector_D.size)
        codes_D = np.clip(multiples_D, -most, most) + most
        if self.bits == 1:
            codes_D = codes_D > 0
        head = np.array([] if self.step is not None else [step], dtype="<f4")
        return _joined(vector_D.size, head, _narrow(codes_D.astype(np.uint8), self.bits))

    def decode(self, packed: NDArray[Any]) -> Update:
        reader = _Reader(packed)
        size = reader.size()
        step = reader.number("<f4") if self.step is None else self.step
        codes_D = reader.codes(size, self.bits)
        reader.end()
        most = levels(self.bits)
        if codes_D.max() > max(2 * most, 1) or not 0 <= step < math.inf:
            raise _fault(f"a code above {2 * most}, or step={step}")
        multiples_D = codes_D.astype(np.float64) * 2 - 1 if self.bits == 1 else codes_D - float(most)
        with np.errstate(over="ignore"):
            vector_D = (multiples_D * step + 0.0).astype(np.float32)
        if not np.isfinite(vector_D).all():
            raise _fault(f"step={step}, which is out of range")
        return vector_D


def _step_of(vector_D: Update, most: int) -> float:
    """A step of which every coordinate is a whole multiple, at most ``most`` of them; 0 of a zero vector."""
    exact_D = vector_D.astype(np.float64)
    largest = float(np.abs(exact_D).max(initial=0.0))
    if largest == 0:
        return 0.0
    for multiple in range(most, 0, -1):
        step = float(np.float32(largest / multiple))
        multiples_D = np.rint(exact_D / step) if step else np.zeros_like(exact_D)
        if np.abs(multiples_D).max() <= most and np.array_equal(multiples_D * step, exact_D):
            return step
    raise ClientUpdateError("the update lies on no grid, so it cannot be packed as one")


def _positions(reader: _Reader, density: float) -> NDArray[np.bool_]:
    """Which coordinates are sent, after the length."""
    size = reader.size()
    sent_D = reader.flags(size)
    if sent_D.sum() > kept(size, density):
        raise _fault(f"{int(sent_D.sum())} values of {size} coordinates, more than density={density} allows")
    return sent_D


def _scattered(sent_D: NDArray[np.bool_], values_K: NDArray[Any]) -> Update:
    vector_D = np.zeros(sent_D.size, dtype=np.float32)
    vector_D[sent_D] = values_K
    return vector_D


def _bits(flags: NDArray[np.bool_]) -> Packed:
    return np.packbits(flags, bitorder="little")


def _narrow(codes_D: NDArray[np.uint8], bits: int) -> Packed:
    """Numbers below 2^bits, one after the other without gaps."""
    spread = np.unpackbits(codes_D[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(spread, bitorder="little")


def _joined(size: int, *parts: NDArray[Any]) -> Packed:
    head = np.array([size], dtype="<u4")
    return np.frombuffer(b"".join(part.tobytes() for part in (head, *parts)), dtype=np.uint8)


def _fault(what: str) -> ClientUpdateError:
    return ClientUpdateError(f"its packed update holds {what}")


class _Reader:
    """Reads a packed vector front to back; whatever does not fit is a `ClientUpdateError`."""

    def __init__(self, packed: NDArray[Any]) -> None:
        if packed.dtype != np.uint8 or packed.ndim != 1:
            raise _fault(f"{packed.dtype}{packed.shape}, expected bytes")
        self._data, self._at = packed.tobytes(), 0

    def size(self) -> int:
        """The length of the vector. Its bits come behind it, so none is longer than 8 times the bytes."""
        size = int(self.array("<u4", 1)[0])
        if not 0 < size <= 8 * len(self._data):
            raise _fault(f"length {size} in {len(self._data)} bytes")
        return size

    def array(self, kind: str, count: int) -> NDArray[Any]:
        length = np.dtype(kind).itemsize * count
        if self._at + length > len(self._data):
            raise _fault(f"{len(self._data)} bytes, too few")
        found = np.frombuffer(self._data, dtype=kind, count=count, offset=self._at)
        self._at += length
        return found

    def number(self, kind: str) -> float:
        return float(self.array(kind, 1)[0])

    def flags(self, count: int) -> NDArray[np.bool_]:
        bits = np.unpackbits(self.array("u1", -(-count // 8)), bitorder="little")
        if bits[count:].any():
            raise _fault("bits behind its end")
        return cast(NDArray[np.bool_], bits[:count].astype(np.bool_))

    def codes(self, count: int, bits: int) -> NDArray[np.uint8]:
        return np.packbits(self.flags(count * bits).reshape(count, bits), axis=1, bitorder="little")[:, 0]

    def end(self) -> None:
        if self._at != len(self._data):
            raise _fault(f"{len(self._data)} bytes, expected {self._at}")
