"""Projected gradient ascent (PGA; Halimi et al., 2022, arXiv:2207.05521): climb, but not far from the others.

The others' average is estimated as w_ref = (N w - w_i) / (N - 1), with w_i what the forgetting client's
training makes of w. From there the client ascends on what it wants forgotten, and after each round the
adapter is projected into a ball around w_ref. The life's next rounds repair. Deviations: the server projects
once a round, not the client at every step; the radius is a share of |w_ref|, where the paper takes a third of
the mean distance to random models; the ascent does not stop early. Known weakness: with N large, w_ref is w,
which knows all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fedsim.model.vectors import Arrays
from fedsim.training.objectives import LocalWork, MeanNll
from fedsim.unlearning.desk import Desk
from fedsim.unlearning.methods.grad_ascent import NegatedNll
from fedsim.unlearning.protocol import MethodConfig, Role, RoundPlan, Work
from fedsim.unlearning.request import Request

CENTRE = "centre"
"""What the request keeps: the estimated average of the others."""


class Pga(MethodConfig):
    """Ascend from the others' average, within a ball around it."""

    title: ClassVar[str] = "PGA"
    summary: ClassVar[str] = "ascend from the estimated average of the others, projected to a ball around it"

    method: Literal["pga"] = "pga"
    rounds: int = Field(default=2, ge=1, le=999)
    """Rounds of ascent, after one in which the average is estimated."""
    clients: int = Field(default=10, ge=2, le=100_000)
    """N: among how many clients the forgetting one is one part."""
    radius: float = Field(default=1 / 3, gt=0)
    """Radius of the ball, as a share of the length of the estimated average."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of the ascent; that of local training when left out."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the forgotten records in each round."""

    def rounds_for(self, request: Request) -> int:
        return 1 + self.rounds

    def plan(self, request: Request, index: int) -> RoundPlan:
        if index == 0:
            return RoundPlan(target=Work(weight=1.0), moves="nothing")
        return RoundPlan(target=Work(weight=1.0, lr=self.lr, epochs=self.epochs))

    def local(self, role: Role, index: int) -> LocalWork:
        return LocalWork(MeanNll() if index == 0 else NegatedNll())

    def remember(self, request: Request, index: int, desk: Desk) -> Mapping[str, Arrays]:
        if index > 0 or "round-0" not in desk.kept:
            return {}
        learned = desk.kept["round-0"]
        return {
            CENTRE: {
                name: (value - learned[name] / (self.clients - 1)).astype(np.float32)
                for name, value in desk.adapter.items()
            }
        }

    def settle(self, request: Request, index: int, desk: Desk) -> Arrays | None:
        centre = desk.kept.get(CENTRE)
        if centre is None or index == 0:
            return centre
        away = {name: value.astype(np.float64) - centre[name] for name, value in desk.adapter.items()}
        distance, most = _length(away), self.radius * _length(centre)
        share = 1.0 if distance <= most else most / distance
        return {name: (centre[name] + share * away[name]).astype(np.float32) for name in centre}


def _length(arrays: Mapping[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(value, dtype=np.float64).sum() for value in arrays.values())))
