"""A scenario with small stand-ins for a base and data that are not here, and the plan for the real ones.

The life, its methods, privacy stages and audits are checked as they are. The base becomes the embedded one,
on the CPU and in float32; the data become embedded authors, one for each client that the timeline names.
"""

from __future__ import annotations

import re
from typing import Any

from fedsim.assembly.checks import blamed_on
from fedsim.assembly.memory_plan import planned
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
"""Clients where the timeline names none by number."""


def stood_in(loaded: LoadedScenario) -> LoadedScenario:
    """The scenario with its stand-ins; places of values stay those of the file."""
    scenario = loaded.scenario
    plain: dict[str, Any] = plain_of(scenario)
    tokens = min(LONGEST, scenario.model.max_tokens)
    plain["model"] |= {"base": BASE, "revision": None, "dtype": "float32", "max_tokens": tokens}
    plain["model"] |= {"quantize": None, "attention": "auto"}
    if scenario.model.prompt == "chat" or is_template(scenario.model.prompt):
        plain["model"] |= {"prompt": "{question}", "system": None}
    plain["data"] = {"source": "authors", "clients": _clients(plain["timeline"])}
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
        clients=context.most_at_once,
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


def _clients(timeline: list[dict[str, Any]]) -> int:
    """As many clients as the timeline names by number."""
    named = [value for event in timeline for value in _below(event, ("client", "clients"))]
    numbers = [int(number) for value in named for number in re.findall(r"\d+", str(value))]
    return max(numbers) + 1 if numbers else CLIENTS


def _below(event: Any, keys: tuple[str, ...]) -> list[Any]:
    """Values of some keys, however deep."""
    if not isinstance(event, dict):
        return []
    return [
        found
        for key, value in event.items()
        for found in ([value] if key in keys and not isinstance(value, dict) else _below(value, keys))
    ]
