"""Adaptive server optimisers: FedAdagrad, FedAdam, FedYogi (Reddi et al., 2021, arXiv:2003.00295)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field

from fedsim.config import Bool, Float
from fedsim.federation.strategies.protocol import COMMON, StrategyConfig, copied
from fedsim.model.vectors import Arrays

if TYPE_CHECKING:
    from flwr.serverapp.strategy import FedAvg

    from fedsim.federation.adaptive import Adaptive


class AdaptiveConfig(StrategyConfig):
    """What the three have in common."""

    eta: Float = Field(default=1e-2, gt=0, le=1000)
    """The server's learning rate."""
    tau: Float = Field(default=1e-3, gt=0)
    """Degree of adaptivity."""

    def remembered(self, strategy: FedAvg) -> dict[str, Arrays]:
        """``current``, the moments ``m`` and ``v``, and how many rounds are in them: ``steps``."""
        own = cast("Adaptive", strategy)
        steps = {"count": np.array([own.steps], dtype=np.int64)} if own.steps else None
        groups: dict[str, Any] = {"steps": steps, "current": own.current_arrays, "m": own.m_t, "v": own.v_t}
        return copied(groups)

    def restore(self, strategy: FedAvg, groups: Mapping[str, Arrays]) -> None:
        own = cast("Adaptive", strategy)
        own.steps = int(groups["steps"]["count"][0]) if "steps" in groups else 0
        own.current_arrays = dict(groups["current"]) if "current" in groups else None
        own.m_t = dict(groups["m"]) if "m" in groups else None
        own.v_t = dict(groups["v"]) if "v" in groups else None


class FedAdagradConfig(AdaptiveConfig):
    """Server learning rates that only shrink (Reddi et al., 2021)."""

    name: Literal["fedadagrad"] = "fedadagrad"
    summary: ClassVar[str] = "adaptive server learning rates that only shrink (Reddi et al., 2021)"

    def make(self) -> FedAvg:
        from fedsim.federation.adaptive import FedAdagrad

        return FedAdagrad(**COMMON, **self.parameters())


class WithMoments(AdaptiveConfig):
    """What FedAdam and FedYogi have in common."""

    beta_1: Float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta_2: Float = Field(default=0.99, ge=0, lt=1)
    """Decay of the second moment."""


class FedAdamConfig(WithMoments):
    """Adam at the server (Kingma & Ba, 2015; Reddi et al., 2021)."""

    name: Literal["fedadam"] = "fedadam"
    summary: ClassVar[str] = "Adam at the server (Kingma & Ba, 2015; Reddi et al., 2021)"
    bias_correction: Bool = True
    """Moments corrected for their start at 0 (Kingma & Ba); false: as Reddi et al. write it."""

    def make(self) -> FedAvg:
        from fedsim.federation.adaptive import FedAdam

        return FedAdam(**COMMON, **self.parameters())


class FedYogiConfig(WithMoments):
    """Yogi at the server: the second moment changes additively (Zaheer et al., 2018; Reddi et al., 2021)."""

    name: Literal["fedyogi"] = "fedyogi"
    summary: ClassVar[str] = "Yogi at the server (Zaheer et al., 2018; Reddi et al., 2021)"

    def make(self) -> FedAvg:
        from fedsim.federation.adaptive import FedYogi

        return FedYogi(**COMMON, **self.parameters())
