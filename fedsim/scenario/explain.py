"""What is wrong with a scenario, in words a person can act on.

pydantic finds the problems; here each becomes one line: where it stands, what was found, the rule (made
from the field's own type and bounds), and the nearest valid choice.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from fedsim.config import ConfigError
from fedsim.places import KeyPath, ScenarioError, Source
from fedsim.scenario.compare import ALWAYS_THERE
from fedsim.scenario.rules import TypeRule

MOST_PROBLEMS = 20
"""Problems of one scenario that are told; the first lines come first."""


def explain(error: ValidationError, model: type[BaseModel], source: Source) -> ScenarioError:
    """All problems that pydantic found, a line each."""
    found: dict[KeyPath, str] = {}
    for detail in error.errors(include_url=False):
        problem = _Problem(detail["loc"], model, dict(detail))
        found.setdefault(problem.key, problem.message())
        if detail["type"] == "extra_forbidden" and (meant := problem.meant()) is not None:
            found[(*problem.key[:-1], meant)] = ""
    # A union complains once for each of its members, a list about its length when an item is wrong:
    # the deeper problem is the one to tell. A key missing because it is misspelt is told once.
    inner = {key[:length] for key, text in found.items() if text for length in range(len(key))}
    told = [
        (source.line(key), f"{source.place(key)}: {text}")
        for key, text in found.items()
        if text and key not in inner
    ]
    lines = [line for _, line in sorted(told, key=lambda item: item[0])]
    more = [f"and {len(lines) - MOST_PROBLEMS:,} more problems"] if len(lines) > MOST_PROBLEMS else []
    return ScenarioError("\n".join([*lines[:MOST_PROBLEMS], *more]))


def closest(given: str, choices: Sequence[str]) -> str | None:
    """The choice that somebody may have meant: a short one that abbreviates what is given, or the most alike.

    >>> closest("rank", ["train", "r"]), closest("learning_rate", ["epochs", "lr"])
    ('r', 'lr')
    """
    short = [choice for choice in choices if len(choice) <= 2 and _abbreviates(choice, given)]
    near = short or difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
    return near[0] if near else None


def _abbreviates(short: str, word: str) -> bool:
    """Whether the letters of ``short`` begin parts of ``word``, in order, the first one the word itself."""
    parts = iter(word.split("_"))
    return word[:1] == short[:1] and all(any(part[:1] == letter for part in parts) for letter in short)


def nearest(given: str, choices: Sequence[str]) -> str:
    """``; did you mean 'x'? Choices: x, y``, as far as there is something to say."""
    near = closest(given, choices)
    meant = f"did you mean {near!r}? " if near is not None else ""
    listed = f"choices: {', '.join(choices)}" if choices else ""
    return f"; {meant}{listed}".rstrip() if meant or listed else ""


class _Problem:
    """One of pydantic's errors, found again in the types: its key, the type there, the model above it."""

    def __init__(self, loc: Sequence[str | int], model: type[BaseModel], detail: Mapping[str, Any]) -> None:
        self.detail = detail
        key: list[str | int] = []
        spec = TypeRule(model)
        self.owner: type[BaseModel] | None = None
        self.spec = spec
        self.others: list[TypeRule] = []
        for part in loc:
            if len(spec.members()) > 1:  # ``part`` is pydantic's name for a member of a union, not a key
                self.others = spec.members()
                spec = spec.member(str(part))
                continue
            self.owner = spec.model()
            spec = spec.below(part)
            key.append(part)
            self.spec = spec
        own: tuple[str | int, ...] = ()
        error = detail.get("ctx", {}).get("error")
        if isinstance(error, ConfigError):
            own = error.key
        self.key: KeyPath = (*key, *own)
        self.name = str(key[-1]) if key else ""

    def message(self) -> str:
        kind, value, context = self.detail["type"], self.detail.get("input"), self.detail.get("ctx", {})
        if kind == "extra_forbidden":
            return f"unknown key {self.name!r}{nearest(self.name, self._siblings())}{self._takers()}"
        if kind == "missing":
            rule = self.spec.rule()
            return f"the key {self.name!r} is required" + (f"; it must be {rule}" if rule else "")
        if kind == "union_tag_not_found":
            tag = str(context["discriminator"]).strip("'")
            misspelt = difflib.get_close_matches(tag, [str(name) for name in value or ()], n=1, cutoff=0.6)
            if misspelt:
                return f"unknown key {misspelt[0]!r}; did you mean {tag!r}?"
            return f"the key {tag!r} is required; choices: {', '.join(self.spec.tags())}"
        if kind == "union_tag_invalid":
            tag, given = str(context["discriminator"]).strip("'"), str(context["tag"])
            always = ALWAYS_THERE if tag == "method" else ()
            return f"unknown {tag} {given!r}{nearest(given, [*dict.fromkeys([*always, *self.spec.tags()])])}"
        if kind == "literal_error" and len(self.spec.members()) == 1:
            return f"found {_shown(value)}{nearest(str(value), self.spec.tags())}"
        if kind == "value_error":
            return str(context["error"])
        rule = self.spec.rule()
        if rule == "text" and not isinstance(value, (list, dict, type(None))):
            rule += "; put it in quotes"
        return (
            f"found {_shown(value)}; must be {rule}"
            if rule
            else f"found {_shown(value)}; {self.detail['msg']}"
        )

    def meant(self) -> str | None:
        """The key that an unknown one is nearest to."""
        return closest(self.name, self._siblings())

    def _takers(self) -> str:
        """``; fedadam and fedyogi take it``: other members of the union that know the key."""
        knowing = [
            each.tags()[0]
            for each in self.others
            if (model := each.model()) is not None and self.name in model.model_fields and each.tags()
        ]
        if not knowing or self.owner not in [each.model() for each in self.others]:
            return ""
        listed = f"{', '.join(knowing[:-1])} and {knowing[-1]} take" if knowing[1:] else f"{knowing[0]} takes"
        return f"; {listed} it"

    def _siblings(self) -> list[str]:
        return list(self.owner.model_fields) if self.owner is not None else []


def _shown(value: object) -> str:
    """A value as it might stand in the file, at most 60 characters."""
    if isinstance(value, (str, bool, type(None), list, tuple, dict)):
        text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    else:
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
