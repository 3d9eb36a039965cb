"""Scenario files: YAML with line numbers, overrides, sweeps, and errors a person can act on.

ruamel.yaml is used because PyYAML reads ``1e-5`` as a string and lets a repeated key win silently.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from ruamel.yaml import YAML

from fedsim.data.rows import not_utf8, refuse_wide
from fedsim.places import KeyPath, ScenarioError, Source
from fedsim.scenario.compare import method_positions
from fedsim.scenario.overrides import apply_override
from fedsim.scenario.scenario import Scenario
from fedsim.scenario.variants import Variant, validated, variants_of
from fedsim.scenario.yaml_reader import as_plain, lines_of, parse_mapping

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
    "plain_of",
    "read_scenario",
]


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

    Paths in it that exist below ``folder`` are relative to it, and those that exist nowhere. Others are
    relative to the working directory, as are those of overrides.
    """
    raw = parse_mapping(text, file)
    lines, plain = dict(lines_of(raw)), as_plain(raw)
    if folder is not None:
        plain = _below(folder, plain)
    changed: dict[KeyPath, str] = {}
    for override in overrides:
        changed |= apply_override(plain, override)
    return check_scenario(plain, Source(file=file, lines=lines, overrides=changed))


PATHS = (
    ("data", "path"),
    ("data", "name"),
    ("data", "files"),
    ("data", "holdout"),
    ("data", "public"),
    ("data", "common"),
    ("model", "base"),
)
"""Keys whose values are paths or lists of them, or may be."""
_NEVER_FOLDERS = ("holdout", "public")
"""Keys that may name something else than a file, which a folder may be called, too."""
_ALWAYS_PATHS = ("path", "files", "common")


def _below(folder: Path, plain: dict[str, Any]) -> dict[str, Any]:
    """Plain data with the relative paths that are meant from a folder made whole."""
    found = dict(plain)
    for section, key in PATHS:
        values = found.get(section)
        value = values.get(key) if isinstance(values, dict) else None
        if isinstance(value, list):
            found[section] = {**found[section], key: [_whole(folder, each, key) for each in value]}
        elif value is not None:
            found[section] = {**found[section], key: _whole(folder, value, key)}
    return found


def _whole(folder: Path, value: Any, key: str) -> Any:
    """A path from a folder, where there is something, or nothing in the working directory either.

    Whatever else it is, it stays as it is.
    """
    if not isinstance(value, str | Path) or not str(value) or Path(value).is_absolute():
        return value
    path = folder / value
    exists = path.is_file() if key in _NEVER_FOLDERS else path.exists()
    meant = exists or (key in _ALWAYS_PATHS and not Path(value).exists())
    return type(value)(path.resolve()) if meant else value


def anchored(scenario: Scenario) -> Scenario:
    """A scenario whose paths mean the same from every working directory: what a run directory keeps."""
    for section, key in PATHS:
        part = getattr(scenario, section)
        value = getattr(part, key, None)
        if value is None:
            continue
        if isinstance(value, tuple):
            whole: Any = tuple(_whole(Path(), each, key) for each in value)
        else:
            whole = _whole(Path(), value, key)
        if whole != value:
            scenario = scenario.model_copy(update={section: part.model_copy(update={key: whole})})
    return scenario


def check_scenario(plain: dict[str, Any], source: Source) -> LoadedScenario:
    """Validate plain data as a scenario and expand its sweep."""
    source = replace(source, methods_at=method_positions(plain.get("compare")))
    scenario = validated(plain, source)
    variants = tuple(variants_of(scenario, plain, source))
    return LoadedScenario(scenario=scenario, variants=variants, source=source)


def dump_scenario(scenario: Scenario) -> str:
    """The resolved scenario as YAML, every default filled in; reading it back gives the same scenario."""
    yaml = YAML()
    yaml.width = 110
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    yaml.dump(plain_of(scenario), stream)
    return stream.getvalue()


def plain_of(scenario: Scenario) -> dict[str, Any]:
    """A scenario as plain data, every default filled in, as it may be checked again."""
    data = scenario.model_dump(mode="json", exclude_none=False)
    data["timeline"] = [event.model_dump(mode="json", exclude_none=True) for event in scenario.timeline]
    data["privacy"] = [stage.model_dump(mode="json", exclude_none=True) for stage in scenario.privacy]
    data["compare"] = [method.model_dump(mode="json", exclude_none=True) for method in scenario.compare]
    return data


def json_schema() -> dict[str, Any]:
    """The JSON schema of scenario files, for completion in editors."""
    schema = TypeAdapter(Scenario).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


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
