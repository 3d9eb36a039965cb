"""A sweep's variants: one scenario for each combination of its values."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from fedsim.places import KeyPath, Source
from fedsim.scenario.explain import explain
from fedsim.scenario.overrides import assign, key_path
from fedsim.scenario.scenario import Scenario

MOST_VARIANTS = 256
"""Variants of one run."""
NOT_SWEPT = ("name", "seeds", "data", "timeline", "probes", "execution", "compare", "sweep")
"""Keys that all variants of a run have in common: a run has one life, one set of seeds, one yardstick."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One resolved scenario of a run: without a sweep there is one, named ``base``."""

    name: str
    overrides: Mapping[str, Any]
    scenario: Scenario
    source: Source


def validated(plain: dict[str, Any], source: Source) -> Scenario:
    """Plain data as a scenario; ScenarioError with a line for each problem."""
    try:
        return Scenario.model_validate(plain)
    except ValidationError as error:
        raise explain(error, Scenario, source) from None


def variants_of(scenario: Scenario, plain: dict[str, Any], source: Source) -> Iterator[Variant]:
    """One variant per combination of the sweep's values; the scenario itself without a sweep."""
    if not scenario.sweep:
        yield Variant(name="base", overrides={}, scenario=scenario, source=source)
        return
    count = math.prod(len(values) for values in scenario.sweep.values())
    if count > MOST_VARIANTS:
        raise source.error(("sweep",), f"gives {count:,} variants; at most {MOST_VARIANTS} make one run")
    paths = {key: _sweep_path(key, source) for key in scenario.sweep}
    names = _short_names(list(scenario.sweep))
    taken: set[str] = set()
    for positions in itertools.product(*(range(len(values)) for values in scenario.sweep.values())):
        data, origins, chosen = copy.deepcopy({**plain, "sweep": {}}), dict(source.overrides), {}
        for (key, values), position in zip(scenario.sweep.items(), positions, strict=True):
            place = source.place(("sweep", key, position))
            assign(data, paths[key], copy.deepcopy(values[position]), place)
            origins[paths[key]], chosen[key] = place, values[position]
        swept = replace(source, overrides=origins)
        variant = validated(data, swept)
        name = ",".join(f"{names[key]}={_as_name(value)}" for key, value in chosen.items())
        if name in taken:
            raise source.error(("sweep",), f"gives two variants named {name!r}; each value may stand once")
        taken.add(name)
        yield Variant(name=name, overrides=chosen, scenario=variant, source=swept)


def _sweep_path(key: str, source: Source) -> KeyPath:
    try:
        path = key_path(key)
    except ValueError:
        raise source.error(("sweep", key), "must be a dotted key such as federation.local.lr") from None
    if path[0] in NOT_SWEPT:
        way = (
            "list the method once for each value, with labels"
            if path[0] == "compare"
            else "write one scenario for each value"
        )
        raise source.error(("sweep", key), f"{path[0]} is common to all variants of a run; {way}")
    return path


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or the whole key where two end alike."""
    tails = [key.rsplit(".", 1)[-1] for key in keys]
    return {
        key: tail if tails.count(tail) == 1 else key.replace(".", "-")
        for key, tail in zip(keys, tails, strict=True)
    }


def _as_name(value: object) -> str:
    """A value as part of a variant's name, which is also a directory's."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", str(value)).strip("-.") or "none"
