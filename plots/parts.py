"""The small frozen things a run consists of: series, branches, requests, events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
NAN = float("nan")


@dataclass(frozen=True)
class Series:
    """Values by round, ascending; ``low`` and ``high`` are the extremes over seeds."""

    rounds: Floats
    values: Floats
    low: Floats
    high: Floats

    def __bool__(self) -> bool:
        return bool(np.isfinite(self.values).any())

    @property
    def last(self) -> float:
        """The last value that was measured."""
        known = self.values[np.isfinite(self.values)]
        return float(known[-1]) if known.size else NAN


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A branch of the life, as the report names it."""

    name: str
    method: str
    title: str
    kind: str
    unlearning: tuple[tuple[int, int, int], ...] = ()
    """(request, first round, last round)"""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to be forgotten."""

    request: int
    round: int
    client: int | None
    who: str
    scope: str
    records: int
    text: str

    @property
    def subject(self) -> str:
        return f"forget:{self.request}"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened after a round."""

    round: int
    kind: str
    clients: tuple[int, ...]
    client: int | None
    who: str
    text: str

    @property
    def label(self) -> str:
        """Two or three words: ``join 20–23``, ``forget 3``."""
        return f"{self.kind} {self.who}".strip()


def span(numbers: Sequence[int]) -> str:
    """``20–23``, ``3``, or ``5 clients`` where they are not consecutive."""
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    if len(numbers) == 1:
        return str(low)
    return f"{low}–{high}" if high - low + 1 == len(set(numbers)) else f"{len(numbers)} clients"


def one_series(points: Mapping[int, float]) -> Series:
    """Round -> value, as a series of one seed."""
    rounds = np.array(sorted(points), dtype=np.float64)
    values = np.array([points[r] for r in sorted(points)], dtype=np.float64)
    return Series(rounds, values, values, values)


def mean_series(seeds: Sequence[Series]) -> Series:
    """Mean and extremes over seeds at every round any of them was measured; NaN is left out."""
    rounds = sorted({float(r) for one in seeds for r in one.rounds})
    grid = np.full((len(seeds), len(rounds)), NAN)
    for i, one in enumerate(seeds):
        grid[i, np.searchsorted(rounds, one.rounds)] = one.values

    def over(reduce: Callable[[Floats], Any]) -> Floats:
        known = [column[np.isfinite(column)] for column in grid.T]
        return np.array([reduce(column) if column.size else NAN for column in known], dtype=np.float64)

    return Series(np.array(rounds, dtype=np.float64), over(np.mean), over(np.min), over(np.max))
