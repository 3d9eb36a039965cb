"""A scenario with small stand-ins for a base and data that are not here, and the plan for the real ones.

The life, its methods, privacy stages and audits are checked as they are. The base becomes the embedded one,
on the CPU and in float32; the data become embedded authors, one for each client that the timeline names.
Names of clients become numbers behind those that it has, and named records so many of the stand-in's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fedsim.assembly.checks import blamed_on
from fedsim.assembly.memory_plan import planned
from fedsim.data.names import EVERYBODY
from fedsim.living.context import LifeContext
from fedsim.model.prompts import is_template
from fedsim.model.shapes import shape_for
from fedsim.model.skeleton import skeleton_of
from fedsim.places import ScenarioError
from fedsim.scenario.file import LoadedScenario, check_scenario, plain_of
from fedsim.scenario.variants import Variant
from fedsim.training.cohorts import UNLIMITED, CohortLimit
from fedsim.training.memory import GPU_TOKENS, Plan, Sizes, limit_by

BASE = "tiny-authors"
LONGEST = 128
"""Tokens of the embedded authors' longest texts, with room."""
CLIENTS = 24
"""Clients where the timeline names none."""
RECORDS = 9
"""Records of a stand-in's client."""
_WHO = frozenset({"client", "clients"})
_NUMBERS = re.compile("[0-9]+( ?- ?[0-9]+)?")


def stood_in(loaded: LoadedScenario) -> LoadedScenario:
    """The scenario with its stand-ins; places of values stay those of the file."""
    scenario = loaded.scenario
    plain: dict[str, Any] = plain_of(scenario)
    tokens = min(LONGEST, scenario.model.max_tokens)
    plain["model"] |= {"base": BASE, "revision": None, "dtype": "float32", "max_tokens": tokens}
    plain["model"] |= {"quantize": None, "attention": "auto"}
    if scenario.model.prompt == "chat" or is_template(scenario.model.prompt):
        plain["model"] |= {"prompt": "{question}", "system": None}
    plain["timeline"], clients = _numbered(plain["timeline"])
    plain["data"] = {"source": "authors", "clients": clients}
    plain["execution"] |= {"device": "cpu"}
    plain["sweep"] = {key: values for key, values in scenario.sweep.items() if not key.startswith("model.")}
    return check_scenario(plain, loaded.source)


def plan_for(variant: Variant, context: LifeContext, memory: int) -> Plan:
    """The plan of a variant as it is written, on a GPU of so many bytes; ``context`` is its stand-in's.

    Every record is taken to be as long as ``model.max_tokens`` allows.
    """
    scenario = variant.scenario
    with blamed_on(variant.source, "model"):
        model = skeleton_of(shape_for(scenario.model), scenario.model)
    sizes = Sizes.of(model, scenario.model.quantize)
    asked = scenario.execution.cohort
    chosen = limit_by(sizes, memory=memory, most=GPU_TOKENS)
    return planned(
        scenario,
        sizes,
        chosen if asked == "auto" else CohortLimit(clients=asked, tokens=UNLIMITED),
        memory=memory,
        context=context,
        tokens_each=scenario.federation.local.at_once * scenario.model.max_tokens,
    )


def bytes_of(text: str) -> int:
    """A size of memory as it is written.

    >>> bytes_of("80GB"), bytes_of("79.6 GiB")
    (80000000000, 85469849190)

    Raises:
        ScenarioError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GB|GiB)\s*", text)
    if found is None or float(found[1]) <= 0:
        raise ScenarioError(f"--memory {text}: must be a size such as 80GB or 79.6GiB")
    return int(float(found[1]) * (1e9 if found[2] == "GB" else 2**30))


def _numbered(timeline: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """The timeline in numbers that stand-ins have, and how many clients that takes."""
    written = [part for event in timeline for part in _named(event)]
    numbers = [int(end) for part in written if _NUMBERS.fullmatch(part) for end in re.findall("[0-9]+", part)]
    first = max(numbers, default=-1) + 1
    names = dict.fromkeys(part for part in written if part != EVERYBODY and not _NUMBERS.fullmatch(part))
    places = {name: str(first + place) for place, name in enumerate(names)}
    found = [{kind: _renamed(told, places) for kind, told in event.items()} for event in timeline]
    return found, first + len(names) or CLIENTS


def _named(event: Any) -> list[str]:
    """What stands for clients in an event, however deep."""
    if not isinstance(event, dict):
        return []
    return [
        found
        for key, value in event.items()
        for found in (_parts(value) if key in _WHO and not isinstance(value, dict) else _named(value))
    ]


def _parts(value: Any) -> list[str]:
    items = value if isinstance(value, list | tuple) else [value]
    return [part.strip() for item in items for part in str(item).split(",")]


def _renamed(told: Any, places: Mapping[str, str]) -> Any:
    """An event's keys with clients by number and records by how many they are."""
    if not isinstance(told, dict):
        return told
    found = {key: _renamed(value, places) for key, value in told.items()}
    for key in _WHO & found.keys():
        if not isinstance(found[key], dict):
            renamed = ", ".join(places.get(part, part) for part in _parts(found[key]))
            found[key] = int(renamed) if renamed.isdecimal() else renamed
    if found.get("records"):
        count = min(len(found["records"]), RECORDS - 1)
        found |= {"records": None, "fraction": count / RECORDS}
    return found
