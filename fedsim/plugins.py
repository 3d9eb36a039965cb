"""Kinds of things that are known by name: those that a registry lists, and those that other packages add."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import TypeVar

Kind = TypeVar("Kind")


def registered(
    kind: type[Kind], listed: Sequence[str], *, package: str, group: str, tag: str
) -> dict[str, type[Kind]]:
    """Classes of a kind by name: the default of their field ``tag``.

    ``listed`` are ``module:Class`` below ``package``; other packages announce theirs as entry points of
    ``group``.

    Raises:
        ImportError: an entry point cannot be loaded, is no class of the kind, or takes a name that is taken.
    """
    found: dict[str, type[Kind]] = {}
    for place in listed:
        module, _, name = place.partition(":")
        cls: type[Kind] = getattr(import_module(f"{package}.{module}"), name)
        assert _name_of(cls, tag) not in found, f"{place} has the name of another one that is listed"
        found[_name_of(cls, tag)] = cls
    for entry in sorted(entry_points(group=group), key=lambda each: each.name):
        where = f"entry point {entry.name!r} of {group} ({entry.value})"
        try:
            cls = entry.load()
        except Exception as error:
            raise ImportError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
        if not (isinstance(cls, type) and issubclass(cls, kind)):
            raise ImportError(f"{where} must be a {kind.__name__}; found {cls!r}")
        name = _name_of(cls, tag)
        if name in found:
            taken = found[name].__module__
            raise ImportError(f"{where} is called {name!r}, as one of {taken} is; give it another name")
        found[name] = cls
    return found


def _name_of(cls: type, tag: str) -> str:
    """The name by which a scenario asks for a class."""
    fields = getattr(cls, "model_fields", {})
    return str(fields[tag].default if tag in fields else getattr(cls, tag))
