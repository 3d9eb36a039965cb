"""SimNPO (Fan et al., 2024, arXiv:2410.07163): NPO without a reference, normalised by answer length.

L = -(2 / beta) log sigma(beta (l / |y| - delta)), with l / |y| the answer's NLL in nats per token.
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
class SimNpoLoss:
    """Reference-free bounded ascent; ``delta`` is the NLL per token above which the pull fades."""

    beta: float
    delta: float
    needs: ClassVar[Needs] = Needs()

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        import torch

        margin_B = current.mean_nll - self.delta
        return -2.0 / self.beta * torch.nn.functional.logsigmoid(self.beta * margin_B)


class SimNpo(LossMethodConfig):
    """Simple NPO with a retain term at the other clients."""

    title: ClassVar[str] = "SimNPO"
    summary: ClassVar[str] = "length-normalised preference optimisation without a reference model"

    method: Literal["simnpo"] = "simnpo"
    beta: float = Field(default=4.5, gt=0)
    """Inverse temperature, per nat of NLL per token."""
    delta: float = 0.0
    """Target margin, nats per token."""
    gamma: float = Field(default=0.125, gt=0)
    """Weight of the forgetting client's update."""

    def forget_objective(self) -> Objective:
        return SimNpoLoss(self.beta, self.delta)
