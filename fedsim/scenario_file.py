"""Scenario files: YAML with line numbers, overrides, sweeps, and errors a person can act on.

ruamel.yaml is used because PyYAML reads ``1e-5`` as a string and lets a repeated key win silently.
"""

from __future__ import annotations

import copy
import difflib
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fedsim.compared import method_positions
from fedsim.data.rows import not_utf8, refuse_wide
from fedsim.scenario import Scenario
from fedsim.scenario_errors import KeyPath, ScenarioError, Source, dotted, explain
from fedsim.yaml_reader import UnreadableError, as_plain, lines_of, parse_mapping, parse_value

__all__ = [
    "KeyPath",
    "LoadedScenario",
    "ScenarioError",
    "Source",
    "Variant",
    "check_scenario",
    "dump_scenario",
    "json_schema",
    "load_scenario",
    "read_scenario",
]

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


@dataclass(frozen=True, kw_only=True)
class LoadedScenario:
    """A scenario with its variants and the places its values came from."""

    scenario: Scenario
    variants: tuple[Variant, ...]
    source: Source


def load_scenario(path: Path, overrides: Sequence[str] = ()) -> LoadedScenario:
    """Read, override and check a scenario file.

    ``overrides`` are ``dotted.key=value`` strings; values are read as YAML.

    Raises:
        ScenarioError: with one line per problem.
    """
    return read_scenario(_read(path), str(path), overrides, folder=path.parent)


def read_scenario(
    text: str, file: str, overrides: Sequence[str] = (), *, folder: Path | None = None
) -> LoadedScenario:
    """Like ``load_scenario``, from the text of ``file``.

    Paths in it that exist below ``folder`` are relative to it; others, and those of overrides, to the working
    directory.
    """
    raw = parse_mapping(text, file)
    lines, plain = dict(lines_of(raw)), as_plain(raw)
    if folder is not None:
        plain = _below(folder, plain)
    changed: dict[KeyPath, str] = {}
    for override in overrides:
        changed |= _apply(plain, override)
    return check_scenario(plain, Source(file=file, lines=lines, overrides=changed))


PATHS = (("data", "path"), ("data", "holdout"), ("data", "public"), ("model", "base"))
"""Keys whose values are paths, or may be."""


def _below(folder: Path, plain: dict[str, Any]) -> dict[str, Any]:
    """Plain data with the relative paths that exist below a folder made whole."""
    found = dict(plain)
    for section, key in PATHS:
        values = found.get(section)
        value = values.get(key) if isinstance(values, dict) else None
        if isinstance(value, str) and value and not Path(value).is_absolute() and (folder / value).exists():
            found[section] = {**found[section], key: str((folder / value).resolve())}
    return found


def anchored(scenario: Scenario) -> Scenario:
    """A scenario whose paths mean the same from every working directory: what a run directory keeps."""
    for section, key in PATHS:
        part = getattr(scenario, section)
        value = getattr(part, key, None)
        if value is not None and not Path(value).is_absolute() and Path(value).exists():
            whole = type(value)(Path(value).resolve())
            scenario = scenario.model_copy(update={section: part.model_copy(update={key: whole})})
    return scenario


def check_scenario(plain: dict[str, Any], source: Source) -> LoadedScenario:
    """Validate plain data as a scenario and expand its sweep."""
    source = replace(source, methods_at=method_positions(plain.get("compare")))
    scenario = _validate(plain, source)
    variants = tuple(_variants(scenario, plain, source))
    return LoadedScenario(scenario=scenario, variants=variants, source=source)


def dump_scenario(scenario: Scenario) -> str:
    """The resolved scenario as YAML, every default filled in; reading it back gives the same scenario."""
    data = scenario.model_dump(mode="json", exclude_none=False)
    data["timeline"] = [event.model_dump(mode="json", exclude_none=True) for event in scenario.timeline]
    strategy = {"name": scenario.federation.strategy.name, **scenario.federation.strategy.parameters()}
    data["federation"]["strategy"] = strategy
    data["privacy"] = [stage.model_dump(mode="json", exclude_none=True) for stage in scenario.privacy]
    data["compare"] = [method.model_dump(mode="json", exclude_none=True) for method in scenario.compare]
    yaml = YAML()
    yaml.width = 110
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()


def json_schema() -> dict[str, Any]:
    """The JSON schema of scenario files, for completion in editors."""
    schema = TypeAdapter(Scenario).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _validate(plain: dict[str, Any], source: Source) -> Scenario:
    try:
        return Scenario.model_validate(plain)
    except ValidationError as error:
        raise explain(error, Scenario, source) from None


