"""The federation's part of a scenario: who takes part, how updates are combined.

>>> StrategyConfig(name="fedadam", eta=0.1).parameters()
{'eta': 0.1, 'beta_1': 0.9, 'beta_2': 0.99, 'tau': 0.001, 'bias_correction': True}
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from fedsim.config import Bool, Config, ConfigError, Float, Int, Rule
from fedsim.life.config import FixedCohort
from fedsim.training.config import LocalConfig


class StrategyConfig(Config):
    """A federated algorithm of Flower, with the parameters of its own that it takes.

    From fedmedian on they combine updates one by one, which masks and noise on the sum forbid. Rounds of
    unlearning keep the weights of their plan whatever the algorithm: a median would drop the target."""

    name: Literal[
        "fedavg",
        "fedprox",
        "fedavgm",
        "fedadagrad",
        "fedadam",
        "fedyogi",
        "fedmedian",
        "fedtrimmedavg",
        "krum",
        "multikrum",
        "bulyan",
    ] = "fedavg"
    proximal_mu: Float = Field(default=0.01, ge=0)
    """FedProx: weight of the proximal term."""
    server_learning_rate: Float = Field(default=1.0, gt=0, le=1000)
    """FedAvgM: the server's learning rate."""
    server_momentum: Float = Field(default=0.9, ge=0, lt=1)
    """FedAvgM: the server's momentum."""
    eta: Float = Field(default=1e-2, gt=0, le=1000)
    """FedAdagrad, FedAdam, FedYogi: the server's learning rate."""
    beta_1: Float = Field(default=0.9, ge=0, lt=1)
    """FedAdam, FedYogi: decay of the first moment."""
    beta_2: Float = Field(default=0.99, ge=0, lt=1)
    """FedAdam, FedYogi: decay of the second moment."""
    tau: Float = Field(default=1e-3, gt=0)
    """FedAdagrad, FedAdam, FedYogi: degree of adaptivity."""
    bias_correction: Bool = True
    """FedAdam: moments corrected for their start at 0 (Kingma & Ba); false: as Reddi et al. write it."""
    beta: Float = Field(default=0.2, ge=0, lt=0.5)
    """FedTrimmedAvg: share of clients to cut at each end, coordinate by coordinate; rounded down."""
    num_malicious_nodes: Int = Field(default=1, ge=0, le=10_000)
    """Krum, MultiKrum, Bulyan: malicious clients in a cohort that are borne; f of them take 2 f + 3 clients,
    with Bulyan 4 f + 3."""
    num_nodes_to_select: Int = Field(default=3, ge=1, le=10_000)
    """MultiKrum: clients whose mean is taken; it takes as many and the malicious ones."""

    @model_validator(mode="after")
    def _own_parameters(self) -> StrategyConfig:
        own = STRATEGY_PARAMETERS[self.name]
        foreign = sorted(self.model_fields_set - {"name", *own})
        if foreign:
            takers = [name for name, keys in STRATEGY_PARAMETERS.items() if set(foreign) <= set(keys)]
            raise ConfigError(
                f"{self.name} does not take {' and '.join(foreign)}; it takes {', '.join(own) or 'none'}"
                + (f". {', '.join(takers)} would" if takers else ""),
                foreign[0],
            )
        return self

    def parameters(self) -> dict[str, float]:
        """The parameters this algorithm takes, by Flower's names."""
        return {key: getattr(self, key) for key in STRATEGY_PARAMETERS[self.name]}


STRATEGY_PARAMETERS: dict[str, tuple[str, ...]] = {
    "fedavg": (),
    "fedprox": ("proximal_mu",),
    "fedavgm": ("server_learning_rate", "server_momentum"),
    "fedadagrad": ("eta", "tau"),
    "fedadam": ("eta", "beta_1", "beta_2", "tau", "bias_correction"),
    "fedyogi": ("eta", "beta_1", "beta_2", "tau"),
    "fedmedian": (),
    "fedtrimmedavg": ("beta",),
    "krum": ("num_malicious_nodes",),
    "multikrum": ("num_malicious_nodes", "num_nodes_to_select"),
    "bulyan": ("num_malicious_nodes",),
}


def _by_name(value: object) -> object:
    """A bare name stands for an object with that name."""
    return {"name": value} if isinstance(value, str) else value


StrategyChoice = Annotated[
    StrategyConfig,
    BeforeValidator(
        _by_name,
        json_schema_input_type=StrategyConfig
        | Annotated[str, WithJsonSchema({"type": "string", "enum": list(STRATEGY_PARAMETERS)})],
    ),
    Rule(f"a name or a mapping with the key name; choices: {', '.join(STRATEGY_PARAMETERS)}"),
]


class FederationConfig(Config):
    """How clients train together."""

    strategy: StrategyChoice = StrategyConfig()
    """Federated algorithm: a name, or an object with its parameters."""
    participation: Annotated[Float, Field(gt=0, le=1)] | FixedCohort = 0.5
    """Probability with which each client takes part in a round, independently; or a fixed cohort."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Weight of a client's update in the mean; of the robust strategies multikrum alone takes a mean."""
    max_update_norm: Annotated[Float, Field(gt=0)] | None = None
    """Longest update, by L2 norm, that the server takes; a longer one is its sender's failure. For
    federations without a privacy stage that bounds updates; such a bound is checked anyway."""
    local: LocalConfig = LocalConfig()
