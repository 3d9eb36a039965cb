"""FedOSD (Pan et al., 2025, arXiv:2412.20200): unlearn across the others' updates, recover across the way.

In an unlearning round the forgetting client minimises -log(1 - p / 2) per answer token, which is bounded
where ascent is not. Its update loses all that lies in the span of the others', and is as long as before. In
the rounds of recovery the others train; of each of their updates the part along the way gone since the
request is taken out, the rest is as long as before, and the mean is added. So recovery does not go back.
Deviations: updates of local training take the place of single gradients; the loss is a mean over answer
tokens. Known weakness: with many others, or alike ones, little of the update is across all of theirs, and it
is stretched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.model.vectors import Arrays, Layout, from_vector
from fedsim.training.objectives import LocalWork, MeanNll, Needs
from fedsim.unlearning.desk import Desk, Sent
from fedsim.unlearning.protocol import MethodConfig, Role, RoundPlan, Work
from fedsim.unlearning.request import Request
from privacy import Capability

if TYPE_CHECKING:
    import torch

    from fedsim.model.forward import Pass

SMALLEST = 1e-6
"""Share of the largest singular value below which a direction of the others counts as none."""
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class HalvedCrossEntropy:
    """-log(1 - p / 2) of each answer token's probability p, the mean per sample; at most log 2."""

    needs: ClassVar[Needs] = Needs()

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        import torch

        loss_N = -torch.log1p(-torch.exp(-current.token_nll) / 2)
        return current.token_means(loss_N)


class FedOsd(MethodConfig):
    """Unlearn orthogonally to the others' updates, then let them recover without going back."""

    title: ClassVar[str] = "FedOSD"
    summary: ClassVar[str] = "unlearn orthogonally to the others' updates; they recover without going back"
    needs: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.INDIVIDUAL_UPDATES, Capability.CLIENT_COOPERATION, Capability.PEER_COOPERATION}
    )

    method: Literal["fed_osd"] = "fed_osd"
    rounds: int = Field(default=2, ge=1, le=1000)
    """Unlearning rounds per request."""
    recovery: int = Field(default=1, ge=0, le=1000)
    """Rounds after them in which the others recover."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate at the forgetting client; that of local training when left out."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the forgotten records in each unlearning round."""

    def rounds_for(self, request: Request) -> int:
        return self.rounds + self.recovery

    def plan(self, request: Request, index: int) -> RoundPlan:
        target = Work(weight=1.0, lr=self.lr, epochs=self.epochs) if index < self.rounds else None
        return RoundPlan(target=target, helper=Work(weight=1.0), combine="each", server_state="reset")

    def local(self, role: Role, index: int) -> LocalWork:
        return LocalWork(HalvedCrossEntropy() if role == "target" else MeanNll())

    def combined(self, request: Request, index: int, updates: Mapping[int, Sent], desk: Desk) -> Arrays:
        layout = Layout.of(desk.adapter)
        sent = {client: layout.join(one.update).astype(np.float64) for client, one in updates.items()}
        others = [sent[client] for client in sorted(sent.keys() - {request.client})]
        moved = np.zeros(layout.size)
        if index < self.rounds and request.client in sent:
            moved = across(sent[request.client], others)
        elif index >= self.rounds and others:
            gone = layout.join(desk.adapter).astype(np.float64) - layout.join(desk.kept["reference"])
            moved = np.mean([across(one, [gone]) for one in others], axis=0)
        return from_vector(moved.astype(np.float32), desk.adapter)


def across(update_D: Vector, others: list[Vector]) -> Vector:
    """What of an update is orthogonal to others, as long as it was; zero if nothing is.

    >>> across(np.array([3.0, 4.0]), [np.array([0.0, 9.0])]).tolist()
    [5.0, 0.0]
    """
    if not others:
        return update_D
    _, length_K, direction_KD = np.linalg.svd(np.stack(others), full_matrices=False)
    span_KD = direction_KD[length_K > SMALLEST * length_K.max()]
    left_D = update_D - span_KD.T @ (span_KD @ update_D)
    before, after = np.linalg.norm(update_D), np.linalg.norm(left_D)
    return left_D * (before / after) if after > SMALLEST * before else np.zeros_like(update_D)
