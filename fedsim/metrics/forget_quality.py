"""Forget quality: are the unlearned model's truth ratios distributed like the retrained model's?

TOFU (Maini et al., 2024, arXiv:2401.06121): the p-value of a two-sample Kolmogorov-Smirnov test. A p-value
above .05 is no proof of equality: with few items everything passes, and gibberish can too. The
distances stand beside it, to be read against those of a second retrained model with another seed.

>>> result = forget_quality([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
>>> result.p_value, result.ks_distance, result.wasserstein
(1.0, 0.0, 0.0)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from fedsim.metrics.arrays import present


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetQuality:
    """The comparison of two samples.

    ``p_value`` in [0, 1] (TOFU's forget quality), ``ks_distance`` (D) in [0, 1], ``wasserstein`` in the
    values' own unit; ``n_unlearned`` and ``n_retrain`` count the items that had a value.
    """

    p_value: float
    ks_distance: float
    wasserstein: float
    n_unlearned: int
    n_retrain: int


def forget_quality(unlearned_I: ArrayLike, retrain_J: ArrayLike) -> ForgetQuality:
    """Compare per-item values (truth ratios R) of two models on the forget set; NaN items are left out.

    Edge cases: ``wasserstein`` is NaN when a value is infinite.

    Raises:
        ValueError: one side has no values.
    """
    unlearned = present(unlearned_I, name="unlearned")
    retrain = present(retrain_J, name="retrain")
    with warnings.catch_warnings():
        # For two samples that hardly differ the exact p-value comes out above 1 by rounding. SciPy then warns
        # and gives the asymptotic one, which is 1.
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful", RuntimeWarning)
        test = stats.ks_2samp(unlearned, retrain)
    finite = bool(np.isfinite(unlearned).all() and np.isfinite(retrain).all())
    return ForgetQuality(
        p_value=float(test.pvalue),
        ks_distance=float(test.statistic),
        wasserstein=float(stats.wasserstein_distance(unlearned, retrain)) if finite else float("nan"),
        n_unlearned=unlearned.size,
        n_retrain=retrain.size,
    )
