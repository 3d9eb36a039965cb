"""A scenario: one YAML file that scripts a federation's life, as frozen, checked configuration.

``load_scenario`` reads the file with line numbers; whatever is wrong is said before any training, with
file, line, key, rule and the nearest valid choice (see ``fedsim.scenario_errors``).

>>> StrategyConfig(name="fedadam", eta=0.1).parameters()
{'eta': 0.1, 'beta_1': 0.9, 'beta_2': 0.99, 'tau': 0.001, 'bias_correction': True}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from fedsim.audits.config import AuditConfig
from fedsim.compared import MethodList
from fedsim.config import Bool, Config, ConfigError, Float, Int, Rule
from fedsim.events import Event
from fedsim.lora_options import check_option
from privacy import StageConfig

# ---------------------------------------------------------------------------------------- model


class LoraConfig(Config):
    """Low-rank adapters, by PEFT."""

    r: Int = Field(default=8, ge=1, le=1024)
    """Rank."""
    alpha: Float = Field(default=16.0, gt=0)
    """Scale: the delta is alpha / r * B A."""
    dropout: Float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input, drawn from a keyed stream."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers to adapt: names, a regular expression, or ``all-linear``."""
    train: Literal["AB", "B"] = "AB"
    """Which factors clients train; with ``B`` the average of the factors is the average of the deltas."""
    peft: dict[str, Any] = Field(default_factory=dict)
    """Other options of PEFT's LoraConfig, passed on as they are; those of `fedsim.lora_options`."""

    @model_validator(mode="after")
    def _options_work(self) -> LoraConfig:
        for name, value in self.peft.items():
            check_option(name, value)
        return self


MOST_QUESTIONS = 4
"""How often a prompt may repeat the question."""


def _with_placeholder(prompt: str) -> str:
    count = prompt.count("{question}")
    if count == 0:
        raise ValueError(f"found {prompt!r}; must contain the placeholder {{question}}")
    if count > MOST_QUESTIONS:
        raise ValueError(f"repeats {{question}} {count:,} times; at most {MOST_QUESTIONS}")
    return prompt


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
    prompt: Annotated[str, AfterValidator(_with_placeholder)] = "{question}"
    """How a question becomes a prompt."""
    max_tokens: Int = Field(default=128, ge=8, le=8192)
    """Longest prompt with its answer; longer ones are cut."""


# ----------------------------------------------------------------------------------------- data


MOST_RECORDS = 100_000
"""Records of the embedded authors that one run encodes."""


class AuthorsData(Config):
    """Embedded fictitious authors; nothing is downloaded."""

    source: Literal["authors"] = "authors"
    clients: Int = Field(default=24, ge=1, le=100_000)
    """Clients with data of their own; they take part once they join."""
    authors_per_client: Int = Field(default=1, ge=1, le=100)
    """Private authors of each client."""
    facts_per_author: Int = Field(default=9, ge=1, le=9)
    """Facts that are told of each private author, of nine."""
    partition: Literal["by-author", "iid", "dirichlet"] = "by-author"
    """Who holds which record."""
    dirichlet_alpha: Float = Field(default=0.5, gt=0)
    """Concentration of the Dirichlet partition; smaller is more skewed."""
    holdout_authors: Int = Field(default=20, ge=2, le=1000)
    """Authors nobody ever trains on."""
    public_authors: Int = Field(default=20, ge=1, le=600)
    """Authors of the base's pre-training on which utility is probed."""

    @model_validator(mode="after")
    def _can_be_held(self) -> AuthorsData:
        count = self.clients * self.authors_per_client * self.facts_per_author
        if count > MOST_RECORDS:
            raise ConfigError(f"makes {count:,} records in all; at most {MOST_RECORDS:,}", "clients")
        return self


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
    ignore_columns: tuple[str, ...] = ()
    """Columns that the files have besides those that are read; any other unknown column is refused."""
    holdout: Path | None = None
    """File of records nobody trains on; without it nothing can be compared with never-trained data."""
    public: Path | None = None
    """File of records the base knows already, for utility."""

    @model_validator(mode="after")
    def _columns_apart(self) -> JsonlData:
        named = (self.client_column, self.question_column, self.answer_column)
        if len(set(named)) < len(named):
            raise ValueError(
                f"client_column, question_column and answer_column are {', '.join(named)}; "
                "name three different columns"
            )
        return self


DataChoice = Annotated[AuthorsData | TofuData | JsonlData, Field(discriminator="source")]


# ----------------------------------------------------------------------------------- federation


class LocalConfig(Config):
    """Training at one client in one round; the optimiser starts afresh each time."""

    epochs: Int = Field(default=1, ge=1, le=1000)
    """Passes over the client's records."""
    batch_size: Int = Field(default=8, ge=1, le=4096)
    """Records a step."""
    lr: Float = Field(default=2e-3, gt=0)
    """Learning rate."""
    optimizer: Literal["adamw", "sgd", "spsa"] = "adamw"
    """spsa takes no gradients: two forward passes a step give one byte, from which the step is made. These
    bytes are all that a client sends, unless a privacy stage changes its update or hides it."""
    weight_decay: Float = Field(default=0.0, ge=0, le=1000)
    """AdamW's and SGD's; SPSA takes none."""
    momentum: Float = Field(default=0.0, ge=0, lt=1)
    """Momentum of SGD; AdamW ignores it, SPSA takes none."""
    max_grad_norm: Float | None = Field(default=1.0, gt=0)
    """L2 norm at which a step's gradient is clipped; null never clips; SPSA ignores it."""

    @model_validator(mode="after")
    def _made_of_bytes(self) -> LocalConfig:
        for name in ("weight_decay", "momentum"):
            if self.optimizer == "spsa" and getattr(self, name) > 0:
                raise ConfigError(
                    f"spsa takes no {name}: its steps are made of their bytes alone; drop it", name
                )
        return self


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


