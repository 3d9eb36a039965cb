"""Membership inference: can an attacker tell what the model was trained on?

Every attack is a score per item, higher for "was a member": loss (Yeom et al., 2018, arXiv:1709.01604), zlib
and reference model (Carlini et al., 2021, arXiv:2012.07805), Min-K (Shi et al., 2023, arXiv:2310.16789) and
Min-K++ (Zhang et al., 2024, arXiv:2404.02936). AUC is oriented alike: 1 when every member scores above
every non-member, 0.5 when the attack sees nothing, below 0.5 when members look *less* familiar.

>>> members, others = loss_score([0.1, 0.2]), loss_score([2.0, 3.0])
>>> result = attack_auc(members, others, rng=np.random.default_rng(0))
>>> result.auc, result.low < 1.0, result.high
(1.0, True, 1.0)
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.metrics import roc_curve

from fedsim.metrics.arrays import FloatArray, masked_mean, present

MIN_K_FRACTION = 0.4


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackAuc:
    """AUC in [0, 1] with the ends of its confidence interval and the number of items on each side."""

    auc: float
    low: float
    high: float
    n_members: int
    n_nonmembers: int


def loss_score(nll_I: ArrayLike) -> FloatArray:
    """-NLL of each item, nats per token, (I,)."""
    return -np.asarray(nll_I, dtype=np.float64)


def zlib_score(nll_I: ArrayLike, texts: Sequence[str]) -> FloatArray:
    """-NLL per token over the bytes of the zlib-compressed text, (I,): plain texts count less.

    Raises:
        ValueError: not one text per NLL.
    """
    nll = np.asarray(nll_I, dtype=np.float64)
    if nll.shape != (len(texts),):
        raise ValueError(f"nll_I has shape {nll.shape} for {len(texts)} texts; one text per item is needed")
    return -nll / np.array([len(zlib.compress(text.encode())) for text in texts], dtype=np.float64)


def reference_score(nll_I: ArrayLike, base_nll_I: ArrayLike) -> FloatArray:
    """How many nats per token better than the base model (never trained on the items), (I,)."""
    return np.asarray(base_nll_I, dtype=np.float64) - np.asarray(nll_I, dtype=np.float64)


def min_k_score(
    log_probs_IT: ArrayLike, mask_IT: ArrayLike, *, fraction: float = MIN_K_FRACTION
) -> FloatArray:
    """Mean log-probability of the least likely ``fraction`` of tokens, nats per token, (I,) <= 0.

    At least one token is taken, otherwise the number is rounded down. NaN for an item without tokens.

    Raises:
        ValueError: fraction outside (0, 1], or the shapes differ.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction={fraction} must be in (0, 1]; 0.2 to 0.4 are usual")
    log_probs, mask = np.asarray(log_probs_IT, dtype=np.float64), np.asarray(mask_IT, dtype=bool)
    if log_probs.shape != mask.shape:
        raise ValueError(f"log_probs have shape {log_probs.shape}, their mask {mask.shape}")
    count_I = mask.sum(axis=-1)
    taken_I = np.where(count_I > 0, np.maximum(1, (count_I * fraction).astype(np.int64)), 0)
    ascending = np.sort(np.where(mask, log_probs, np.inf), axis=-1)
    return masked_mean(ascending, np.arange(mask.shape[-1]) < taken_I[:, None])


def min_k_plus_plus_score(
    log_probs_IT: ArrayLike,
    mean_IT: ArrayLike,
    deviation_IT: ArrayLike,
    mask_IT: ArrayLike,
    *,
    fraction: float = MIN_K_FRACTION,
) -> FloatArray:
    """Min-K on standardised log-probabilities, (I,), in standard deviations.

    ``mean_IT`` and ``deviation_IT`` are those of log p(v) over the vocabulary under v ~ p, at each position.
    Where the deviation is 0 (all mass on one token) the standardised value is taken as 0.

    Raises:
        ValueError: fraction outside (0, 1], or the shapes differ.
    """
    centred = np.asarray(log_probs_IT, dtype=np.float64) - np.asarray(mean_IT, dtype=np.float64)
    deviation = np.asarray(deviation_IT, dtype=np.float64)
    standardised = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)
    return min_k_score(standardised, mask_IT, fraction=fraction)


