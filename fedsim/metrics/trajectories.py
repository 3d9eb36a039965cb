"""Forgetting over time: one branch's series against those of its siblings of the same seed.

A series has one value per probed round, shape (R,). Values are *knowledge*: higher means knows more (flip
the sign of NLL before). ``rounds_R`` holds the round numbers, strictly increasing; a probe stands for the
rounds up to the next probe. Backward transfer: Lopez-Paz and Ranzato, 2017, arXiv:1706.08840. Forgetting
measure: Chaudhry et al., 2018, arXiv:1801.10112.

>>> unlearned_R, retrain_R = [0.9, 0.3, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]
>>> excess_R = excess(unlearned_R, retrain_R)
>>> time_to_reference([4, 5, 6, 7], excess_R, request_round=4, tolerance=0.05, hold_rounds=2)
6
>>> round(exposure([4, 5, 6, 7], excess_R, request_round=4, horizon_round=7), 3)
1.0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fedsim.metrics.arrays import FloatArray


def excess(unlearned_R: ArrayLike, retrain_R: ArrayLike) -> FloatArray:
    """E(t): knowledge beyond the retrained reference, in the metric's unit; below 0 is over-forgetting.

    Raises:
        ValueError: the shapes differ (so it is for every function here that takes two series).
    """
    unlearned, retrain = _aligned(unlearned=unlearned_R, retrain=retrain_R)
    return unlearned - retrain


def method_effect(leave_R: ArrayLike, unlearned_R: ArrayLike) -> FloatArray:
    """A(t): what the method erased beyond what the client's mere absence erodes; below 0 it did harm."""
    leave, unlearned = _aligned(leave=leave_R, unlearned=unlearned_R)
    return leave - unlearned


def gap_standard_error(keep_RI: ArrayLike, retrain_RI: ArrayLike) -> FloatArray:
    """Standard error of the mean difference over the last axis (paired items, or seeds), shape (R,).

    Pairs with a NaN are left out. Infinite with fewer than two pairs: nothing is known of the spread.
    """
    keep, retrain = _aligned(keep=keep_RI, retrain=retrain_RI)
    difference = keep - retrain
    enough = (~np.isnan(difference)).sum(axis=-1) >= 2
    padded = np.where(enough[..., None], difference, 0.0)
    return np.where(enough, stats.sem(padded, axis=-1, nan_policy="omit"), np.inf)


def forgetting_fraction(
    unlearned_R: ArrayLike, keep_R: ArrayLike, retrain_R: ArrayLike, *, gap_error_R: ArrayLike
) -> FloatArray:
    """F(t) = (keep - unlearned) / (keep - retrain): 0 as if ignored, 1 as if never there; never clipped.

    Above 1 is over-forgetting. NaN where |keep - retrain| does not exceed two standard errors
    (``gap_error_R``, from ``gap_standard_error``; it may be one number): there was no gap to close.
    """
    unlearned, keep, retrain = _aligned(unlearned=unlearned_R, keep=keep_R, retrain=retrain_R)
    gap = keep - retrain
    shown = np.abs(gap) > 2.0 * np.broadcast_to(np.asarray(gap_error_R, dtype=np.float64), gap.shape)
    fraction: FloatArray = np.divide(keep - unlearned, gap, out=np.full(gap.shape, np.nan), where=shown)
    return fraction


def time_to_reference(
    rounds_R: ArrayLike, excess_R: ArrayLike, *, request_round: int, tolerance: float, hold_rounds: int
) -> int | None:
    """First round from ``request_round`` on at which |E| <= ``tolerance`` begins to hold for ``hold_rounds``.

    All probes of the window [t, t + hold_rounds - 1] must be within tolerance, and the series must reach
    its end. None means censored: not seen within the series. NaN is never within tolerance.

    Raises:
        ValueError: tolerance < 0 or hold_rounds < 1.
    """
    if tolerance < 0.0 or hold_rounds < 1:
        raise ValueError(f"tolerance={tolerance} must be >= 0 and hold_rounds={hold_rounds} >= 1")
    rounds, series = _timeline(rounds_R, excess_R)
    close = np.abs(series) <= tolerance
    for start in rounds[rounds >= request_round]:
        end = start + hold_rounds - 1
        if rounds[-1] >= end and close[(rounds >= start) & (rounds <= end)].all():
            return int(start)
    return None


def exposure(rounds_R: ArrayLike, excess_R: ArrayLike, *, request_round: int, horizon_round: int) -> float:
    """Sum of max(E, 0) over the rounds from request to horizon, both included: metric units x rounds.

    Edge cases: NaN when an excess in the span is NaN.

    Raises:
        ValueError: there is no probe at the request, or the horizon lies before it.
    """
    rounds, series = _timeline(rounds_R, excess_R)
    first = _index_of(rounds, request_round)
    if horizon_round < request_round:
        raise ValueError(f"horizon_round={horizon_round} must not lie before request_round={request_round}")
    used = (rounds >= request_round) & (rounds <= horizon_round)
    spans = np.diff(np.append(rounds[used], horizon_round + 1))
    return float((np.maximum(series[first : first + spans.size], 0.0) * spans).sum())


