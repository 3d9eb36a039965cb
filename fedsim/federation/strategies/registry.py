"""Every federated algorithm by name: one line each.

>>> strategy_of("fedadam", eta=0.1).parameters()
{'eta': 0.1, 'tau': 0.001, 'beta_1': 0.9, 'beta_2': 0.99, 'bias_correction': True}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BeforeValidator, Field, WithJsonSchema

from fedsim.config import Rule
from fedsim.federation.strategies.protocol import StrategyConfig
from fedsim.plugins import registered

_LISTED = (
    "averaging:FedAvgConfig",
    "averaging:FedProxConfig",
    "averaging:FedAvgMConfig",
    "scaffold:ScaffoldConfig",
    "adaptive:FedAdagradConfig",
    "adaptive:FedAdamConfig",
    "adaptive:FedYogiConfig",
    "robust:FedMedianConfig",
    "robust:FedTrimmedAvgConfig",
    "robust:KrumConfig",
    "robust:MultiKrumConfig",
    "robust:BulyanConfig",
)
STRATEGIES = registered(
    StrategyConfig, _LISTED, package="fedsim.federation.strategies", group="fedsim.strategies", tag="name"
)


def strategy_of(name: str = "fedavg", **parameters: Any) -> StrategyConfig:
    """The algorithm of a name with its parameters."""
    return STRATEGIES[name](**parameters)


def _by_name(value: object) -> object:
    """A bare name stands for an object with that name; without one, FedAvg is meant."""
    if isinstance(value, str):
        return {"name": value}
    return {"name": "fedavg", **value} if isinstance(value, dict) else value


if TYPE_CHECKING:
    StrategyChoice = StrategyConfig
else:
    _Choice = Annotated[Union[tuple(STRATEGIES.values())], Field(discriminator="name")]  # noqa: UP007
    StrategyChoice = Annotated[
        _Choice,
        BeforeValidator(
            _by_name,
            json_schema_input_type=_Choice
            | Annotated[str, WithJsonSchema({"type": "string", "enum": list(STRATEGIES)})],
        ),
        Rule(f"a name or a mapping with the key name; choices: {', '.join(STRATEGIES)}"),
    ]
