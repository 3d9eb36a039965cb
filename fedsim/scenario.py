"""A scenario: one YAML file that scripts a federation's life, as frozen, checked configuration.

``load_scenario`` reads the file with line numbers; whatever is wrong is said before any training, with
file, line, key, rule and the nearest valid choice (see ``fedsim.scenario_errors``).

>>> Join(clients="0-2, 5").clients
(0, 1, 2, 5)
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fedsim.unlearning.registry import METHODS, MethodChoice
from privacy import StageConfig


class Config(BaseModel):
    """Base of all scenario parts: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# ---------------------------------------------------------------------------------------- model


class LoraConfig(Config):
    """Low-rank adapters, by PEFT."""

    r: int = Field(default=8, ge=1, le=1024)
    """Rank."""
    alpha: float = Field(default=16.0, gt=0)
    """Scale: the delta is alpha / r * B A."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input, drawn from a keyed stream."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers to adapt: names, a regular expression, or ``all-linear``."""
    train: Literal["AB", "B"] = "AB"
    """Which factors clients train; with ``B`` the average of the factors is the average of the deltas."""
    peft: dict[str, Any] = Field(default_factory=dict)
    """Any other argument of PEFT's LoraConfig, passed on as it is."""


class ModelConfig(Config):
    """The frozen base and what is trained on it."""

    base: str = "tiny-authors"
    """An embedded base, a Hugging Face model directory, or a name on the hub."""
    revision: str | None = None
    """Revision on the hub."""
    lora: LoraConfig | None = LoraConfig()
    """Adapters; null trains all parameters."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the base's weights; what is trained is always float32."""
    prompt: str = "{question}"
    """How a question becomes a prompt."""
    max_tokens: int = Field(default=128, ge=8, le=8192)
    """Longest prompt with its answer; longer ones are cut."""

    @model_validator(mode="after")
    def _placeholder(self) -> ModelConfig:
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt={self.prompt!r} must contain the placeholder {{question}}")
        return self


# ----------------------------------------------------------------------------------------- data


class AuthorsData(Config):
    """Embedded fictitious authors; nothing is downloaded."""

    source: Literal["authors"] = "authors"
    clients: int = Field(default=24, ge=1, le=100_000)
    """Clients with data of their own; they take part once they join."""
    authors_per_client: int = Field(default=1, ge=1, le=100)
    """Private authors of each client."""
    partition: Literal["by-author", "iid", "dirichlet"] = "by-author"
    """Who holds which record."""
    dirichlet_alpha: float = Field(default=0.5, gt=0)
    """Concentration of the Dirichlet partition; smaller is more skewed."""
    holdout_authors: int = Field(default=20, ge=2, le=1000)
    """Authors nobody ever trains on."""
    public_authors: int = Field(default=20, ge=1, le=600)
    """Authors of the base's pre-training on which utility is probed."""


class TofuData(Config):
    """TOFU (Maini et al., 2024): one author, one client; from a folder of JSON lines or the hub."""

    source: Literal["tofu"]
    path: Path | None = None
    """Folder with full.json, forget10_perturbed.json, retain_perturbed.json and so on."""
    hub: str | None = None
    """Data set name on the hub, for example locuslab/TOFU."""

    @model_validator(mode="after")
    def _one_place(self) -> TofuData:
        if (self.path is None) == (self.hub is None):
            raise ValueError(
                "give exactly one of path and hub, for example --set data.path=FOLDER "
                "or --set data.hub=locuslab/TOFU"
            )
        return self


class JsonlData(Config):
    """Plain JSON lines, one record a line, with a column that says whose it is."""

    source: Literal["jsonl"]
    path: Path
    """File of the clients' records."""
    client_column: str = "client"
    question_column: str = "question"
    answer_column: str = "answer"
    holdout: Path | None = None
    """File of records nobody trains on; without it nothing can be compared with never-trained data."""
    public: Path | None = None
    """File of records the base knows already, for utility."""


DataChoice = Annotated[AuthorsData | TofuData | JsonlData, Field(discriminator="source")]


# ----------------------------------------------------------------------------------- federation


