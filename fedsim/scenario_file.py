"""Scenario files: YAML with line numbers, overrides, sweeps, and errors a person can act on.

ruamel.yaml is used because PyYAML reads ``1e-5`` as a string and lets a repeated key win silently.
"""

from __future__ import annotations

import difflib
import io
import itertools
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError

from fedsim.scenario import Scenario

KeyPath = tuple[str | int, ...]


class ScenarioError(ValueError):
    """A scenario cannot be run as written. The message names file, line, key, rule and a way out."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the values of a scenario came from: lines of the file, and command-line overrides."""

    file: str
    lines: Mapping[KeyPath, int]
    overrides: frozenset[KeyPath] = frozenset()

    def place(self, key: KeyPath) -> str:
        """``file:line: a.b[2].c`` of a key, or the nearest key above it that stands in the file."""
        shown = dotted(key)
        for length in range(len(key), 0, -1):
            if any(override[:length] == key[:length] for override in self.overrides) and length > 0:
                return f"--set {shown}"
            if key[:length] in self.lines:
                return f"{self.file}:{self.lines[key[:length]]}: {shown}"
        return f"{self.file}: {shown}" if shown else self.file

    def error(self, key: KeyPath, message: str) -> ScenarioError:
        return ScenarioError(f"{self.place(key)}: {message}")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One resolved scenario of a run: without a sweep there is one, named ``base``."""

    name: str
    overrides: Mapping[str, Any]
    scenario: Scenario


@dataclass(frozen=True, kw_only=True)
class LoadedScenario:
    """A scenario with its variants and the places its values came from."""

    scenario: Scenario
    variants: tuple[Variant, ...]
    source: Source


def dotted(key: KeyPath) -> str:
    """``("timeline", 2, "forget")`` as ``timeline[2].forget``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def load_scenario(path: Path, overrides: Sequence[str] = ()) -> LoadedScenario:
    """Read, override and check a scenario file.

    ``overrides`` are ``dotted.key=value`` strings; values are read as YAML.

    Raises:
        ScenarioError: with one line per problem.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read ({error}){_nearby_files(path)}") from None
    raw = _parse(text, str(path))
    lines = dict(_lines(raw, ()))
    plain = _plain(raw)
    changed: set[KeyPath] = set()
    for override in overrides:
        changed.add(_apply(plain, override))
    source = Source(file=str(path), lines=lines, overrides=frozenset(changed))
    return check_scenario(plain, source)


def check_scenario(plain: dict[str, Any], source: Source) -> LoadedScenario:
    """Validate plain data as a scenario and expand its sweep."""
    scenario = _validate(plain, source)
    sweep = scenario.sweep
    if not sweep:
        variants: tuple[Variant, ...] = (Variant(name="base", overrides={}, scenario=scenario),)
        return LoadedScenario(scenario=scenario, variants=variants, source=source)
    expanded = []
    for values in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, values, strict=True))
        data = json.loads(json.dumps({**plain, "sweep": {}}, default=str))
        for key, value in chosen.items():
            _assign(data, _key_path(key), value, f"sweep key {key!r}")
        name = ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in chosen.items())
        expanded.append(Variant(name=name, overrides=chosen, scenario=_validate(data, source)))
    return LoadedScenario(scenario=scenario, variants=tuple(expanded), source=source)


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


# ------------------------------------------------------------------------------- reading YAML


def _parse(text: str, file: str) -> CommentedMap:
    try:
        raw = YAML(typ="rt").load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = str(error.problem).split(" with ")[0]
        raise ScenarioError(f"{file}:{line}: {problem}: each key may stand once; remove one") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ScenarioError(f"{file}:{line}: not valid YAML: {error.problem or error.context}") from None
    if not isinstance(raw, CommentedMap):
        raise ScenarioError(f"{file}:1: a scenario is a mapping that starts with name: and timeline:")
    return raw


def _lines(node: object, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    """The 1-based line of every key and list item below ``node``."""
    if isinstance(node, CommentedMap):
        for key, value in node.items():
            yield (*path, str(key)), node.lc.key(key)[0] + 1
            yield from _lines(value, (*path, str(key)))
    elif isinstance(node, CommentedSeq):
        for index, value in enumerate(node):
            yield (*path, index), node.lc.item(index)[0] + 1
            yield from _lines(value, (*path, index))


def _plain(node: Any) -> Any:
    """ruamel's containers and scalars as built-in ones."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return node if type(node) is bool else kind(node)
    return node


def _nearby_files(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("scenarios")
    names = sorted(str(found) for found in folder.glob("*.yaml")) if folder.is_dir() else []
    near = difflib.get_close_matches(str(path), names, n=1, cutoff=0.3)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}" if names else ""


