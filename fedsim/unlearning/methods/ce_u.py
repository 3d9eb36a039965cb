"""Cross-entropy unlearning (CE-U; Yang, 2025, arXiv:2503.01224): aim at oneself without the true token.

L = CE(softmax(z with z_y = -inf), z) per answer token; the aim is the current model's own belief about all
other tokens and no gradient goes through it. The gradient of z_y is p_y, so the pull fades as the token
becomes unlikely; those of the others share what it loses by their own weight. Known weakness: the next best
token may give the fact in other words.
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
class OthersAlone:
    """Cross-entropy to the model's own distribution over all but the true token, per sample."""

    needs: ClassVar[Needs] = Needs()

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        import torch

        true_N1 = current.targets_N[:, None]
        aim_NV = torch.softmax(current.logits_NV.detach().scatter(-1, true_N1, -float("inf")), dim=-1)
        loss_N = torch.nn.functional.cross_entropy(current.logits_NV, aim_NV, reduction="none")
        return current.token_means(loss_N)


class CeU(LossMethodConfig):
    """Move the true tokens' probability to the others, as the model itself ranks them."""

    title: ClassVar[str] = "CE-U"
    summary: ClassVar[str] = "cross-entropy to the model's own belief without the true tokens"

    method: Literal["ce_u"] = "ce_u"

    def forget_objective(self) -> Objective:
        return OthersAlone()
