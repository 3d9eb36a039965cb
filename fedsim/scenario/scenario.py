"""A scenario: one YAML file that scripts a federation's life, as frozen, checked configuration.

``load_scenario`` reads the file with line numbers; whatever is wrong is said before any training, with
file, line, key, rule and the nearest valid choice (see ``fedsim.scenario.explain``).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from fedsim.audits.registry import AuditChoice
from fedsim.config import Config, Int, Rule
from fedsim.data.config import AuthorsData, DataChoice
from fedsim.federation.config import FederationConfig
from fedsim.life.events.registry import Event
from fedsim.measuring.config import ProbesConfig
from fedsim.model.config import ModelConfig
from fedsim.scenario.compare import MethodList
from fedsim.scenario.execution import ExecutionConfig
from privacy import StageConfig

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
    audits: tuple[AuditChoice, ...] = ()
    """Attacks on the run, once it has ended."""
    probes: ProbesConfig = ProbesConfig()
    execution: ExecutionConfig = ExecutionConfig()
    sweep: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Dotted keys with the values to try; every combination is a variant of the run."""
