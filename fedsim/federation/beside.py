"""What an algorithm sends beside the adapter: records of vectors, and one vector together with the update.

>>> whole = joined(np.float32([1, 2]), {"control": np.float32([3, 4])}, ("control",))
>>> whole.tolist(), parted(whole, 2, ("control",))[1]["control"].tolist()
([1.0, 2.0, 3.0, 4.0], [3.0, 4.0])
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from fedsim.federation.strategies.protocol import Vectors


def put(content: RecordDict, name: str, vectors: Vectors) -> None:
    """Put vectors into a message, if there are any: ``grid.SHARED`` ones, or a client's ``grid.OWN``."""
    if vectors:
        content[name] = ArrayRecord({key: Array(np.asarray(value)) for key, value in vectors.items()})


def taken(content: RecordDict, name: str, names: Sequence[str], dimension: int) -> Vectors:
    """The vectors (d,) of a message; none if it has none.

    Raises:
        ValueError: they are not those of the algorithm, of another size, or not finite.
    """
    record = content.array_records.get(name)
    if record is None:
        return {}
    found = {key: array.numpy() for key, array in record.items()}
    for key, value in found.items():
        if key not in names or value.shape != (dimension,) or not np.isfinite(value).all():
            raise ValueError(f"{name}: {key!r} is no finite vector of {dimension} entries that was asked for")
    return {key: value.astype(np.float32) for key, value in found.items()}


def joined(update: NDArray[np.float32], extra: Vectors, names: Sequence[str]) -> NDArray[np.float32]:
    """The update and what travels beside it as one vector, (d + d a name,); zeros for what is missing."""
    return np.concatenate([update, *(extra.get(name, np.zeros_like(update)) for name in names)])


def parted(
    whole: NDArray[np.float32], dimension: int, names: Sequence[str]
) -> tuple[NDArray[np.float32], Vectors]:
    """The inverse of ``joined``: the update, and the vectors by name."""
    update, *extra = np.split(whole, range(dimension, whole.size, dimension)) if names else [whole]
    return update, dict(zip(names, extra, strict=True))