class LocalConfig(Config):
    """Training at one client in one round; the optimiser starts afresh each time."""

    epochs: int = Field(default=1, ge=1, le=1000)
    """Passes over the client's records."""
    batch_size: int = Field(default=8, ge=1, le=4096)
    """Records a step."""
    lr: float = Field(default=2e-3, gt=0)
    """Learning rate."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum of SGD; AdamW ignores it."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """L2 norm at which a step's gradient is clipped; null never clips."""


class StrategyConfig(Config):
    """A federated algorithm of Flower, with the parameters of its own that it takes."""

    name: Literal["fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi"] = "fedavg"
    proximal_mu: float = Field(default=0.01, ge=0)
    """FedProx: weight of the proximal term."""
    server_learning_rate: float = Field(default=1.0, gt=0)
    """FedAvgM: the server's learning rate."""
    server_momentum: float = Field(default=0.9, ge=0, lt=1)
    """FedAvgM: the server's momentum."""
    eta: float = Field(default=1e-2, gt=0)
    """FedAdagrad, FedAdam, FedYogi: the server's learning rate."""
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    """FedAdam, FedYogi: decay of the first moment."""
    beta_2: float = Field(default=0.99, ge=0, lt=1)
    """FedAdam, FedYogi: decay of the second moment."""
    tau: float = Field(default=1e-3, gt=0)
    """FedAdagrad, FedAdam, FedYogi: degree of adaptivity."""

    @model_validator(mode="after")
    def _own_parameters(self) -> StrategyConfig:
        own = STRATEGY_PARAMETERS[self.name]
        for key in sorted(self.model_fields_set - {"name", *own}):
            takes = f"it takes {', '.join(own)}" if own else "it takes none"
            raise ValueError(f"{key} is not a parameter of {self.name}; {takes}")
        return self

    def parameters(self) -> dict[str, float]:
        """The parameters this algorithm takes, by Flower's names."""
        return {key: getattr(self, key) for key in STRATEGY_PARAMETERS[self.name]}


STRATEGY_PARAMETERS: dict[str, tuple[str, ...]] = {
    "fedavg": (),
    "fedprox": ("proximal_mu",),
    "fedavgm": ("server_learning_rate", "server_momentum"),
    "fedadagrad": ("eta", "tau"),
    "fedadam": ("eta", "beta_1", "beta_2", "tau"),
    "fedyogi": ("eta", "beta_1", "beta_2", "tau"),
}


class FixedCohort(Config):
    """A fixed number of clients a round, by keyed priorities."""

    cohort: int = Field(ge=1)
    """Clients a round."""
    replacement: Literal["next", "none"] = "next"
    """Whether the next client in the order takes the place of one that is gone, or the place stays empty."""


def _named(key: str) -> Any:
    """A validator that lets a bare name stand for an object with that name."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class FederationConfig(Config):
    """How clients train together."""

    strategy: Annotated[StrategyConfig, _named("name")] = StrategyConfig()
    """Federated algorithm: a name, or an object with its parameters."""
    participation: Annotated[float, Field(gt=0, le=1)] | FixedCohort = 0.5
    """Probability with which each client takes part in a round, independently; or a fixed cohort."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Weight of a client's update in the mean."""
    local: LocalConfig = LocalConfig()


# ------------------------------------------------------------------------------------- timeline


def parse_clients(value: object) -> object:
    """``3``, ``"0-19"``, ``"0-3, 7"`` or a list of ids, as a tuple of ids; anything else as it is."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return (value,)
    if not isinstance(value, str):
        return value
    ids: list[int] = []
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.strip().isdigit()):
            raise ValueError(f"clients={value!r} must be an id, a range like 0-19, or a list of these")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise ValueError(f"clients={value!r} has the empty range {part.strip()!r}; write {high}-{low}")
        ids.extend(range(low, high + 1))
    return tuple(ids)


ClientIds = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(parse_clients), Field(min_length=1)
]


class Join(Config):
    """Clients enter the federation."""

    clients: ClientIds


class Train(Config):
    """Rounds of federated training."""

    rounds: int = Field(ge=1, le=100_000)


class Forget(Config):
    """A client asks to be forgotten: all of it, some of its records, or a fraction of them."""

    client: int = Field(ge=0)
    records: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ids of the records to forget; the client stays with the others."""
    fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of the client's records to forget, drawn by a keyed stream; the client stays."""

    @model_validator(mode="after")
    def _one_scope(self) -> Forget:
        if self.records is not None and self.fraction is not None:
            raise ValueError("give records or fraction, not both; leave both out to forget the whole client")
        return self


