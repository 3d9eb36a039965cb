"""The mean of the updates, and what is a small change of it: FedAvg, FedProx, FedAvgM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field

from fedsim.config import Float
from fedsim.federation.strategies.protocol import COMMON, StrategyConfig, Vectors, copied
from fedsim.model.vectors import Arrays
from fedsim.training.drift import Drift, Proximal

if TYPE_CHECKING:
    from flwr.serverapp.strategy import FedAvg, FedAvgM


class FedAvgConfig(StrategyConfig):
    """The weighted mean of the clients' updates (McMahan et al., 2017, arXiv:1602.05629)."""

    name: Literal["fedavg"] = "fedavg"
    averages: ClassVar[bool] = True
    summary: ClassVar[str] = "weighted mean of the updates (McMahan et al., 2017)"

    def make(self) -> FedAvg:
        from flwr.serverapp.strategy import FedAvg

        return FedAvg(**COMMON)


class FedProxConfig(StrategyConfig):
    """FedAvg whose clients are pulled back to where they started (Li et al., 2020, arXiv:1812.06127)."""

    name: Literal["fedprox"] = "fedprox"
    averages: ClassVar[bool] = True
    summary: ClassVar[str] = "FedAvg with a proximal term at the clients (Li et al., 2020)"
    proximal_mu: Float = Field(default=0.01, ge=0)
    """Weight of the proximal term."""

    def make(self) -> FedAvg:
        from flwr.serverapp.strategy import FedProx

        return FedProx(**COMMON, proximal_mu=self.proximal_mu)

    def drift(self, shared: Vectors, own: Vectors) -> Drift | None:
        return Proximal(self.proximal_mu) if self.proximal_mu > 0 else None


class FedAvgMConfig(StrategyConfig):
    """FedAvg with momentum at the server (Hsu et al., 2019, arXiv:1909.06335)."""

    name: Literal["fedavgm"] = "fedavgm"
    summary: ClassVar[str] = "FedAvg with momentum at the server (Hsu et al., 2019)"
    server_learning_rate: Float = Field(default=1.0, gt=0, le=1000)
    """The server's learning rate."""
    server_momentum: Float = Field(default=0.9, ge=0, lt=1)
    """The server's momentum."""

    def make(self) -> FedAvg:
        from flwr.serverapp.strategy import FedAvgM

        return FedAvgM(**COMMON, **self.parameters())

    def remembered(self, strategy: FedAvg) -> dict[str, Arrays]:
        """``current`` and its ``momentum``."""
        own = cast("FedAvgM", strategy)
        if own.current_arrays is None:
            return {}
        current = {name: array.numpy() for name, array in own.current_arrays.items()}
        momentum = own.momentum_vector
        velocity = dict(zip(current, momentum, strict=True)) if momentum is not None else None
        return copied({"current": current, "momentum": velocity})

    def restore(self, strategy: FedAvg, groups: Mapping[str, Arrays]) -> None:
        from fedsim.federation.records import to_record

        own = cast("FedAvgM", strategy)
        own.current_arrays = to_record(groups["current"]) if "current" in groups else None
        own.momentum_vector = list(groups["momentum"].values()) if "momentum" in groups else None
