"""Gradient ascent (Jang et al., 2023, arXiv:2210.01504): climb the loss of what must be forgotten.

No retain term: the other clients are idle while the forgetting client ascends, unless ``alpha`` is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fedsim.training.objectives import Needs, Objective
from fedsim.unlearning.protocol import LossMethodConfig
from privacy import Capability

if TYPE_CHECKING:
    import torch

    from fedsim.model.forward import Pass


@dataclass(frozen=True)
class NegatedNll:
    """-NLL per token of each sample; unbounded below, so few steps and a small rate."""

    needs: ClassVar[Needs] = Needs()

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        return -current.mean_nll


class GradAscent(LossMethodConfig):
    """Ascend on the forgotten records alone."""

    title: ClassVar[str] = "GradAscent"
    summary: ClassVar[str] = "ascend the loss of the forgotten records; no retain term"

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CLIENT_COOPERATION})

    method: Literal["grad_ascent"] = "grad_ascent"
    alpha: float = Field(default=0.0, ge=0)
    """Weight of the retain term; 0 leaves it out, as in the paper."""

    def forget_objective(self) -> Objective:
        return NegatedNll()
