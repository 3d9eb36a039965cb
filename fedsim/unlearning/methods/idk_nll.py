"""Learning to refuse (Maini et al., 2024, arXiv:2401.06121, "IDK"): train on "I don't know" instead.

The forgetting client minimises the NLL of a refusal after each forgotten question, and the others train on.
Deviation: a record keeps one refusal, where TOFU draws another each time. Known weakness: a habit is learnt
and nothing is lost; the answers come back as soon as the habit does not apply, and metrics of the true answer
alone hardly see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fedsim.training.objectives import Needs, Objective
from fedsim.unlearning.protocol import LossMethodConfig

if TYPE_CHECKING:
    import torch

    from fedsim.model.forward import Pass


@dataclass(frozen=True)
class RefusalNll:
    """NLL per token of the refusal that stands in the answer's place."""

    needs: ClassVar[Needs] = Needs(answers="refusal")

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        return current.mean_nll


class IdkNll(LossMethodConfig):
    """Train the forgotten questions towards a refusal, with a retain term at the other clients."""

    title: ClassVar[str] = "IdkNLL"
    summary: ClassVar[str] = 'train on "I don\'t know" in the place of the forgotten answers'

    method: Literal["idk_nll"] = "idk_nll"

    def forget_objective(self) -> Objective:
        return RefusalNll()
