"""YAML read with distrust: what would eat the machine, or make objects, is refused before it is built.

A file is first walked as a stream of events, which builds nothing: how deep it nests, how large it becomes
once its aliases stand for what they name, and which tags it asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

from fedsim.places import KeyPath, ScenarioError

LONGEST = 1 << 20
"""Characters of a file."""
DEEPEST = 40
"""Collections within collections."""
MOST_NODES = 100_000
"""Keys, values and items, with every alias counted as what it names."""

MOST_DIGITS = 100
"""Digits of a number."""


class UnreadableError(ValueError):
    """A text that is not read as YAML; ``line`` is 1-based, 0 where there is none."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def parse_value(text: str) -> Any:
    """A value written as YAML, as plain data.

    Raises:
        UnreadableError: it is not YAML, or more than a scenario can be.
    """
    try:
        _check_size(text)
        return as_plain(YAML(typ="safe").load(text))
    except MarkedYAMLError as error:
        raise UnreadableError(_problem(error)) from None
    except YAMLError as error:
        raise UnreadableError(str(error).splitlines()[0]) from None


def _check_size(text: str) -> None:
    """Refuse what would grow beyond a scenario; syntax errors are left to whoever parses."""
    if len(text) > LONGEST:
        raise UnreadableError(f"has {len(text):,} characters; a scenario has at most {LONGEST:,}")
    anchors: dict[str, int | None] = {}
    open_: list[tuple[str | None, int]] = []
    nodes = 0
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            line = event.start_mark.line + 1 if event.start_mark else 0
            if isinstance(event, AliasEvent):
                size = anchors.get(event.anchor, 0)
                if size is None:
                    raise UnreadableError(f"the alias *{event.anchor} stands within what it names", line)
                nodes += size
            elif isinstance(event, CollectionEndEvent):
                anchor, before = open_.pop()
                if anchor is not None:
                    anchors[anchor] = nodes - before
            elif isinstance(event, NodeEvent):
                _check_tag(event, line)
                _check_number(event, line)
                nodes += 1
                if isinstance(event, CollectionStartEvent):
                    open_.append((event.anchor, nodes))
                    if event.anchor is not None:
                        anchors[event.anchor] = None
                elif event.anchor is not None:
                    anchors[event.anchor] = 1
            if len(open_) > DEEPEST:
                raise UnreadableError(f"nests more than {DEEPEST} deep; no scenario does", line)
            if nodes > MOST_NODES:
                raise UnreadableError(
                    f"holds more than {MOST_NODES:,} values once its aliases stand for what they name", line
                )
    except YAMLError:
        return


def _check_number(event: NodeEvent, line: int) -> None:
    text = getattr(event, "value", "")
    if len(text) > MOST_DIGITS and not getattr(event, "style", None) and text.lstrip("+-").isdigit():
        raise UnreadableError(f"a number of {len(text):,} digits; no scenario needs one", line)


def _check_tag(event: NodeEvent, line: int) -> None:
    """Refuse explicit tags: they ask for objects, or for what quotes say as well."""
    asked = getattr(event, "ctag", None)
    tag = "" if asked is None else str(asked)
    if tag not in ("", "None", "!"):
        shown = tag.replace("tag:yaml.org,2002:", "!!")
        raise UnreadableError(
            f"the tag {shown!r} asks for an object; write plain values, text in quotes", line
        )


def parse_mapping(text: str, file: str) -> CommentedMap:
    """The mapping that a file holds, with the lines of its keys.

    Raises:
        ScenarioError: it is not YAML, not a mapping, or more than a scenario can be.
    """
    try:
        _check_size(text)
        raw = YAML(typ="rt").load(text)
    except UnreadableError as error:
        where = f"{file}:{error.line}" if error.line else file
        raise ScenarioError(f"{where}: {error}") from None
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = str(error.problem).split(" with ")[0]
        raise ScenarioError(f"{file}:{line}: {problem}: each key may stand once; remove one") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ScenarioError(f"{file}:{line}: not valid YAML: {_problem(error)}") from None
    except YAMLError as error:
        raise ScenarioError(f"{file}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, CommentedMap):
        raise ScenarioError(f"{file}:1: a scenario is a mapping that starts with name: and timeline:")
    return raw


def _problem(error: MarkedYAMLError) -> str:
    return ", ".join(str(part) for part in (error.context, error.problem) if part)


def lines_of(node: object, path: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """The 1-based line of every key and list item below ``node``."""
    if isinstance(node, CommentedMap):
        for key, value in node.items():
            if key in (node.lc.data or ()):  # keys merged in by << have no line of their own
                yield (*path, str(key)), node.lc.key(key)[0] + 1
            yield from lines_of(value, (*path, str(key)))
    elif isinstance(node, CommentedSeq):
        for index, value in enumerate(node):
            yield (*path, index), node.lc.item(index)[0] + 1
            yield from lines_of(value, (*path, index))


def as_plain(node: Any) -> Any:
    """Ruamel's containers and scalars as built-in ones."""
    if isinstance(node, Mapping):
        return {str(key): as_plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [as_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return node if type(node) is bool else kind(node)
    return node
