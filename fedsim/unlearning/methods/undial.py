"""UNDIAL (Dong et al., 2024, arXiv:2402.10052): distil from oneself with the answer's logits lowered.

L = CE(softmax(z_ref - beta e_y), z) per answer token: the teacher is the model at the request, whose logit of
the true token y is lowered by beta. The aim is fixed, so there is no run-away as in ascent. Deviation: the
released code distils prompt and padding, too; here answer tokens alone. Known weakness: the second choice of
the old model becomes the first, and it may give the fact in other words.
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
class LoweredTeacher:
    """Cross-entropy to the reference with its logit of the true token lowered by ``beta``, per sample."""

    beta: float
    needs: ClassVar[Needs] = Needs(reference=True)

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        import torch

        assert reference is not None
        true_N1 = current.targets_N[:, None]
        lowered_NV = reference.logits_NV.scatter_add(
            -1, true_N1, torch.full_like(true_N1, -self.beta, dtype=reference.logits_NV.dtype)
        )
        aim_NV = torch.softmax(lowered_NV, dim=-1)
        loss_N = torch.nn.functional.cross_entropy(current.logits_NV, aim_NV, reduction="none")
        return current.token_means(loss_N)


class Undial(LossMethodConfig):
    """Distil the forgotten answers from a teacher that holds the true tokens for less likely."""

    title: ClassVar[str] = "UNDIAL"
    summary: ClassVar[str] = "distil from the model at the request with the true tokens' logits lowered"

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CLIENT_COOPERATION})

    method: Literal["undial"] = "undial"
    beta: float = Field(default=10.0, gt=0)
    """By how much the true token's logit is lowered (the released default)."""
    alpha: float = Field(default=0.0, ge=0)
    """Weight of the retain term; 0 leaves it out, as in the paper."""

    def forget_objective(self) -> Objective:
        return LoweredTeacher(self.beta)