class FixedCohort(Config):
    """A fixed number of clients a round, by keyed priorities; with a rate, at most that number."""

    cohort: Int = Field(ge=1)
    """Clients a round."""
    rate: Float | None = Field(default=None, gt=0, le=1)
    """Probability with which each client is drawn, independently; of those, at most ``cohort`` take part."""
    replacement: Literal["next", "none"] = "next"
    """Without a rate: whether the next in order takes the place of one that is gone, or it stays empty."""


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


# ------------------------------------------------------------------------ measuring and running


class ProbesConfig(Config):
    """What is measured, and how often."""

    every: Int = Field(default=1, ge=1)
    """Rounds between two probes; rounds with events and the last are always probed."""
    records_per_client: Int = Field(default=2, ge=1)
    """Records of each retained client in the retain probe."""
    max_retain: Int = Field(default=40, ge=2)
    """Most records in the retain probe."""
    max_holdout: Int = Field(default=24, ge=2)
    """Most records in the holdout probe."""
    max_public: Int = Field(default=24, ge=2)
    """Most records in each public probe."""
    generate: Literal["always", "events", "never"] = "always"
    """When answers are generated (ROUGE-L): each probe, around events and at the end, or never."""
    max_new_tokens: Int = Field(default=64, ge=1)
    """Longest generated answer, in tokens; never longer than the longest answer probed."""
    headline: Literal[
        "fact_probability",
        "probability",
        "paraphrase_probability",
        "exact_memorisation",
        "extraction_strength",
    ] = "fact_probability"
    """The metric that titles and verdicts quote."""
    tolerance: Float = Field(default=0.05, gt=0)
    """Excess within which a branch counts as having reached the reference."""
    window: Int = Field(default=2, ge=1)
    """Rounds in a row that the excess must stay within the tolerance."""


class RayConfig(Config):
    """Flower's simulation runtime on Ray: clients train in worker processes, each with its own base."""

    address: str | None = None
    """A running cluster, for example ``auto`` or ``10.0.0.1:6379``; null takes the environment's RAY_ADDRESS,
    or starts Ray on this machine."""
    cpus: Int | None = Field(default=None, ge=1)
    """CPUs that Ray may use when it starts on this machine; null is all."""
    cpus_per_worker: Int = Field(default=1, ge=1)
    """CPUs of a worker, and its threads of torch; as many workers are started as fit."""
    gpus_per_worker: Annotated[Float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of a worker, or a share of one; ``auto`` is one where the device is a GPU, else none."""


class DeploymentConfig(Config):
    """A SuperLink and its SuperNodes on this machine, over TLS on the loopback interface."""

    nodes: Int = Field(default=2, ge=1, le=64)
    """SuperNodes; clients are dealt out among them. As many as clients makes each a node of its own."""


class ExecutionConfig(Config):
    """What changes speed and safety; results change by rounding at most."""

    engine: Literal["in-process", "ray", "deployment"] = "in-process"
    """Where clients run: in this process, in Ray's workers, or behind SuperNodes."""
    client_timeout: Float = Field(default=600.0, gt=0)
    """Seconds without an answer from any client after which those still missing have failed; in-process
    clients are always waited for."""
    ray: RayConfig = RayConfig()
    deployment: DeploymentConfig = DeploymentConfig()
    device: str = "auto"
    """``cpu``, ``cuda:N``, ``cuda`` (all GPUs share the clients), or ``auto``: cuda where there is one."""
    threads: Annotated[Int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    """Cohorts that train at once on the CPU, a thread each, and threads of whatever else torch computes;
    ``auto`` measures one and all cores when the run begins."""
    cohort: Annotated[Int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    """Most clients of a cohort; 1 is one at a time; ``auto`` goes by tokens of a step and memory."""
    checkpoint_every: Int = Field(default=10, ge=1)
    """Rounds between two checkpoints."""


MOST_SEEDS = 256
"""Seeds of one scenario: each is a whole life."""


def _distinct_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(seeds) > MOST_SEEDS:
        raise ValueError(f"gives {len(seeds):,} seeds; at most {MOST_SEEDS}")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"found {list(seeds)}; seeds must differ from each other")
    return seeds


class Scenario(Config):
    """A federation's life, and what to compare and measure in it."""

    name: Annotated[
        str,
        Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$"),
        Rule("lower-case letters, digits, dot, dash and underscore, beginning with a letter or digit"),
    ]
    """Names the run directory: lower-case letters, digits, dot, dash, underscore."""
    description: str = ""
    seeds: Annotated[
        tuple[Annotated[Int, Field(ge=0, le=2**31 - 1)], ...],
        Field(min_length=1),
        AfterValidator(_distinct_seeds),
    ] = (1,)
    """One whole life per seed."""
    model: ModelConfig = ModelConfig()
    data: DataChoice = AuthorsData()
    federation: FederationConfig = FederationConfig()
    privacy: tuple[StageConfig, ...] = ()
    """Stages that each update passes on its way out, in order."""
    timeline: tuple[Event, ...] = Field(min_length=1)
    compare: MethodList = ()
    """Unlearning methods to compare; keep, leave and retrain are always there."""
    audits: tuple[AuditConfig, ...] = ()
    """Attacks on the run's privacy, once it has ended."""
    probes: ProbesConfig = ProbesConfig()
    execution: ExecutionConfig = ExecutionConfig()
    sweep: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Dotted keys with the values to try; every combination is a variant of the run."""
