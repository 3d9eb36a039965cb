"""SCAFFOLD (Karimireddy et al., 2020, arXiv:1910.06378): control variates take the clients' drift out.

The server keeps c, each client c_i, both zero at first. A client takes K steps y <- y - eta (g - c_i + c)
from the server's x, then sets c_i' = c_i - c + (x - y) / (K eta) (option II) and sends y - x and c_i' - c_i.
The server moves by the mean update, and c by the mean change times the share of clients that took part. With
``weighting: uniform`` c stays the mean of the c_i of all who have been there, as in the paper; who joins
counts with zero. Deviations: eta_g is 1; a gradient is clipped together with its correction. Rounds of
unlearning correct nothing, and send zeros. What a forgotten client has given to c stays in it. Behind a stage
that changes what is sent (clip, noise, compression), c is the mean of what was sent, while clients remember
what they did; the bound of a clip holds for update and control together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.config import ConfigError
from fedsim.federation.strategies.protocol import COMMON, StrategyConfig, Trained, Vectors
from fedsim.training.config import LocalConfig
from fedsim.training.drift import Correction, Drift

if TYPE_CHECKING:
    from flwr.serverapp.strategy import FedAvg

CONTROL = "control"


class ScaffoldConfig(StrategyConfig):
    """FedAvg whose clients are corrected by what all clients' gradients are in the mean."""

    name: Literal["scaffold"] = "scaffold"
    summary: ClassVar[str] = "FedAvg with control variates against client drift (Karimireddy et al., 2020)"
    averages: ClassVar[bool] = True
    sends: ClassVar[tuple[str, ...]] = (CONTROL,)

    def make(self) -> FedAvg:
        from flwr.serverapp.strategy import FedAvg

        return FedAvg(**COMMON)

    def check(self, local: LocalConfig) -> None:
        if local.optimizer != "sgd" or local.momentum > 0:
            raise ConfigError(
                "scaffold takes optimizer: sgd with momentum: 0, as its control variates are mean gradients",
                "local",
                "optimizer" if local.optimizer != "sgd" else "momentum",
            )

    def drift(self, shared: Vectors, own: Vectors) -> Drift | None:
        if CONTROL not in shared:
            return None
        return Correction((shared[CONTROL] - _control(own, shared[CONTROL]))[None])

    def after(self, trained: Trained, shared: Vectors, own: Vectors) -> tuple[Vectors, Vectors]:
        common = _control(shared, trained.update)
        change = -common - trained.update / np.float32(trained.local.rates(trained.steps).sum())
        return {CONTROL: _control(own, trained.update) + change}, {CONTROL: change}

    def served(self, shared: Vectors, mean: Vectors, share: float, before: float) -> Vectors:
        moved = np.float32(share) * mean[CONTROL]
        return {CONTROL: np.float32(before) * _control(shared, moved) + moved}


def _control(vectors: Vectors, like: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors.get(CONTROL, np.zeros_like(like))
