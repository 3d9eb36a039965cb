"""How much of an answer the model would say by itself: exact memorisation and extraction strength.

Exact memorisation: Tirumala et al., 2022, arXiv:2205.10770. Extraction strength: Carlini et al., 2021,
arXiv:2012.07805. Both from one teacher-forced pass: ``hits_IT`` says where the answer's token was the
argmax, ``mask_IT`` which positions are answer tokens.

>>> hits_IT = np.array([[True, False, True, True]])
>>> mask_IT = np.ones_like(hits_IT)
>>> exact_memorisation(hits_IT, mask_IT).tolist(), extraction_strength(hits_IT, mask_IT).tolist()
([0.75], [0.5])
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fedsim.metrics.arrays import FloatArray, masked_mean


def exact_memorisation(hits_IT: ArrayLike, mask_IT: ArrayLike) -> FloatArray:
    """Share of answer tokens that are the argmax, (I,) in [0, 1]; NaN for an item without tokens.

    Raises:
        ValueError: the shapes differ.
    """
    return masked_mean(hits_IT, mask_IT)


def extraction_strength(hits_IT: ArrayLike, mask_IT: ArrayLike) -> FloatArray:
    """1 - k/T of each item, (I,) in [0, 1]; k is the shortest prefix after which every token is the argmax.

    1: the whole answer follows from the prompt. 0: not even the last token is right (k = T). Equal to the
    length of the correct tail over T. NaN for an item without tokens.

    Raises:
        ValueError: the shapes differ.
    """
    hits, mask = np.asarray(hits_IT, dtype=bool), np.asarray(mask_IT, dtype=bool)
    if hits.shape != mask.shape:
        raise ValueError(f"hits have shape {hits.shape}, their mask {mask.shape}; they must be equal")
    right_or_padding = np.flip(hits | ~mask, axis=-1)
    in_tail = np.flip(np.logical_and.accumulate(right_or_padding, axis=-1), axis=-1)
    return masked_mean(in_tail, mask)
