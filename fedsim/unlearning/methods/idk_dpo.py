"""Direct preference optimisation with a refusal as the preferred answer (IdkDPO).

The loss is DPO's (Rafailov et al., 2023, arXiv:2305.18290), with "I don't know" against the true answer as
TOFU has it (Maini et al., 2024, arXiv:2401.06121), times 2 / beta as beside NPO (Zhang et al., 2024,
arXiv:2404.05868): L = -(2 / beta) log sigma(beta ((l_ref - l) of the refusal - (l_ref - l) of the answer)),
with l the sequence NLL (a sum over tokens) under the current model and l_ref under the model at the request.
Deviation: a record keeps one refusal, where TOFU draws another each time. Known weaknesses: a refusal is
learnt as well as an answer forgotten, so metrics of the true answer alone see half of it; words of refusals
that the base's vocabulary lacks are unknown tokens to it.
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
class IdkDpoLoss:
    """Prefer the refusal to the record's own answer; ``beta`` in 1/nats."""

    beta: float
    needs: ClassVar[Needs] = Needs(reference=True, answers="both")

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        import torch

        assert reference is not None
        assert current.refusal is not None
        assert reference.refusal is not None
        refusing_B = reference.refusal.nll_B - current.refusal.nll_B
        answering_B = reference.nll_B - current.nll_B
        return -2.0 / self.beta * torch.nn.functional.logsigmoid(self.beta * (refusing_B - answering_B))


class IdkDpo(LossMethodConfig):
    """Prefer a refusal to the forgotten answer, with a retain term at the other clients."""

    title: ClassVar[str] = "IdkDPO"
    summary: ClassVar[str] = 'prefer "I don\'t know" to the forgotten answers'

    method: Literal["idk_dpo"] = "idk_dpo"
    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature, per nat of sequence NLL."""

    def forget_objective(self) -> Objective:
        return IdkDpoLoss(self.beta)
