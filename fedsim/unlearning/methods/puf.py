"""PUF (Mora et al., 2025, arXiv:2504.05822): average the forgetting client's update with its sign turned.

In an unlearning round the forgetting client trains on the forgotten records as it always did; the server adds
its update negated and scaled to the mean of the others', who train on theirs. Nothing else differs from a
round of training, so it passes the stages that training passes. Deviation: the paper scales by the number of
clients in the round, here ``strength`` is the weight itself. Known weakness: a client whose update is near
zero, because it is known by heart, gives the server nothing to subtract.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fedsim.training.objectives import LocalWork, MeanNll
from fedsim.unlearning.protocol import MethodConfig, Role, RoundPlan, ServerState, Work
from fedsim.unlearning.request import Request
from privacy import Capability


class Puf(MethodConfig):
    """Rounds of training in which the forgetting client's update counts negatively."""

    title: ClassVar[str] = "PUF"
    summary: ClassVar[str] = "rounds of training in which the forgetting client's update is subtracted"
    needs: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.CLIENT_COOPERATION, Capability.PEER_COOPERATION}
    )

    method: Literal["puf"] = "puf"
    rounds: int = Field(default=2, ge=1, le=1000)
    """Unlearning rounds per request."""
    strength: float = Field(default=1.0, gt=0)
    """Weight in size of the forgetting client's update, where the others' mean has weight 1."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate at the forgetting client; that of local training when left out."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the forgotten records in each round."""
    server_state: ServerState = "rebase"
    """The server's momentum in unlearning rounds: left out (rebase), forgotten (reset), or used (keep)."""

    def rounds_for(self, request: Request) -> int:
        return self.rounds

    def plan(self, request: Request, index: int) -> RoundPlan:
        return RoundPlan(
            target=Work(weight=-self.strength, lr=self.lr, epochs=self.epochs),
            helper=Work(weight=1.0),
            server_state=self.server_state,
        )

    def local(self, role: Role, index: int) -> LocalWork:
        return LocalWork(MeanNll())