# ------------------------------------------------------------------------------------ sweeping


def _variants(scenario: Scenario, plain: dict[str, Any], source: Source) -> Iterator[Variant]:
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
            _assign(data, paths[key], copy.deepcopy(values[position]), place)
            origins[paths[key]], chosen[key] = place, values[position]
        swept = replace(source, overrides=origins)
        variant = _validate(data, swept)
        name = ",".join(f"{names[key]}={_as_name(value)}" for key, value in chosen.items())
        if name in taken:
            raise source.error(("sweep",), f"gives two variants named {name!r}; each value may stand once")
        taken.add(name)
        yield Variant(name=name, overrides=chosen, scenario=variant, source=swept)


def _sweep_path(key: str, source: Source) -> KeyPath:
    try:
        path = _key_path(key)
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


# ----------------------------------------------------------------------------- reading the file


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
        refuse_wide(path, content)
        return content.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise ScenarioError(f"{path}: no such file{_nearby_files(path)}") from None
    except UnicodeDecodeError as error:
        before = content[: error.start].splitlines(keepends=True) or [b""]
        whole = before[-1].endswith((b"\n", b"\r"))
        line, start = len(before) + whole, 0 if whole else len(before[-1])
        raw = content[error.start - start :].splitlines()[0]
        raise ScenarioError(not_utf8(f"{path}:{line}", path, content, raw, start)) from None
    except ValueError as error:
        raise ScenarioError(str(error)) from None
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read ({error.strerror}){_nearby_files(path)}") from None


def _nearby_files(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("scenarios")
    names = sorted(str(found) for found in folder.glob("*.yaml")) if folder.is_dir() else []
    near = difflib.get_close_matches(str(path), names, n=1, cutoff=0.3)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}" if names else ""


# --------------------------------------------------------------------------------- overriding


def _key_path(key: str) -> KeyPath:
    """``timeline.3.train.rounds`` or ``timeline[3].train.rounds`` as a path; a sweep's keys are dotted."""
    if key.startswith("sweep."):
        return ("sweep", key.removeprefix("sweep."))
    parts = re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(".")
    if not all(re.fullmatch(r"[^\s\[\].]+", part) for part in parts):
        raise ValueError(f"key={key!r} must be a dotted key such as federation.local.lr")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def _apply(data: dict[str, Any], override: str) -> dict[KeyPath, str]:
    """Apply one ``dotted.key=value`` to plain data in place; gives the key's path with what replaced it."""
    key, equals, text = override.partition("=")
    where = f"--set {override}"
    try:
        path = _key_path(key)
        value = parse_value(text)
    except UnreadableError as error:
        raise ScenarioError(f"{where}: the value is not valid YAML: {error}") from None
    except (ValueError, YAMLError):
        path = ()
    if not equals or not path:
        raise ScenarioError(f"{where}: must be KEY=VALUE, for example federation.local.lr=1e-3")
    _assign(data, path, value, where)
    return {path: where}


def _assign(data: Any, path: KeyPath, value: Any, where: str) -> None:
    """Set the value at ``path`` in plain data; mappings on the way are made, list items must be there."""
    node = data
    for depth, part in enumerate(path):
        inside = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if not inside and not (isinstance(node, dict) and isinstance(part, str)):
            raise ScenarioError(f"{where}: {_no_such_place(path[:depth], node)}")
        if depth == len(path) - 1:
            node[part] = value
            return
        child = node[part] if inside else node.get(part)
        if isinstance(child, str) and (path[:depth] == ("compare",) or part == "strategy"):
            child = {"method" if path[0] == "compare" else "name": child}
        elif child is None and isinstance(path[depth + 1], str):
            child = {}
        node[part] = child
        node = child


def _no_such_place(path: KeyPath, node: object) -> str:
    """Why a key cannot stand below ``path``, where ``node`` stands."""
    if isinstance(node, list):
        items = f"items 0 to {len(node) - 1}, as in {dotted((*path, 0))}" if node else "no items"
        return f"{dotted(path)} is a list with {items}"
    if isinstance(node, dict):
        return f"{dotted(path) or 'the scenario'} is a mapping with the keys {', '.join(node)}"
    if node is None:
        return f"{dotted(path)} is not in the scenario; give it as a whole"
    return f"{dotted(path)} is the value {node!r}, not a mapping"
