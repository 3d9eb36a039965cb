"""FedEraser (Liu et al., 2021, IWQoS): walk the stored rounds again, the others' updates calibrated.

A draft begins with the adapter before the forgotten data came. For each stored round since, those who took
part then and are still there train from the draft for a little; each of their stored updates U is turned
into the new direction, |U| V / |V| for every array, and the draft moves by their mean with the weights of
then. When the last is done, the draft is the adapter. Until then users have the old one.

Deviations: a second request goes back as far as the first; whoever was forgotten helps with no round from
before, though what it sent stays stored; where nobody came to any calibration, the adapter stays as it is.
The algorithm must move by the mean of the updates, as the walk does. Known weakness: a calibration can
shorten no step, and what the rounds between the stored ones gave is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.model.vectors import Arrays
from fedsim.training.objectives import LocalWork, MeanNll
from fedsim.unlearning.desk import Desk, Sent
from fedsim.unlearning.protocol import MethodConfig, Role, RoundPlan, Work
from fedsim.unlearning.request import Request
from privacy import Capability


class FedEraser(MethodConfig):
    """Rebuild the adapter from stored updates of the others, calibrated by a little training."""

    title: ClassVar[str] = "FedEraser"
    summary: ClassVar[str] = "walk the stored rounds again with the others' updates, calibrated"
    needs: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.INDIVIDUAL_UPDATES, Capability.GLOBAL_MODELS, Capability.PEER_COOPERATION}
    )

    method: Literal["fed_eraser"] = "fed_eraser"
    every: int = Field(default=2, ge=1, le=1000)
    """One round in so many is stored, from the first on (the paper: 2)."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of a calibration; that of local training when left out."""
    epochs: int = Field(default=1, ge=1)
    """Passes over a helping client's records in each calibration (the paper: half of those of training)."""

    def stores(self, round_: int) -> bool:
        return (round_ - 1) % self.every == 0

    def _walked(self, request: Request) -> list[int]:
        """The stored rounds that are walked again; before the first of them the data had no part."""
        stored = [round_ for round_ in request.trained if self.stores(round_)]
        start = max((round_ for round_ in stored if round_ <= request.since), default=1)
        return [round_ for round_ in stored if round_ >= start]

    def rounds_for(self, request: Request) -> int:
        return len(self._walked(request))

    def plan(self, request: Request, index: int) -> RoundPlan:
        helper = Work(weight=1.0, lr=self.lr, epochs=self.epochs)
        return RoundPlan(helper=helper, combine="each", moves="draft", server_state="reset")

    def local(self, role: Role, index: int) -> LocalWork:
        return LocalWork(MeanNll())

    def helped_by(self, request: Request, index: int) -> int | None:
        return self._walked(request)[index]

    def draft(self, request: Request, desk: Desk) -> Arrays | None:
        return desk.history.adapter(self._walked(request)[0])

    def combined(self, request: Request, index: int, updates: Mapping[int, Sent], desk: Desk) -> Arrays:
        stored = desk.history.updates(self._walked(request)[index])
        both = sorted(stored.keys() & updates.keys())
        total = sum(stored[client].weight for client in both)
        moved = {name: np.zeros(value.shape) for name, value in desk.adapter.items()}
        for client in both:
            share = stored[client].weight / total
            for name, sum_ in moved.items():
                sum_ += share * _calibrated(stored[client].update[name], updates[client].update[name])
        return {name: sum_.astype(np.float32) for name, sum_ in moved.items()}

    def settle(self, request: Request, index: int, desk: Desk) -> Arrays | None:
        if index < self.rounds_for(request) - 1 or "draft" not in desk.kept:
            return None
        draft, begun = desk.kept["draft"], desk.history.adapter(self._walked(request)[0])
        walked = any(not np.array_equal(draft[name], begun[name]) for name in begun)
        return draft if walked else None


def _calibrated(stored: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.float64]:
    """The length of a stored update in the direction of a new one; zero if that has none."""
    length = np.linalg.norm(new.astype(np.float64))
    if length == 0:
        return np.zeros(new.shape)
    return np.linalg.norm(stored.astype(np.float64)) / length * new.astype(np.float64)
