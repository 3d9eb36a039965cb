"""Weighted gradient ascent (WGA; Wang et al., 2025, arXiv:2502.19301): ascend where the model still knows.

L = -mean over answer tokens of p^beta l, with p the token's probability, through which no gradient goes, and
l = -log p. With beta 0 it is gradient ascent. Tokens that are unlikely already pull no more, so the loss does
not run away. Known weakness: tokens that everybody knows are as likely as facts, and lose as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fedsim.training.objectives import Needs, Objective
from fedsim.unlearning.protocol import LossMethodConfig

if TYPE_CHECKING:
    import torch

    from fedsim.model.forward import Pass


@dataclass(frozen=True)
class WeightedAscent:
    """-NLL per token, weighted by p^``sharpness`` (1 - p)^``doubt``; the weights have no gradient."""

    sharpness: float
    doubt: float = 0.0
    needs: ClassVar[Needs] = Needs()

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        nll_N = current.token_nll
        p_N = nll_N.detach().neg().exp().clamp(max=1.0)
        weight_N = p_N**self.sharpness * (1 - p_N) ** self.doubt
        return -current.token_means(weight_N * nll_N)


class Wga(LossMethodConfig):
    """Ascend on the forgotten tokens, the more the better they are known."""

    title: ClassVar[str] = "WGA"
    summary: ClassVar[str] = "gradient ascent, weighted by each token's probability"

    method: Literal["wga"] = "wga"
    beta: float = Field(default=1.0, ge=0)
    """Power of the probability in the weight (the released default); 0 is gradient ascent."""

    def forget_objective(self) -> Objective:
        return WeightedAscent(self.beta)
