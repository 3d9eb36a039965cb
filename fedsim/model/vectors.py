"""Trained parameters as named arrays and as one vector.

>>> layout = Layout.of({"b": np.float32([[3, 4]]), "a": np.float32([1, 2])})
>>> layout.names, layout.size, layout.join({"b": np.float32([[7, 8]]), "a": np.float32([5, 6])}).tolist()
(('a', 'b'), 4, [5.0, 6.0, 7.0, 8.0])
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which arrays make a vector, in which order and shape. The order is that of their names, sorted."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Layout:
        names = tuple(sorted(arrays))
        return cls(names=names, shapes=tuple(arrays[name].shape for name in names))

    @property
    def size(self) -> int:
        """Entries of the vector, d."""
        return sum(map(math.prod, self.shapes))

    def join(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The arrays as one fp32 vector, (d,)."""
        return np.concatenate([np.asarray(arrays[name], dtype=np.float32).ravel() for name in self.names])

    def split(self, vector: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """A vector (d,) as arrays of its own type.

        Raises:
            ValueError: the vector has another length.
        """
        if vector.size != self.size:
            raise ValueError(f"vector has {vector.size} entries, the adapter has {self.size}")
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        pieces = zip(self.names, self.shapes, np.split(vector, ends), strict=True)
        return {name: piece.reshape(shape) for name, shape, piece in pieces}


def to_vector(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Arrays as one fp32 vector, (d,)."""
    return Layout.of(arrays).join(arrays)


def from_vector(vector: NDArray[Any], like: Mapping[str, NDArray[Any]]) -> Arrays:
    """The inverse of ``to_vector``, fp32, with names and shapes taken from ``like``."""
    return {name: piece.astype(np.float32) for name, piece in Layout.of(like).split(vector).items()}
