"""What a type takes, in words, for errors: "a whole number from 1 to 1024".

The words come from the annotation and its bounds, so that a message cannot differ from the check.

>>> from typing import Annotated
>>> from pydantic import Field
>>> TypeRule(Annotated[int, Field(ge=1, le=9)] | None).rule()
'a whole number from 1 to 9 or null'
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedsim.config import Rule

TAGS = ("source", "stage", "method", "audit", "by", "name")
"""Keys that say which kind of thing a mapping is."""


class TypeRule:
    """A type with the metadata that bounds it."""

    def __init__(self, annotation: Any, metadata: Sequence[Any] = ()) -> None:
        self.annotation, self.metadata = annotation, list(_flat(metadata))
        while typing.get_origin(self.annotation) is typing.Annotated:
            self.annotation, *more = typing.get_args(self.annotation)
            self.metadata.extend(_flat(more))

    def is_union(self) -> bool:
        return (
            isinstance(self.annotation, types.UnionType) or typing.get_origin(self.annotation) is typing.Union
        )

    def members(self) -> list[TypeRule]:
        """The members of a union, null left out; the type itself when it is none."""
        if not self.is_union():
            return [self]
        inner = [TypeRule(each) for each in typing.get_args(self.annotation) if each is not type(None)]
        if len(inner) > 1:
            return inner
        return TypeRule(inner[0].annotation, [*inner[0].metadata, *self.metadata]).members()

    def member(self, label: str) -> TypeRule:
        """The member that pydantic calls ``label``: by its tag, its class name, or its kind."""
        for each in self.members():
            model = each.model()
            if model is not None and (label == model.__name__ or label in each.tags()):
                return each
            if label.startswith("tuple") and typing.get_origin(each.annotation) is tuple:
                return each
        return TypeRule(Any)

    def model(self) -> type[BaseModel] | None:
        only = self.members()[0].annotation
        return only if isinstance(only, type) and issubclass(only, BaseModel) else None

    def below(self, part: str | int) -> TypeRule:
        """The type of the key or item ``part``."""
        model = self.model()
        if model is not None:
            known = model.model_fields.get(str(part))
            return (
                TypeRule(known.annotation, [known, *_null_by_default(known)])
                if known is not None
                else TypeRule(Any)
            )
        arguments = typing.get_args(self.members()[0].annotation)
        return TypeRule(arguments[0 if isinstance(part, int) else -1]) if arguments else TypeRule(Any)

    def tags(self) -> list[str]:
        """The choices of a literal, or the tags of a union's or model's kind."""
        if typing.get_origin(self.annotation) is typing.Literal:
            return [str(choice) for choice in typing.get_args(self.annotation)]
        if self.is_union() and len(self.members()) == 1:
            return self.members()[0].tags()
        found = []
        shared = self._tag()
        for each in self.members():
            model = each.model()
            for name in TAGS if shared is None else (shared,):
                if model is not None and name in model.model_fields:
                    found.extend(TypeRule(model.model_fields[name].annotation).tags())
        return found

    def _tag(self) -> str | None:
        """The key that says which member of a union of models a mapping is."""
        models = [each.model() for each in self.members()]
        return next(
            (tag for tag in TAGS if all(m is not None and tag in m.model_fields for m in models)), None
        )

    def rule(self) -> str:
        """What the type takes, to stand after "must be"; empty when it takes anything."""
        told = next((each.text for each in self.metadata if isinstance(each, Rule)), None)
        if told is not None:
            return told
        if self.is_union():
            if tag := self._tag():
                return f"a mapping with the key {tag}; choices: {', '.join(self.tags())}"
            rules = [each.rule() for each in self.members()]
            # Where null is the default it says no more than leaving the key out.
            null = type(None) in typing.get_args(self.annotation) and None not in self.metadata
            return " or ".join([*dict.fromkeys(rules), *(["null"] if null else [])])
        model = self.model()
        if model is not None:
            return f"a mapping with the keys {', '.join(model.model_fields)}"
        return self._plain_rule()

    def _plain_rule(self) -> str:
        origin, limits = typing.get_origin(self.annotation), self._limits()
        if origin is typing.Literal:
            return " or ".join(repr(choice) for choice in typing.get_args(self.annotation))
        if origin is tuple:
            item = TypeRule(typing.get_args(self.annotation)[0]).rule()
            some = "a list with at least one item" if "min" in limits else "a list"
            return f"{some}, each {item}" if item else some
        if origin is dict:
            return "a mapping"
        names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
        name = names.get(self.annotation, "")
        if self.annotation is str and "pattern" in limits:
            return f"text that matches {limits['pattern']}"
        return f"{name}{_range(limits)}"

    def _limits(self) -> dict[str, Any]:
        limits: dict[str, Any] = {}
        for each in self.metadata:
            for name in ("ge", "gt", "le", "lt", "pattern"):
                if getattr(each, name, None) is not None:
                    limits[name] = getattr(each, name)
            if isinstance(each, annotated_types.MinLen):
                limits["min"] = each.min_length
        return limits


def _flat(metadata: Sequence[Any]) -> Iterator[Any]:
    for each in metadata:
        yield from _flat(each.metadata) if isinstance(each, FieldInfo) else (each,)


def _null_by_default(known: FieldInfo) -> tuple[None, ...]:
    return (None,) if known.default is None else ()


def _range(limits: Mapping[str, Any]) -> str:
    if "ge" in limits and "le" in limits:
        return f" from {limits['ge']} to {limits['le']}"
    words = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}
    return " " + " and ".join(f"{words[k]} {limits[k]}" for k in words if k in limits) if limits else ""
