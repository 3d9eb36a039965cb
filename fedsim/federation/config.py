"""The federation's part of a scenario: who takes part, how updates are combined."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedsim.config import Config, Float
from fedsim.federation.strategies.registry import StrategyChoice, strategy_of
from fedsim.life.config import FixedCohort
from fedsim.training.config import LocalConfig


class FederationConfig(Config):
    """How clients train together."""

    strategy: StrategyChoice = strategy_of()
    """Federated algorithm: a name, or an object with its parameters."""
    participation: Annotated[Float, Field(gt=0, le=1)] | FixedCohort = 0.5
    """Probability with which each client takes part in a round, independently; or a fixed cohort."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Weight of a client's update in the mean; of the robust strategies multikrum alone takes a mean."""
    max_update_norm: Annotated[Float, Field(gt=0)] | None = None
    """Longest update, by L2 norm, that the server takes; a longer one is its sender's failure. For
    federations without a privacy stage that bounds updates; such a bound is checked anyway."""
    local: LocalConfig = LocalConfig()

    @model_validator(mode="after")
    def _trains_as_claimed(self) -> FederationConfig:
        self.strategy.check(self.local)
        return self