def auc(members_I: ArrayLike, nonmembers_J: ArrayLike) -> float:
    """P[member scores above non-member] + P[tie] / 2, in [0, 1]; NaN items are left out.

    Raises:
        ValueError: one side has no values.
    """
    members, others = present(members_I, name="members"), present(nonmembers_J, name="nonmembers")
    return float(_auc_along(members, others, axis=-1))


def attack_auc(
    members_I: ArrayLike,
    nonmembers_J: ArrayLike,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> AttackAuc:
    """AUC with a percentile bootstrap interval over items, members and non-members resampled apart.

    Guarantees: the same ``rng`` state gives the same interval; the interval contains the AUC's bootstrap
    mass at ``confidence``. It treats items as independent and knows nothing of training randomness.

    Edge cases: when all resamples agree (complete separation) the bootstrap would claim certainty; the
    open end is then the exact binomial bound for the smaller side, (1 - confidence)/2 to the power 1/n.

    Raises:
        ValueError: one side has no values, or confidence outside (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence} must be in (0, 1); 0.95 is usual")
    members, others = present(members_I, name="members"), present(nonmembers_J, name="nonmembers")
    value = auc(members, others)
    if value in (0.0, 1.0):
        smaller = min(members.size, others.size)
        low, high = stats.binomtest(round(value) * smaller, smaller).proportion_ci(confidence)
    elif min(members.size, others.size) < 2:
        low, high = 0.0, 1.0
    else:
        low, high = stats.bootstrap(
            (members, others),
            _auc_along,
            n_resamples=resamples,
            confidence_level=confidence,
            method="percentile",
            vectorized=True,
            rng=rng,
        ).confidence_interval
    return AttackAuc(
        auc=value, low=float(low), high=float(high), n_members=members.size, n_nonmembers=others.size
    )


def tpr_at_fpr(members_I: ArrayLike, nonmembers_J: ArrayLike, *, max_fpr: float) -> float:
    """Largest share of members found while at most ``max_fpr`` of non-members are accused, in [0, 1].

    Carlini et al., 2022, arXiv:2112.03570. Below 1 / (number of non-members) no false accusation at all is
    allowed, and the number says less than its name: it is the share of members above every non-member.

    Raises:
        ValueError: max_fpr outside [0, 1], or one side has no values.
    """
    if not 0.0 <= max_fpr <= 1.0:
        raise ValueError(f"max_fpr={max_fpr} must be in [0, 1]; 0.01 and 0.001 are usual")
    members, others = present(members_I, name="members"), present(nonmembers_J, name="nonmembers")
    labels = np.repeat([1, 0], [members.size, others.size])
    fpr, tpr, _ = roc_curve(labels, np.concatenate([members, others]), drop_intermediate=False)
    return float(tpr[fpr <= max_fpr].max())


def privacy_leak(auc_unlearned: float, auc_retrain: float) -> float:
    """MUSE's PrivLeak in percent (Shi et al., 2024, arXiv:2407.06460): 100 (AUC_unl - AUC_ret) / AUC_ret.

    With AUC in this module's orientation: positive means still recognised as a member, negative means
    over-forgotten, 0 is the retrained model. MUSE's tables orient AUC the other way (full knowledge is near
    -100 there): pass 1 - AUC on both sides to compare with them.

    Raises:
        ValueError: ``auc_retrain`` is not positive.
    """
    if auc_retrain <= 0.0:
        raise ValueError(f"auc_retrain={auc_retrain} must be positive; the leak is relative to it")
    return 100.0 * (auc_unlearned - auc_retrain) / auc_retrain


def _auc_along(members: FloatArray, others: FloatArray, axis: int) -> FloatArray:
    pairs = members.shape[axis] * others.shape[axis]
    test = stats.mannwhitneyu(members, others, axis=axis, method="asymptotic")
    return np.asarray(test.statistic / pairs, dtype=np.float64)
