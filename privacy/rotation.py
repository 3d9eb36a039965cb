"""The randomised Hadamard rotation: spreads a vector evenly over its coordinates, and back.

Random signs, then the Walsh-Hadamard transform divided by the root of the length, which must be a power of
two; shorter vectors are padded with zeros. Lengths of vectors stay as they are. Signs are public and drawn
from a key.

>>> import numpy as np
>>> spread = rotate(np.array([3.0, 0.0, 0.0]), sign_key=("demo",))
>>> np.abs(spread).tolist()
[1.5, 1.5, 1.5, 1.5]
>>> np.abs(rotate_back(spread, sign_key=("demo",), dimension=3)).tolist()
[3.0, 0.0, 0.0]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from privacy.secagg.messages import digest
from privacy.transport import Vector


def padded(dimension: int) -> int:
    """The next power of two."""
    return 1 << max(dimension - 1, 0).bit_length()


def rotate(vector: Vector, *, sign_key: Sequence[str | int]) -> Vector:
    """(d,) -> (padded(d),), of the same L2 norm."""
    wide: Vector = np.zeros(padded(vector.size))
    wide[: vector.size] = vector
    return _transform(wide * _signs(wide.size, sign_key))


def rotate_back(vector: Vector, *, sign_key: Sequence[str | int], dimension: int) -> Vector:
    """The inverse, cut to ``dimension``."""
    return np.multiply(_transform(vector), _signs(vector.size, sign_key))[:dimension]


def _signs(size: int, key: Sequence[str | int]) -> Vector:
    seed = int.from_bytes(digest("signs", *key), "little")
    bits = np.random.Generator(np.random.Philox(seed)).integers(0, 2, size)
    return np.where(bits, 1.0, -1.0)


def _transform(vector: Vector) -> Vector:
    """The normalised Walsh-Hadamard transform, its own inverse; n log n additions."""
    values = vector
    half = 1
    while half < values.size:
        pairs = values.reshape(-1, 2, half)
        sums, differences = pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]
        values = np.stack([sums, differences], axis=1).reshape(-1)
        half *= 2
    return np.multiply(values, 1 / math.sqrt(values.size))
