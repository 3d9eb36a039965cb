"""Small lives for tests: written as events, read, unrolled, merged into a tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.life.branches import unroll
from fedsim.life.config import FixedCohort
from fedsim.life.reading import read_life
from fedsim.life.roster import Participation
from fedsim.life.script import Life
from fedsim.life.steps import Branch, Step
from fedsim.life.tree import Segment, build_tree
from fedsim.places import Source
from fedsim.scenario.scenario import Scenario

Records = Mapping[int, tuple[str, ...]]


def records_of(clients: int, each: int = 2) -> dict[int, tuple[str, ...]]:
    """``{0: ("0/a", "0/b"), ...}``"""
    return {client: tuple(f"{client}/{letter}" for letter in "abcdefgh"[:each]) for client in range(clients)}


def scenario_of(
    timeline: Sequence[Mapping[str, Any]], compare: Sequence[Any] = (), participation: Any = 0.5
) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "t",
            "timeline": list(timeline),
            "compare": list(compare),
            "federation": {"participation": participation},
        }
    )


def life_of(
    timeline: Sequence[Mapping[str, Any]], records: Records, compare: Sequence[Any] = (), seed: int = 1
) -> Life:
    """The life of these events, as if event ``i`` stood on line ``i + 1`` of ``s.yaml``."""
    lines = {("timeline", index): index + 1 for index in range(len(timeline))}
    source = Source(file="s.yaml", lines=lines)
    scenario = scenario_of(timeline, compare)
    return read_life(scenario.timeline, scenario.compare, records, seed=seed, source=source)


@dataclass(frozen=True, kw_only=True)
class Lived:
    """A life with its branches and their tree."""

    life: Life
    branches: tuple[Branch, ...]
    tree: Segment

    def steps(self, branch: str) -> tuple[Step, ...]:
        return next(each.steps for each in self.branches if each.name == branch)

    def read_back(self, branch: str) -> tuple[Step, ...]:
        """A branch's steps, by walking the tree."""
        return tuple(step for segment in self.path(branch) for step in segment.steps)

    def path(self, branch: str) -> list[Segment]:
        """The segments that a branch runs through, from the root on."""
        found, here = [self.tree], self.tree
        while below := [child for child in here.children if branch in child.branches]:
            (here,) = below
            found.append(here)
        return found


def live(
    timeline: Sequence[Mapping[str, Any]],
    records: Records,
    *,
    compare: Sequence[Any] = (),
    participation: float | FixedCohort = 0.5,
    seed: int = 1,
) -> Lived:
    life = life_of(timeline, records, compare, seed)
    rule = Participation(seed=seed, rule=participation)
    branches = unroll(life, records, rule, scenario_of(timeline, compare).compare)
    return Lived(life=life, branches=branches, tree=build_tree(branches))
