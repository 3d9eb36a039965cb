"""What a branch's measurements say against the retrained model, from both sides.

A method may leave knowledge behind, and it may push it below what a model that never saw the data has: both
tell that somebody asked. Every metric that can tell anything is compared, record by record, on a scale that
shows either side, against a margin that is fixed beforehand; a noisier reference makes intervals wider, never
margins. Intervals are over records and say nothing of the chance in training: for that there are seeds.
Equality is claimed only where every interval lies within its margin (two one-sided tests: Schuirmann, 1987).
Legend: I forgotten records, J records nobody trained on.

>>> found = paired("nll", [1.0, 1.1, 0.9], [3.0, 3.1, 3.2], margin=0.2, known_is_lower=True)
>>> round(found.difference, 2), found.direction
(2.1, 'more')
>>> judge([found]).kind
'above'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from fedsim.metrics.arrays import FloatArray

Direction = Literal["more", "less", "same", "open"]
Kind = Literal["above", "below", "mixed", "same", "open", "unknown"]
"""Knows more, knows less, both by different metrics; equal within margins; not told apart; not measured."""

NLL_MARGIN = 0.2
"""Nats per token that pass for nothing."""
MEMBERSHIP_MARGIN = 0.1
"""Difference of AUC that passes for nothing."""
CONFIDENCE = 0.95
FEW = 20
"""Records below which a p-value of the Kolmogorov-Smirnov test is not shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A branch minus the retrained model on one metric; positive means that the branch knows more.

    ``low`` and ``high`` are the ends of its interval, infinite with a single record; ``n`` counts records.
    """

    metric: str
    difference: float
    low: float
    high: float
    margin: float
    n: int

    @property
    def direction(self) -> Direction:
        """Which side of the margin the whole interval lies on."""
        if self.low > self.margin:
            return "more"
        if self.high < -self.margin:
            return "less"
        return "same" if -self.margin <= self.low and self.high <= self.margin else "open"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What the comparisons say together: the sides that were shown, and by which metrics."""

    kind: Kind
    more: tuple[Comparison, ...]
    less: tuple[Comparison, ...]


def paired(
    metric: str, mine_I: ArrayLike, reference_I: ArrayLike, *, margin: float, known_is_lower: bool = False
) -> Comparison | None:
    """Mean difference over records with its t interval; None where no record has both values.

    ``known_is_lower`` is True for NLL, whose sign is turned. Edge cases: from two records on,
    differences that are all equal give an interval of that one point.

    Raises:
        ValueError: the two sides are not of the same records.
    """
    mine, reference = np.asarray(mine_I, dtype=np.float64), np.asarray(reference_I, dtype=np.float64)
    if mine.shape != reference.shape:
        raise ValueError(
            f"{metric}: {mine.shape} values against {reference.shape}; the same records are needed"
        )
    change = (reference - mine) if known_is_lower else (mine - reference)
    change = change[np.isfinite(change)]
    if not change.size:
        return None
    low, high = _interval(float(change.mean()), _squared_error(change), change.size - 1)
    return Comparison(
        metric=metric, difference=float(change.mean()), low=low, high=high, margin=margin, n=change.size
    )


def membership(
    mine_I: ArrayLike, reference_I: ArrayLike, mine_J: ArrayLike, reference_J: ArrayLike, *, margin: float
) -> Comparison | None:
    """Difference of the loss attack's AUC between two models, forgotten records (I) against others (J).

    Values are NLLs. The interval is that of DeLong et al., 1988, for two AUCs on the same records. None where
    a side has no records.

    Raises:
        ValueError: the two models were not asked about the same records.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (mine_I, reference_I, mine_J, reference_J)]
    if sides[0].shape != sides[1].shape or sides[2].shape != sides[3].shape:
        raise ValueError("membership: both models must be asked about the same records")
    members = np.isfinite(sides[0]) & np.isfinite(sides[1])
    others = np.isfinite(sides[2]) & np.isfinite(sides[3])
    if not members.any() or not others.any():
        return None
    wins = [_wins(member[members], other[others]) for member, other in zip(sides[:2], sides[2:], strict=True)]
    change_IJ = wins[0] - wins[1]
    difference = float(change_IJ.mean())
    squared = _squared_error(change_IJ.mean(axis=1)) + _squared_error(change_IJ.mean(axis=0))
    fewest = min(change_IJ.shape)
    low, high = _interval(difference, squared, fewest - 1)
    return Comparison(
        metric="membership_auc",
        difference=difference,
        low=low,
        high=high,
        margin=margin,
        n=int(members.sum()),
    )


def judge(comparisons: Sequence[Comparison]) -> Judgement:
    """All comparisons together: one that is shown counts, whatever the others leave open."""
    more = tuple(one for one in comparisons if one.direction == "more")
    less = tuple(one for one in comparisons if one.direction == "less")
    kind: Kind = "open"
    if not comparisons:
        kind = "unknown"
    elif more or less:
        kind = "mixed" if more and less else "above" if more else "below"
    elif all(one.direction == "same" for one in comparisons):
        kind = "same"
    return Judgement(kind=kind, more=more, less=less)


def together(kinds: Sequence[Kind]) -> Kind:
    """One kind for several requests and seeds: whatever was shown anywhere, equality only if everywhere.

    >>> together(["same", "below"]), together(["same", "open"]), together(["above", "below"])
    ('below', 'open', 'mixed')
    """
    seen = set(kinds) - {"unknown"}
    if not seen:
        return "unknown"
    if "mixed" in seen or {"above", "below"} <= seen:
        return "mixed"
    return next(kind for kind in ("above", "below", "open", "same") if kind in seen)


def smallest_visible_distance(n: int, *, level: float = 0.05) -> float:
    """The smallest Kolmogorov-Smirnov D of two samples of ``n`` with p < ``level``; above 1 if there is none.

    >>> round(smallest_visible_distance(9), 3), smallest_visible_distance(3)
    (0.667, 1.3333333333333333)
    """
    first = np.arange(n, dtype=np.float64)
    for steps in range(1, n + 1):
        second = first + steps - 0.5
        if stats.ks_2samp(first, second).pvalue < level:
            return steps / n
    return (n + 1) / n


def _wins(member_I: FloatArray, other_J: FloatArray) -> FloatArray:
    """1 where a member's NLL is lower than another's, 1/2 where they are equal, (I, J)."""
    wins_IJ = (member_I[:, None] < other_J).astype(np.float64)
    return np.asarray(wins_IJ + 0.5 * (member_I[:, None] == other_J), dtype=np.float64)


def _squared_error(values: FloatArray) -> float:
    """Squared standard error of a mean; infinite with a single value."""
    return float(values.var(ddof=1) / values.size) if values.size > 1 else float("inf")


def _interval(mean: float, squared_error: float, freedom: int) -> tuple[float, float]:
    """A t interval around a mean; infinite without degrees of freedom."""
    if freedom < 1 or not np.isfinite(squared_error):
        return -float("inf"), float("inf")
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * float(np.sqrt(squared_error))
    return mean - half, mean + half
