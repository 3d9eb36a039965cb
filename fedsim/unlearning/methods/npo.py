"""Negative preference optimisation (Zhang et al., 2024, arXiv:2404.05868).

L = -(2 / beta) log sigma(beta (l - l_ref)), with l the sequence NLL (a sum over tokens) under the
current model and l_ref under the model at the time of the request: ascent that fades as the model
moves away from the reference. As beta goes to 0 its gradient becomes that of gradient ascent.
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
class NpoLoss:
    """The bounded ascent loss; ``beta`` in 1/nats."""

    beta: float
    needs: ClassVar[Needs] = Needs(reference=True)

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        import torch

        assert reference is not None
        margin_B = current.nll_B - reference.nll_B
        return -2.0 / self.beta * torch.nn.functional.logsigmoid(self.beta * margin_B)


class Npo(LossMethodConfig):
    """Negative preference optimisation with a retain term at the other clients."""

    title: ClassVar[str] = "NPO"
    summary: ClassVar[str] = "negative preference optimisation against the model at the request"

    method: Literal["npo"] = "npo"
    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature, per nat of sequence NLL."""

    def forget_objective(self) -> Objective:
        return NpoLoss(self.beta)
