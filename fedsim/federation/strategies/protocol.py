"""What a federated algorithm is: its parameters, the Flower strategy behind it, and what that remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Config
from fedsim.model.vectors import Arrays
from fedsim.training.config import LocalConfig
from fedsim.training.drift import Drift

if TYPE_CHECKING:
    from flwr.serverapp.strategy import FedAvg


Vectors = Mapping[str, NDArray[np.float32]]
"""Vectors (d,) of the adapter's size, by name; one that is missing is zero."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a client did in a round of training: its update (d,), in how many steps, under which settings."""

    update: NDArray[np.float32]
    steps: int
    local: LocalConfig


class StrategyConfig(Config):
    """A federated algorithm with its parameters.

    Rounds of unlearning keep the weights of their plan whatever the algorithm: a median would drop the
    target.
    """

    name: str
    summary: ClassVar[str]
    """One line for lists: what it does, and its paper."""
    sends: ClassVar[tuple[str, ...]] = ()
    """Names of the vectors (d,) that travel beside the adapter in each round of training, both ways. They
    pass the privacy stages as one vector with the update: clip, masks and noise hold for all of it."""
    averages: ClassVar[bool] = False
    """Whether the adapter moves by the mean of the updates and nothing else."""
    one_by_one: ClassVar[bool] = False
    """Whether it combines updates one by one, which masks and noise on the sum forbid."""

    def parameters(self) -> dict[str, Any]:
        """Its parameters, by Flower's names."""
        return self.model_dump(exclude={"name"})

    def make(self) -> FedAvg:
        """Flower's strategy, told to take every node that the roster offers."""
        raise NotImplementedError

    def check(self, local: LocalConfig) -> None:
        """Refuse local training with which it is not what it claims.

        Raises:
            ConfigError: its key is below ``local``.
        """

    def drift(self, shared: Vectors, own: Vectors) -> Drift | None:
        """What it adds to each step of a client's local training, if anything.

        ``shared`` is what the server sends beside the adapter, ``own`` what the client remembers of earlier
        rounds, by name; in rounds of unlearning both are empty.
        """
        return None

    def after(self, trained: Trained, shared: Vectors, own: Vectors) -> tuple[Vectors, Vectors]:
        """What a client remembers after a round of training, and what it sends beside its update."""
        return own, {}

    def served(self, shared: Vectors, mean: Vectors, share: float, before: float) -> Vectors:
        """What the server sends from now on, given the mean of what a round's contributors sent.

        ``share`` is the contributors' share of all clients that have been there in this branch so far, and
        ``before`` the share of those who had been before this round; both in (0, 1].
        """
        return shared

    def remembered(self, strategy: FedAvg) -> dict[str, Arrays]:
        """What a strategy keeps from round to round, as named groups of arrays: copies, none of them empty.

        ``current``, if there is such a group, is the adapter that it saw last.
        """
        return {}

    def restore(self, strategy: FedAvg, groups: Mapping[str, Arrays]) -> None:
        """The inverse of ``remembered``: groups that are absent are forgotten."""

    def fewest(self) -> int:
        """Updates that it needs at least to be what it claims."""
        return 1

    def too_few(self, count: int) -> str | None:
        """Why ``count`` updates are not enough, or None if they are.

        None for zero updates: an empty round is reported elsewhere.
        """
        least = self.fewest()
        if not 0 < count < least:
            return None
        have = f"there {'is' if count == 1 else 'are'} {count}"
        return f"{self._claim()} needs at least {least} updates; {have}"

    def _claim(self) -> str:
        own = ", ".join(f"{name}={value}" for name, value in self.parameters().items())
        return f"{self.name} with {own}" if own else self.name


COMMON: dict[str, Any] = {"min_train_nodes": 1, "min_available_nodes": 1, "weighted_by_key": "weight"}
"""What each of Flower's strategies is told here."""


def copied(groups: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Arrays]:
    """Groups of arrays, copied; those that are None or empty are left out."""
    return {
        name: {key: value.copy() for key, value in group.items()} for name, group in groups.items() if group
    }
