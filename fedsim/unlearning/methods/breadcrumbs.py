"""Breadcrumbs (Davari and Belilovsky, 2024, arXiv:2312.06795): a task vector without outliers and dust.

As the task vector: a draft is trained on the forgotten records, and the adapter goes the opposite way. Of
each tensor of that way the ``outliers`` share with the largest entries in size and all but the ``kept`` share
of the others are set to zero first. Known weakness: shares are of one tensor each, and a rank-8 factor has
few entries.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.unlearning.methods.task_vector import DraftReversed


class Breadcrumbs(DraftReversed):
    """Subtract the middle entries of what training on the forgotten records would add."""

    title: ClassVar[str] = "Breadcrumbs"
    summary: ClassVar[str] = "go the opposite way of a draft, without its largest and its smallest entries"

    method: Literal["breadcrumbs"] = "breadcrumbs"
    outliers: float = Field(default=0.006, ge=0, lt=1)
    """Share of a tensor's entries that are left out for being the largest (gamma)."""
    kept: float = Field(default=0.15, gt=0, le=1)
    """Share of a tensor's entries, the largest of the others, that are gone back (beta)."""
    strength: float = Field(default=0.2, gt=0)
    """How far to go back, as a multiple of what is left of the draft's way (alpha)."""

    def chosen(self, way: NDArray[np.float32]) -> NDArray[np.float32]:
        """The entries between: ranks from the largest on, in size."""
        rank = np.empty(way.size, dtype=np.int64)
        rank[np.argsort(-np.abs(way), axis=None, kind="stable")] = np.arange(way.size)
        first = round(self.outliers * way.size)
        last = first + max(1, round(self.kept * way.size))
        chosen = (rank >= first) & (rank < last)
        return np.where(chosen.reshape(way.shape), way, np.float32(0))
