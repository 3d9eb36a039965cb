"""Array types and the two reductions that every metric family uses.

Legend for suffixes in this package: I items (probe records), T answer tokens, W wrong answers, R rounds,
C clients. Ragged data is padded; a boolean mask, or NaN, marks what is padding.

>>> masked_mean(np.array([[1.0, 3.0, 9.0]]), np.array([[True, True, False]])).tolist()
[2.0]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def masked_mean(values_XT: ArrayLike, mask_XT: ArrayLike) -> FloatArray:
    """Mean over the last axis of what the mask selects, shape (X,); NaN where it selects nothing.

    Raises:
        ValueError: values and mask differ in shape.
    """
    values = np.asarray(values_XT, dtype=np.float64)
    mask = np.asarray(mask_XT, dtype=bool)
    if values.shape != mask.shape:
        raise ValueError(f"values have shape {values.shape}, their mask {mask.shape}; they must be equal")
    total = np.where(mask, values, 0.0).sum(axis=-1)
    count = mask.sum(axis=-1)
    mean: FloatArray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def present(values_I: ArrayLike, *, name: str) -> FloatArray:
    """The values that are not NaN, flattened, in order; ``name`` is what the error calls them.

    Raises:
        ValueError: nothing is left.
    """
    values = np.asarray(values_I, dtype=np.float64).ravel()
    kept: FloatArray = values[~np.isnan(values)]
    if not kept.size:
        raise ValueError(
            f"{name} has no values that are not NaN ({values.size} given); one at least is needed"
        )
    return kept
