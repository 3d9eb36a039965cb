"""SatImp (Yang et al., 2025, arXiv:2505.11953): ascend by saturation and importance of tokens.

L = -mean over answer tokens of p^beta1 (1 - p)^beta2 l, with p the token's probability, through which no
gradient goes, and l = -log p: WGA with less weight on tokens that are certain. Known weakness: facts that are
known by heart are certain, and are forgotten last.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fedsim.training.objectives import Objective
from fedsim.unlearning.methods.wga import WeightedAscent
from fedsim.unlearning.protocol import LossMethodConfig


class SatImp(LossMethodConfig):
    """Ascend on the forgotten tokens that are likely, but not certain."""

    title: ClassVar[str] = "SatImp"
    summary: ClassVar[str] = "gradient ascent, weighted by saturation and importance of each token"

    method: Literal["satimp"] = "satimp"
    beta1: float = Field(default=5.0, ge=0)
    """Power of the probability in the weight (the released default)."""
    beta2: float = Field(default=1.0, ge=0)
    """Power of one minus the probability in the weight (the released default)."""

    def forget_objective(self) -> Objective:
        return WeightedAscent(self.beta1, self.beta2)