class Leave(Config):
    """A client leaves; nothing is erased."""

    client: int = Field(ge=0)


class Rejoin(Config):
    """A client that left or was forgotten comes back with the data named here."""

    client: int = Field(ge=0)
    records: tuple[str, ...] | Literal["all"] = "all"
    """Ids of the records it brings, or all."""


class ProbeEvent(Config):
    """Measure now, items and generation included."""

    label: str = "probe"


class Event(Config):
    """One thing that happens; exactly one key."""

    join: Join | None = None
    train: Train | None = None
    forget: Forget | None = None
    leave: Leave | None = None
    rejoin: Rejoin | None = None
    probe: ProbeEvent | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Event:
        given = [name for name in Event.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"an event has exactly one of {', '.join(Event.model_fields)}; this one has "
                f"{' and '.join(given) if given else 'none'}"
            )
        return self


# ------------------------------------------------------------------------ measuring and running


class ProbesConfig(Config):
    """What is measured, and how often."""

    every: int = Field(default=1, ge=1)
    """Rounds between two probes; rounds with events and the last are always probed."""
    records_per_client: int = Field(default=2, ge=1)
    """Records of each retained client in the retain probe."""
    max_retain: int = Field(default=40, ge=2)
    """Most records in the retain probe."""
    max_holdout: int = Field(default=24, ge=2)
    """Most records in the holdout probe."""
    max_public: int = Field(default=24, ge=2)
    """Most records in each public probe."""
    generate: Literal["always", "events", "never"] = "events"
    """When answers are generated (ROUGE-L): each probe, around events and at the end, or never."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest generated answer, in tokens; never longer than the longest answer probed."""
    headline: str = "fact_probability"
    """The metric that titles and verdicts quote."""
    tolerance: float = Field(default=0.05, gt=0)
    """Excess within which a branch counts as having reached the reference."""
    window: int = Field(default=2, ge=1)
    """Rounds in a row that the excess must stay within the tolerance."""


class ExecutionConfig(Config):
    """What changes speed and safety but not results."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    threads: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    """Threads of torch on the CPU; ``auto`` gives one per 4 million parameters of the base, up to all cores."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Rounds between two checkpoints."""


def _methods_by_name(value: object) -> object:
    """Let method names stand for themselves, and pass ``keep`` and ``leave`` (always there) by."""
    if not isinstance(value, (list, tuple)):
        return value
    chosen = []
    for item in value:
        if item in ("keep", "leave", "retrain"):
            continue
        if isinstance(item, str) and item not in METHODS:
            chosen.append({"method": item})
        else:
            chosen.append({"method": item} if isinstance(item, str) else item)
    return chosen


class Scenario(Config):
    """A federation's life, and what to compare and measure in it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """Names the run directory: lower-case letters, digits, dot, dash, underscore."""
    description: str = ""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(default=(1,), min_length=1)
    """One whole life per seed."""
    model: ModelConfig = ModelConfig()
    data: DataChoice = AuthorsData()
    federation: FederationConfig = FederationConfig()
    privacy: tuple[StageConfig, ...] = ()
    """Stages that each update passes on its way out, in order."""
    timeline: tuple[Event, ...] = Field(min_length=1)
    compare: Annotated[tuple[MethodChoice, ...], BeforeValidator(_methods_by_name)] = ()
    """Unlearning methods to compare; keep, leave and retrain are always there."""
    probes: ProbesConfig = ProbesConfig()
    execution: ExecutionConfig = ExecutionConfig()
    sweep: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Dotted keys with the values to try; every combination is a variant of the run."""

    @model_validator(mode="after")
    def _distinct(self) -> Scenario:
        names = ["keep", "leave", "retrain", *(method.branch for method in self.compare)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"compare has two branches named {twice[0]!r}; give one of them a label")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)} must differ from each other")
        return self
