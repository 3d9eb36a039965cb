"""What other packages add: classes that they announce as entry points of a group."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TypeVar

Kind = TypeVar("Kind")


def with_plugins(listed: tuple[type[Kind], ...], *, group: str, tag: str) -> dict[str, type[Kind]]:
    """The ``listed`` classes and those that packages announce under ``group``, by name.

    The name is the default of the field ``tag``.

    Raises:
        ImportError: an entry point cannot be loaded, is no class of the kind, or takes a name that is taken.
    """
    found = {name_of(cls, tag): cls for cls in listed}
    for entry in sorted(entry_points(group=group), key=lambda each: each.name):
        where = f"entry point {entry.name!r} of {group} ({entry.value})"
        try:
            cls = entry.load()
        except Exception as error:
            raise ImportError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
        if not (isinstance(cls, type) and tag in getattr(cls, "model_fields", {})):
            raise ImportError(f"{where} must be a configuration class with the field {tag!r}; found {cls!r}")
        name = name_of(cls, tag)
        if name in found:
            raise ImportError(
                f"{where} is called {name!r}, as {found[name].__module__} is; give it another name"
            )
        found[name] = cls
    return found


def name_of(cls: type, tag: str) -> str:
    """The name by which a scenario asks for a class: the default of its field ``tag``."""
    return str(cls.model_fields[tag].default)  # type: ignore[attr-defined]
