"""One variant and seed of a run, ready to live: everything but the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedsim.federation.attempt import Engine
from fedsim.federation.config import FederationConfig
from fedsim.life.holdings import Holdings
from fedsim.life.script import Life
from fedsim.life.steps import Branch, Composed, Line
from fedsim.life.tree import Segment
from fedsim.measuring.config import ProbesConfig
from fedsim.measuring.probes import ProbeSet
from fedsim.model.adapter import AdapterModel
from fedsim.unlearning.protocol import MethodConfig
from privacy import Ledger, StageConfig, Unit

EPSILON_OF: Mapping[Unit, str] = {"example": "epsilon", "client": "client_epsilon"}
"""Names of the metrics that say what was spent, by what it protects."""


@dataclass(frozen=True, kw_only=True)
class LifeContext:
    """One variant and seed, ready to run: everything but the state."""

    variant: str
    seed: int
    federation: FederationConfig
    methods: tuple[MethodConfig, ...]
    probing: ProbesConfig
    privacy: tuple[StageConfig, ...]
    checkpoint_every: int
    life: Life
    branches: tuple[Branch, ...]
    composed: tuple[Composed, ...]
    tree: Segment
    probe_rounds: Mapping[str, frozenset[int]]
    replay_from: Mapping[Line, Mapping[int, int]]
    """For each line of lives and each request, the first round that retraining must replay."""
    engine: Engine
    model: AdapterModel
    probes: ProbeSet
    clients_per_batch: int
    """How many clients to batch across branches: per core on a CPU, in total on GPUs."""
    holdings: Holdings
    epsilon: Callable[[Ledger], Mapping[str, Mapping[Unit, float]]]
    """Epsilon spent by each client so far, by what it protects; empty without a DP stage."""

    @property
    def ensembles(self) -> Mapping[str, tuple[Line, ...]]:
        """The methods that answer with several adapters, with the lines of lives these are made of."""
        return {one.name: one.lines for one in self.composed if one.life == "retrain"}

    @property
    def largest_cohort(self) -> int:
        """The most clients that take part in a round of a branch; 0 where nobody ever does."""
        cohorts = (len(step.cohort) for segment, _ in self.tree.walk() for step in segment.steps)
        return max(cohorts, default=0)

    @property
    def most_at_once(self) -> int:
        """The most clients that may train in a round, over all branches; 1 at least."""
        return max(self.largest_cohort * len(self.branches), 1)

    def rounds(self) -> int:
        """Rounds over all segments of the tree."""
        return sum(len(segment.steps) for segment, _ in self.tree.walk())