def resurgence(rounds_R: ArrayLike, excess_R: ArrayLike, *, since_round: int) -> float:
    """Max over s > t of E(s) - E(t) with t = ``since_round``: how far the knowledge came back, metric units.

    Negative when it went on falling. NaN without a later probe, or when a value involved is NaN.

    Raises:
        ValueError: there is no probe at ``since_round``.
    """
    rounds, series = _timeline(rounds_R, excess_R)
    start = _index_of(rounds, since_round)
    later = series[start + 1 :]
    return float(later.max() - series[start]) if later.size else float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Collateral:
    """Utility lost by the clients that stay: unlearned minus retrain, below 0 is harm.

    ``mean`` over clients, ``worst`` the lowest one, ``worst_client`` its position.
    """

    mean: float
    worst: float
    worst_client: int


def collateral(unlearned_C: ArrayLike, retrain_C: ArrayLike) -> Collateral:
    """Per-client utility (C,) of the unlearned branch minus retrain; clients with a NaN are left out.

    Raises:
        ValueError: the shapes differ, or no client has both values.
    """
    unlearned, retrain = _aligned(unlearned=unlearned_C, retrain=retrain_C)
    difference = unlearned - retrain
    if np.isnan(difference).all():
        raise ValueError("no client has a utility on both branches; probe the remaining clients on both")
    worst = int(np.nanargmin(difference))
    return Collateral(mean=float(np.nanmean(difference)), worst=float(difference[worst]), worst_client=worst)


def backward_transfer(scores_TI: ArrayLike, *, learned_row_I: Sequence[int] | None = None) -> float:
    """BWT: mean over tasks of (last score - score when learned); below 0 is forgetting.

    ``scores_TI[t, i]`` is task i's score at time t; ``learned_row_I`` says when each task was learned (the
    diagonal if left out). Tasks learned in the last row are left out; NaN when none remains.
    """
    scores, learned = _tasks(scores_TI, learned_row_I)
    changes = [scores[-1, i] - scores[row, i] for i, row in enumerate(learned) if row < len(scores) - 1]
    return float(np.mean(changes)) if changes else float("nan")


def forgetting_measure(scores_TI: ArrayLike, *, learned_row_I: Sequence[int] | None = None) -> float:
    """FM: mean over tasks of (best earlier score since learned - last score); above 0 is forgetting.

    Arguments and edge cases as in ``backward_transfer``.
    """
    scores, learned = _tasks(scores_TI, learned_row_I)
    drops = [
        scores[row:-1, i].max() - scores[-1, i] for i, row in enumerate(learned) if row < len(scores) - 1
    ]
    return float(np.mean(drops)) if drops else float("nan")


def _aligned(**series: ArrayLike) -> tuple[FloatArray, ...]:
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in series.items()}
    shapes = {name: values.shape for name, values in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"series must have equal shapes, one value per probed round; got {shapes}")
    return tuple(arrays.values())


def _timeline(rounds_R: ArrayLike, series_R: ArrayLike) -> tuple[NDArray[np.int64], FloatArray]:
    rounds, series = np.asarray(rounds_R, dtype=np.int64), np.asarray(series_R, dtype=np.float64)
    if rounds.ndim != 1 or rounds.shape != series.shape or not rounds.size:
        raise ValueError(f"rounds have shape {rounds.shape}, values {series.shape}; one value per round")
    if (np.diff(rounds) <= 0).any():
        raise ValueError(f"rounds={rounds.tolist()} must be strictly increasing")
    return rounds, series


def _index_of(rounds: NDArray[np.int64], wanted: int) -> int:
    found = np.flatnonzero(rounds == wanted)
    if not found.size:
        raise ValueError(f"round {wanted} was not probed; the series has rounds {rounds.tolist()}")
    return int(found[0])


def _tasks(scores_TI: ArrayLike, learned: Sequence[int] | None) -> tuple[FloatArray, list[int]]:
    scores = np.asarray(scores_TI, dtype=np.float64)
    if scores.ndim != 2:
        raise ValueError(f"scores have shape {scores.shape}, expected (times, tasks)")
    rows = list(range(scores.shape[1])) if learned is None else list(learned)
    if len(rows) != scores.shape[1] or not all(0 <= row < len(scores) for row in rows):
        raise ValueError(
            f"learned_row_I={rows} must name one row of 0..{len(scores) - 1} for each of "
            f"{scores.shape[1]} tasks"
        )
    return scores, rows
