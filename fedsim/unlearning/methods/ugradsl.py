"""UGradSL (Di et al., 2024, arXiv:2406.07698): ascend on labels that are smoothed below zero.

L = -min(CE(y_a, z), most) per answer token, with y_a = (1 - a) y + a / K over the K tokens of the vocabulary
and a < 0: the true token counts for more than one and every other one for a little less than none. The retain
term is that of the other clients. Deviations: the paper weighs the two by p and 1 - p in one gradient, here
gamma and alpha weigh updates; a bound ends the ascent, which has none; the paper smooths over classes, of
which a vocabulary has thousands. Known weakness: as with every ascent, what is near the forgotten goes with
it.
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
class SmoothedAscent:
    """Negated cross-entropy to smoothed labels, at most ``most`` nats a token, per sample."""

    smoothing: float
    most: float
    needs: ClassVar[Needs] = Needs()

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        import torch

        everywhere_N = -torch.log_softmax(current.logits_NV, dim=-1).mean(-1)
        loss_N = (1 - self.smoothing) * current.token_nll + self.smoothing * everywhere_N
        return -current.token_means(loss_N.clamp(max=self.most))


class UGradSl(LossMethodConfig):
    """Ascend on negatively smoothed labels, with a retain term at the other clients."""

    title: ClassVar[str] = "UGradSL"
    summary: ClassVar[str] = "ascend on labels that are smoothed below zero, up to a bound"

    method: Literal["ugradsl"] = "ugradsl"
    smoothing: float = Field(default=-0.2, gt=-1, lt=0)
    """What is taken from the other tokens and given to the true one (a)."""
    most: float = Field(default=20.0, gt=0)
    """Nats per token at which the ascent ends."""

    def forget_objective(self) -> Objective:
        return SmoothedAscent(self.smoothing, self.most)
