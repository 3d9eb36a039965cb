"""How likely a model finds an answer: NLL, probability, multiple choice.

Definitions of TOFU (Maini et al., 2024, arXiv:2401.06121). All take teacher-forced log-probabilities of
the answer tokens (natural logarithm), padded to (I, T), and a mask of the tokens that count: the whole
answer, or only the tokens that carry the fact.

>>> log_probs_IT = np.log([[0.5, 0.5, 1.0], [0.1, 1.0, 1.0]])
>>> mask_IT = np.array([[True, True, False], [True, False, False]])
>>> probability(mean_nll(log_probs_IT, mask_IT)).round(3).tolist()
[0.5, 0.1]
>>> choice_probability([0.0], [[0.0, 0.0, 0.0]]).tolist()
[0.25]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax

from fedsim.metrics.arrays import FloatArray, masked_mean


def mean_nll(log_probs_IT: ArrayLike, mask_IT: ArrayLike) -> FloatArray:
    """Negative log-likelihood of each item, nats per token, (I,) in [0, inf).

    NaN where the mask selects no token. Raises ValueError when the shapes differ.
    """
    return -masked_mean(log_probs_IT, mask_IT)


def probability(nll_I: ArrayLike) -> FloatArray:
    """exp(-NLL per token): the geometric mean of the token probabilities, (I,) in [0, 1].

    NaN stays NaN. A fact's probability is this on the NLL of the fact's tokens alone.
    """
    return np.exp(-np.asarray(nll_I, dtype=np.float64))


def choice_probability(nll_correct_I: ArrayLike, nll_wrong_IW: ArrayLike) -> FloatArray:
    """p_correct / (p_correct + sum of p_wrong) with p = exp(-NLL per token), (I,) in [0, 1].

    ``nll_wrong_IW`` (I, W) holds NaN where an item has fewer wrong answers. Chance is 1 / (1 + wrong
    answers). Computed as a softmax: unlikely answers do not underflow to 0 / 0.

    Edge cases: NaN where the correct NLL is NaN or an item has no wrong answer.

    Raises:
        ValueError: the shapes are not (I,) and (I, W).
    """
    correct, wrong = paired_nll(nll_correct_I, nll_wrong_IW)
    usable = ~np.isnan(correct) & ~np.isnan(wrong).all(axis=-1)
    scores = -np.concatenate([correct[:, None], wrong], axis=-1)
    scores = np.where(np.isnan(scores), -np.inf, scores)
    shares = softmax(np.where(usable[:, None], scores, 0.0), axis=-1)[:, 0]
    return np.where(usable, shares, np.nan)


def paired_nll(nll_right_I: ArrayLike, nll_wrong_IW: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both as float64 arrays of shapes (I,) and (I, W); ValueError when they do not fit together."""
    right = np.asarray(nll_right_I, dtype=np.float64)
    wrong = np.asarray(nll_wrong_IW, dtype=np.float64)
    if right.ndim != 1 or wrong.ndim != 2 or len(right) != len(wrong):
        raise ValueError(
            f"NLLs have shapes {right.shape} (right answers) and {wrong.shape} (wrong answers), "
            "expected (items,) and (items, wrong answers); pad missing wrong answers with NaN"
        )
    return right, wrong
