"""Is the run informative, and which metrics may be quoted on it?

A forgetting result means something only where there was something to forget: ``keep`` knows the client's
facts, and is shown to know them better than ``retrain``, which never saw them and knows them no better than
facts that nobody trained on (``holdout``); and training taught nobody those, beyond what the untouched base
knows of them. All are probabilities of the *fact* tokens: the templates around them are learned from
other clients. A metric is quoted only where it tells ``keep`` from ``retrain`` item by item (the
meta-evaluation of OpenUnlearning, Dorna et al., 2025, arXiv:2506.12618, on the run's own branches).

>>> result = is_informative([0.9, 1.0, 0.95], [0.1, 0.12, 0.08], [0.1, 0.11, 0.09])
>>> result.verdict
'informative'
>>> discrimination([0.9, 0.8], [0.1, 0.2]).trusted
True
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from fedsim.metrics.arrays import FloatArray, present
from fedsim.metrics.membership import auc

MOST_ITEMS = 10_000
"""Items of a side beyond which nobody is told to go."""
Verdict = Literal["informative", "uninformative", "inconclusive"]
Reason = Literal["", "keep_knows_little", "nothing_gained", "holdout_known", "retrain_knows", "too_few_items"]


@dataclass(frozen=True, kw_only=True, slots=True)
class References:
    """What the three references know, and how they differ.

    Means are of per-item fact probability, in [0, 1]. ``difference`` is retrain - holdout; ``low`` and
    ``high`` are its one-sided Welch bounds. ``p_value`` is of the one-sided Mann-Whitney test that retrain's
    items rank above holdout's. ``gained`` is keep - retrain over the same items, ``gained_low`` its one-sided
    bound. ``raised`` is what training added to the holdout. ``items_needed`` is how many items, as spread as
    these, would show that retrain is no better than holdout; None where no number would.
    """

    keep: float
    retrain: float
    holdout: float
    difference: float
    low: float
    high: float
    p_value: float
    n_keep: int
    n_retrain: int
    n_holdout: int
    gained: float
    gained_low: float
    raised: float
    items_needed: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Informativeness:
    """The verdict and what it rests on.

    ``reason`` says what stands in the way, ``explanation`` is one sentence.
    """

    verdict: Verdict
    reason: Reason
    explanation: str
    references: References


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricTrust:
    """``auc``: chance that an item looks better known in keep than in retrain, in [0, 1]."""

    auc: float
    trusted: bool


def is_informative(
    keep_I: ArrayLike,
    retrain_I: ArrayLike,
    holdout_J: ArrayLike,
    base_holdout_J: ArrayLike | None = None,
    *,
    min_keep: float = 0.8,
    alpha: float = 0.05,
    margin: float = 0.2,
) -> Informativeness:
    """Judge a run by per-item fact probabilities: forget items in keep and retrain, holdout in retrain.

    ``base_holdout_J`` is what the untouched base knows of the holdout, in the order of ``holdout_J``.

    - *uninformative*: keep's mean is below ``min_keep``; keep is not shown to be better than retrain by more
      than ``margin``; training raised the holdout by more than ``margin``; or retrain is better than holdout
      (Mann-Whitney p < ``alpha``) and may be by more than ``margin``.
    - *informative*: otherwise, when the upper bound of retrain - holdout is at most ``margin``: shown to be
      no better, not merely not shown to be better.
    - *inconclusive*: otherwise; there are too few items to say.

    A difference that is significant but surely below the margin does no harm. Items count as independent;
    NaN items are left out.

    Raises:
        ValueError: a threshold out of range, or a side without values.
    """
    if not (0.0 < min_keep <= 1.0 and 0.0 < alpha < 0.5 and 0.0 <= margin < 1.0):
        raise ValueError(
            f"min_keep={min_keep} must be in (0, 1], alpha={alpha} in (0, 0.5), margin={margin} in [0, 1)"
        )
    found = _compared(keep_I, retrain_I, holdout_J, base_holdout_J, alpha=alpha, margin=margin)
    verdict, reason, explanation = _judge(found, min_keep=min_keep, alpha=alpha, margin=margin)
    return Informativeness(verdict=verdict, reason=reason, explanation=explanation, references=found)


def discrimination(
    keep_I: ArrayLike, retrain_I: ArrayLike, *, known_is_higher: bool = True, min_auc: float = 0.8
) -> MetricTrust:
    """How well a metric tells items the model knows (keep) from the same items unknown (retrain).

    ``known_is_higher`` is False for NLL and the truth ratio R. ``trusted`` is False below ``min_auc``: the
    metric is to be greyed out on this run. NaN items are left out; ValueError when a side has none left.
    """
    sign = 1.0 if known_is_higher else -1.0
    value = auc(sign * present(keep_I, name="keep"), sign * present(retrain_I, name="retrain"))
    return MetricTrust(auc=value, trusted=value >= min_auc)


def metric_trust(
    keep: Mapping[str, ArrayLike],
    retrain: Mapping[str, ArrayLike],
    *,
    known_is_lower: Collection[str] = (),
    min_auc: float = 0.8,
) -> dict[str, MetricTrust]:
    """``discrimination`` of every metric that both branches have values for, by name."""
    return {
        name: discrimination(
            keep[name], retrain[name], known_is_higher=name not in known_is_lower, min_auc=min_auc
        )
        for name in keep
        if name in retrain and not np.isnan(keep[name]).all() and not np.isnan(retrain[name]).all()
    }


def items_needed(
    retrain_I: FloatArray, holdout_J: FloatArray, *, alpha: float = 0.05, margin: float = 0.2
) -> int | None:
    """How many items as spread as these would bound retrain - holdout by ``margin`` at level ``alpha``.

    The difference and both spreads are taken as they are, holdout's number of items as well. None where the
    difference alone reaches the margin, holdout's own spread exceeds it, or a side has a single item.
    """
    if min(retrain_I.size, holdout_J.size) < 2:
        return None
    room = margin - float(retrain_I.mean() - holdout_J.mean())
    spread, beside = float(retrain_I.var(ddof=1)), float(holdout_J.var(ddof=1)) / holdout_J.size
    if spread + beside == 0.0:
        return 2 if room >= 0.0 else None
    n_N = np.arange(2, MOST_ITEMS + 1, dtype=np.float64)
    error_N = spread / n_N + beside
    freedom_N = error_N**2 / ((spread / n_N) ** 2 / (n_N - 1) + beside**2 / (holdout_J.size - 1))
    enough_N = stats.t.ppf(1.0 - alpha, freedom_N) * np.sqrt(error_N) <= room
    return int(n_N[enough_N.argmax()]) if enough_N.any() else None


def _gain(keep_I: FloatArray, retrain_I: FloatArray, *, alpha: float) -> tuple[float, float]:
    """Mean of keep - retrain over the items both have, and its one-sided bound; unpaired if they differ."""
    if keep_I.shape != retrain_I.shape:
        low, _ = _welch_bounds(keep_I[~np.isnan(keep_I)], retrain_I[~np.isnan(retrain_I)], alpha=alpha)
        return float(np.nanmean(keep_I) - np.nanmean(retrain_I)), low
    change = (keep_I - retrain_I)[~np.isnan(keep_I - retrain_I)]
    if change.size < 2:
        return float(change.mean()) if change.size else float("nan"), -float("inf")
    error = float(change.std(ddof=1)) / change.size**0.5
    return float(change.mean()), float(change.mean()) - float(stats.t.ppf(1 - alpha, change.size - 1)) * error


def _welch_bounds(retrain: FloatArray, holdout: FloatArray, *, alpha: float) -> tuple[float, float]:
    """One-sided bounds of mean(retrain) - mean(holdout), each at ``alpha``; infinite with a single item."""
    if min(retrain.size, holdout.size) < 2:
        return -float("inf"), float("inf")
    if np.ptp(retrain) == 0.0 and np.ptp(holdout) == 0.0:
        difference = float(retrain[0] - holdout[0])
        return difference, difference
    test = stats.ttest_ind(retrain, holdout, equal_var=False)
    interval = test.confidence_interval(confidence_level=1.0 - 2.0 * alpha)
    return float(interval.low), float(interval.high)


def _compared(
    keep_I: ArrayLike,
    retrain_I: ArrayLike,
    holdout_J: ArrayLike,
    base_holdout_J: ArrayLike | None,
    *,
    alpha: float,
    margin: float,
) -> References:
    keep, retrain = present(keep_I, name="keep"), present(retrain_I, name="retrain")
    gained, gained_low = _gain(np.asarray(keep_I, float), np.asarray(retrain_I, float), alpha=alpha)
    holdout = present(holdout_J, name="holdout")
    low, high = _welch_bounds(retrain, holdout, alpha=alpha)
    before = holdout if base_holdout_J is None else np.asarray(base_holdout_J, float)
    return References(
        keep=float(keep.mean()),
        retrain=float(retrain.mean()),
        holdout=float(holdout.mean()),
        difference=float(retrain.mean()) - float(holdout.mean()),
        low=low,
        high=high,
        p_value=float(stats.mannwhitneyu(retrain, holdout, alternative="greater").pvalue),
        n_keep=keep.size,
        n_retrain=retrain.size,
        n_holdout=holdout.size,
        gained=gained,
        gained_low=gained_low,
        raised=float(holdout.mean()) - float(np.nanmean(before)),
        items_needed=items_needed(retrain, holdout, alpha=alpha, margin=margin),
    )


def _judge(found: References, *, min_keep: float, alpha: float, margin: float) -> tuple[Verdict, Reason, str]:
    """The first thing that stands in the way, or that nothing does."""
    keep, retrain, holdout, n = found.keep, found.retrain, found.holdout, found.n_retrain
    compared = f"retrain knows the facts at {retrain:.2f}, holdout facts at {holdout:.2f}"
    bound = f"the difference is at most {found.high:.2f} at level {alpha:g}, margin {margin:g}"
    if keep < min_keep:
        little = f"keep knows the facts at {keep:.2f} only, below {min_keep:g}: there was little to forget."
        return "uninformative", "keep_knows_little", little
    if found.raised > margin:
        told = (
            f"training raised the holdout by {found.raised:.2f} over what the untouched base knows, to "
            f"{holdout:.2f}, so nothing here was unseen: is it in somebody's data?"
        )
        return "uninformative", "holdout_known", told
    if found.gained_low <= margin:
        gap = f"keep knows the facts at {keep:.2f} and retrain at {retrain:.2f}"
        shown = (
            f"that keep knows more by {margin:g} is not shown (by {found.gained_low:.2f} at least, n = {n})"
        )
        if found.gained <= margin:
            return "uninformative", "nothing_gained", f"{gap}; {shown}: the client's data added nothing."
        return "inconclusive", "too_few_items", f"{gap}, but {shown}."
    if found.high <= margin:
        return "informative", "", f"keep knows the facts at {keep:.2f}, and {compared} ({bound}, n = {n})."
    if found.p_value < alpha:
        shown = f"{compared} (Mann-Whitney p={found.p_value:.2g}, {bound})"
        return "uninformative", "retrain_knows", f"{shown}: the facts can be had without the client."
    needed = found.items_needed
    more = f"; about {needed} would do." if needed is not None else ", and no number would do."
    few = f"{compared}, but {bound}: {n} items are too few to call them equal{more}"
    return "inconclusive", "too_few_items", few
