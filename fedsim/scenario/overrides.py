"""Overrides of a scenario's keys: ``dotted.key=value``, applied to plain data."""

from __future__ import annotations

import re
from typing import Any

from ruamel.yaml.error import YAMLError

from fedsim.places import KeyPath, ScenarioError, dotted
from fedsim.scenario.yaml_reader import UnreadableError, parse_value


def key_path(key: str) -> KeyPath:
    """``timeline.3.train.rounds`` or ``timeline[3].train.rounds`` as a path; a sweep's keys are dotted."""
    if key.startswith("sweep."):
        return ("sweep", key.removeprefix("sweep."))
    parts = re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(".")
    if not all(re.fullmatch(r"[^\s\[\].]+", part) for part in parts):
        raise ValueError(f"key={key!r} must be a dotted key such as federation.local.lr")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def apply_override(data: dict[str, Any], override: str) -> dict[KeyPath, str]:
    """Apply one ``dotted.key=value`` to plain data in place; gives the key's path with what replaced it."""
    key, equals, text = override.partition("=")
    where = f"--set {override}"
    try:
        path = key_path(key)
        value = parse_value(text)
    except UnreadableError as error:
        raise ScenarioError(
            f"{where}: the value is not valid YAML: {error}; a text with brackets needs quotes of its own"
        ) from None
    except (ValueError, YAMLError):
        path = ()
    if not equals or not path:
        raise ScenarioError(f"{where}: must be KEY=VALUE, for example federation.local.lr=1e-3")
    assign(data, path, value, where)
    return {path: where}


def assign(data: Any, path: KeyPath, value: Any, where: str) -> None:
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
