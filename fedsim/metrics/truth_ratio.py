"""Truth ratio: does the model still prefer a rephrased truth to wrong answers of the same form?

TOFU (Maini et al., 2024, arXiv:2401.06121), with the aggregation of its published scripts: the NLLs of
the wrong answers are averaged first, nats per token, and then exponentiated (a geometric mean, where the
paper's formula shows an arithmetic one).

R = exp(-mean NLL of the wrong answers) / exp(-NLL of the paraphrased answer), in (0, inf): near 0 when the
model knows, near 1 when it cannot tell, above 1 when it prefers falsehoods.

>>> ratio_I = truth_ratio([1.0, 2.0], [[1.0, 1.0], [5.0, 7.0]])
>>> ratio_I.round(4).tolist()
[1.0, 0.0183]
>>> forget_score(ratio_I).round(4).tolist(), retain_score(ratio_I).round(4).tolist()
([1.0, 0.0183], [0.0, 0.9817])
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fedsim.metrics.arrays import FloatArray, masked_mean
from fedsim.metrics.likelihood import paired_nll


def truth_ratio(nll_paraphrase_I: ArrayLike, nll_wrong_IW: ArrayLike) -> FloatArray:
    """R of each item, (I,) in [0, inf]; inputs in nats per token, NaN where a wrong answer is missing.

    Where a question has no paraphrased answer, TOFU (its real authors and world facts) puts the answer
    itself there. Edge cases: NaN without a paraphrase or without any wrong answer.

    Raises:
        ValueError: the shapes are not (I,) and (I, W).
    """
    paraphrase, wrong = paired_nll(nll_paraphrase_I, nll_wrong_IW)
    with np.errstate(over="ignore"):
        return np.exp(paraphrase - masked_mean(wrong, ~np.isnan(wrong)))


def forget_score(ratio_I: ArrayLike) -> FloatArray:
    """min(R, 1/R) of each item, (I,) in [0, 1]: 1 when truth and falsehood are equally likely.

    Low both when the fact is known (R near 0) and when it was driven below the wrong answers (R above 1):
    over-forgetting is a trace too. TOFU's "Truth Ratio Forget" is the mean.
    """
    ratio = np.asarray(ratio_I, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.minimum(ratio, 1.0 / ratio)


def retain_score(ratio_I: ArrayLike) -> FloatArray:
    """max(0, 1 - R) of each item, (I,) in [0, 1]: 1 when the fact is known.

    TOFU's "Truth Ratio" of retain set, real authors and world facts is the mean.
    """
    return np.maximum(0.0, 1.0 - np.asarray(ratio_I, dtype=np.float64))
