"""Task arithmetic (Ilharco et al., 2023, arXiv:2212.04089): learn the forgotten harder, then go back.

A draft of the adapter is trained on the forgotten records for some rounds, by the forgetting client alone.
Once, at the end, the adapter goes ``strength`` times the draft's way in the opposite direction:
theta - strength * (theta_draft - theta). Known weakness: the way back is a straight line, so what the records
share with others' (formats, common words) is lost with them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.model.vectors import Arrays
from fedsim.training.objectives import LocalWork, MeanNll
from fedsim.unlearning.desk import Desk
from fedsim.unlearning.protocol import MethodConfig, Role, RoundPlan, Work
from fedsim.unlearning.request import Request


class DraftReversed(MethodConfig):
    """Base of the methods that train a draft on the forgotten records and go the opposite way."""

    rounds: int = Field(default=2, ge=1, le=1000)
    """Rounds in which the draft is trained."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate at the forgetting client; that of local training when left out."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the forgotten records in each round."""
    strength: float = Field(default=1.0, gt=0)
    """How far to go back, as a multiple of the draft's way (Ilharco et al. choose it on held-out data)."""

    def rounds_for(self, request: Request) -> int:
        return self.rounds

    def plan(self, request: Request, index: int) -> RoundPlan:
        return RoundPlan(target=Work(weight=1.0, lr=self.lr, epochs=self.epochs), moves="draft")

    def local(self, role: Role, index: int) -> LocalWork:
        return LocalWork(MeanNll())

    def chosen(self, way: NDArray[np.float32]) -> NDArray[np.float32]:
        """The part of the draft's way in one tensor that is gone back."""
        return way

    def settle(self, request: Request, index: int, desk: Desk) -> Arrays | None:
        if index < self.rounds - 1 or "draft" not in desk.kept:
            return None
        draft = desk.kept["draft"]
        return {
            name: value - self.strength * self.chosen(draft[name] - value)
            for name, value in desk.adapter.items()
        }


class TaskVector(DraftReversed):
    """Subtract what training on the forgotten records would add."""

    title: ClassVar[str] = "Task vector"
    summary: ClassVar[str] = "train a draft on the forgotten records and go the opposite way"

    method: Literal["task_vector"] = "task_vector"
