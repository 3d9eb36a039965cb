"""Negation (NoT; Khalil et al., 2025, arXiv:2503.05657): turn the sign of weights, and repair.

Before the first round the chosen factor of every adapter pair is negated, which negates what the adapter adds
(negating both would change nothing). Then the other clients train for some rounds; the forgetting client does
nothing and its data are not touched. Deviation: the paper negates the first layers of a whole network. Known
weakness: everybody's knowledge is turned, not the forgotten client's alone, so all must be learnt again.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fedsim.model.vectors import Arrays
from fedsim.training.objectives import LocalWork, MeanNll
from fedsim.unlearning.desk import Desk
from fedsim.unlearning.protocol import MethodConfig, Role, RoundPlan, Work
from fedsim.unlearning.request import Request
from privacy import Capability


class Negation(MethodConfig):
    """Negate one factor of every adapter, and let the others train it right."""

    title: ClassVar[str] = "NoT"
    summary: ClassVar[str] = "negate one factor of every adapter; the others train what is theirs back"
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.PEER_COOPERATION})

    method: Literal["negation"] = "negation"
    factor: Literal["A", "B"] = "B"
    """The factor that is negated; arrays that are no factors of LoRA are left as they are."""
    rounds: int = Field(default=3, ge=1, le=1000)
    """Rounds in which the others train, per request."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of the others; that of local training when left out."""

    def rounds_for(self, request: Request) -> int:
        return self.rounds

    def plan(self, request: Request, index: int) -> RoundPlan:
        return RoundPlan(helper=Work(weight=1.0, lr=self.lr), moves="draft", server_state="reset")

    def local(self, role: Role, index: int) -> LocalWork:
        return LocalWork(MeanNll())

    def draft(self, request: Request, desk: Desk) -> Arrays | None:
        mark = f"lora_{self.factor}"
        return {name: -value if mark in name else value for name, value in desk.adapter.items()}

    def settle(self, request: Request, index: int, desk: Desk) -> Arrays | None:
        if index < self.rounds - 1:
            return None
        return desk.kept.get("draft")