# --------------------------------------------------------------------------------- overriding


def _key_path(key: str) -> KeyPath:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _apply(data: dict[str, Any], override: str) -> KeyPath:
    """Apply one ``dotted.key=value`` to plain data in place; gives the key's path."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ScenarioError(f"--set {override}: must be KEY=VALUE, for example federation.local.lr=1e-3")
    try:
        value = _plain(YAML(typ="safe").load(text))
    except MarkedYAMLError as error:
        raise ScenarioError(f"--set {override}: the value is not valid YAML: {error.problem}") from None
    path = _key_path(key)
    _assign(data, path, value, f"--set {override}")
    return path


def _assign(data: Any, path: KeyPath, value: Any, where: str) -> None:
    node = data
    for depth, part in enumerate(path[:-1]):
        if isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        elif isinstance(node, dict):
            child = node.setdefault(str(part), {})
            if isinstance(child, (str, int, float)) or child is None:
                node[str(part)] = child = {"name": child} if part == "strategy" and child else {}
            node = child
        else:
            raise ScenarioError(f"{where}: {dotted(path[: depth + 1])} does not exist in the scenario")
    last = path[-1]
    if isinstance(node, list) and isinstance(last, int) and last < len(node):
        node[last] = value
    elif isinstance(node, dict):
        node[str(last)] = value
    else:
        raise ScenarioError(f"{where}: {dotted(path)} does not exist in the scenario")


# ------------------------------------------------------------------------------------- errors


def _validate(plain: dict[str, Any], source: Source) -> Scenario:
    try:
        return Scenario.model_validate(plain)
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False):
            key, model = _locate(detail["loc"], plain)
            problems.append(f"{source.place(key)}: {_explain(dict(detail), key, model)}")
        raise ScenarioError("\n".join(dict.fromkeys(problems))) from None


def _locate(loc: tuple[str | int, ...], plain: Any) -> tuple[KeyPath, type[BaseModel] | None]:
    """Drop from a pydantic location the parts that name union members; find the model that holds the key."""
    key: list[str | int] = []
    node = plain
    model: type[BaseModel] | None = Scenario
    owner: type[BaseModel] | None = Scenario
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        known = model.model_fields.get(str(part)) if model is not None else None
        inside = (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        )
        if inside or known is not None or (last and isinstance(node, dict) and _is_plain_key(part, model)):
            owner = model
            key.append(part)
            node = node[part] if inside else None
            if isinstance(part, str):
                model = _model_of(known.annotation, node) if known is not None else None
                item_annotation = known.annotation if known is not None else None
            else:
                model = _model_of(item_annotation, node)
    return tuple(key), owner


def _is_plain_key(part: str | int, model: type[BaseModel] | None) -> bool:
    return model is not None and isinstance(part, str) and "[" not in part and "(" not in part


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model class inside an annotation: unions, tuples, Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for inner in typing.get_args(annotation):
            yield from _models(inner)


def _model_of(annotation: Any, node: Any) -> type[BaseModel] | None:
    """The model that ``node`` was checked against: the only one, or the one its tag names."""
    candidates = list(_models(annotation))
    for candidate in candidates:
        for tag in ("source", "stage", "method"):
            field = candidate.model_fields.get(tag)
            if field is not None and isinstance(node, dict):
                given = node.get(tag, field.default)
                if given in typing.get_args(field.annotation):
                    return candidate
    return candidates[0] if candidates else None


def _explain(detail: dict[str, Any], key: KeyPath, model: type[BaseModel] | None) -> str:
    """One sentence: what was found, the rule, and the nearest valid choice."""
    kind, value, context = detail["type"], detail.get("input"), detail.get("ctx", {})
    name = str(key[-1]) if key else ""
    if kind == "extra_forbidden":
        choices = list(model.model_fields) if model is not None else []
        return f"unknown key {name!r}{_nearest(name, choices)}"
    if kind == "missing":
        return f"the key {name!r} is required"
    if kind in ("literal_error", "union_tag_invalid"):
        expected = str(context.get("expected", context.get("expected_tags", "")))
        choices = [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]
        given = context.get("tag", value)
        return f"{given!r} is not a valid choice{_nearest(str(given), choices)}"
    if kind == "union_tag_not_found":
        return f"needs the key {context.get('discriminator', '')} to say which kind it is"
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    message = str(detail["msg"])
    return f"found {value!r}: {message[0].lower()}{message[1:]}"


def _nearest(given: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
    listed = ", ".join(sorted(choices))
    return (f"; did you mean {near[0]!r}?" if near else "") + (f" Choices: {listed}" if listed else "")
