"""Selective synaptic dampening (Foster et al., 2024, arXiv:2308.07707): shrink what matters to the forgotten.

Importances are diagonal Fisher information, mean squared gradients of single records. Where the forgotten
records' exceed ``threshold`` times everybody else's, a parameter is multiplied by min(dampening * I_rest /
I_forgotten, 1). One round asks the forgetting client for importances, the next one the round's cohort;
nobody trains. Defaults are the paper's for vision models (alpha 10, lambda 1); adapters need their own.
Deviation: the paper takes I_rest over all training data, here it is the mean over the helping clients.
Known weakness: which parameters are picked depends on the seed, and a factor of an adapter near zero is
dampened in vain.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fedsim.model.vectors import Arrays
from fedsim.training.objectives import LocalWork, MeanNll
from fedsim.unlearning.desk import Desk
from fedsim.unlearning.protocol import MethodConfig, Role, RoundPlan, Work
from fedsim.unlearning.request import Request
from privacy import Capability


class Ssd(MethodConfig):
    """Dampen the parameters that matter more to the forgotten records than to the others'."""

    title: ClassVar[str] = "SSD"
    summary: ClassVar[str] = "shrink parameters that matter more to the forgotten records than to the others'"
    needs: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.CLIENT_COOPERATION, Capability.PEER_COOPERATION}
    )

    method: Literal["ssd"] = "ssd"
    threshold: float = Field(default=10.0, gt=0)
    """How many times as important to the forgotten records a parameter must be to be dampened (alpha)."""
    dampening: float = Field(default=1.0, gt=0)
    """A dampened parameter keeps this multiple of its ratio of importances, at most all (lambda)."""

    def rounds_for(self, request: Request) -> int:
        return 2

    def plan(self, request: Request, index: int) -> RoundPlan:
        one = Work(weight=1.0)
        if index == 0:
            return RoundPlan(target=one, moves="nothing")
        return RoundPlan(helper=one, moves="nothing")

    def local(self, role: Role, index: int) -> LocalWork:
        return LocalWork(MeanNll(), importance=True)

    def settle(self, request: Request, index: int, desk: Desk) -> Arrays | None:
        if not {"round-0", "round-1"} <= desk.kept.keys():
            return None
        forgotten, rest = desk.kept["round-0"], desk.kept["round-1"]
        return {
            name: (value * self._factor(forgotten[name], rest[name])).astype(np.float32)
            for name, value in desk.adapter.items()
        }

    def _factor(self, forgotten: np.ndarray, rest: np.ndarray) -> np.ndarray:
        """What each parameter is multiplied by, in [0, 1]; noise below zero counts as no importance."""
        forgotten, rest = np.maximum(forgotten, 0.0), np.maximum(rest, 0.0)
        chosen = forgotten > self.threshold * rest
        ratio = np.divide(self.dampening * rest, forgotten, out=np.ones_like(rest), where=forgotten > 0)
        return np.where(chosen, np.minimum(ratio, 1.0), 1.0)
