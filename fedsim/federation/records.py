"""Arrays as Flower carries them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedsim.model.vectors import Arrays


def to_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Arrays as a record; a result of arithmetic without dimensions, which NumPy makes a scalar, included."""
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Arrays of a record in fp32 (Flower's adaptive strategies return float64), sorted by name."""
    return {name: record[name].numpy().astype(np.float32) for name in sorted(record)}


@contextmanager
def untouched_global_random() -> Iterator[None]:
    """Flower's node sampling reads Python's global generator; leave it as it was found."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
