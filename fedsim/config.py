"""What all parts of a scenario's configuration share: frozen models, exact numbers, rules in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Strict, field_validator

from privacy.config import meant


class Config(BaseModel):
    """Base of all scenario parts: frozen, no unknown keys, finite numbers of a size that can be meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    _meant = field_validator("*")(meant)


Int = Annotated[int, Strict()]
"""A whole number as written: neither ``"3"`` nor ``3.5`` nor ``true``."""
Float = Annotated[float, Strict()]
"""A number as written, whole ones included: neither ``"0.5"`` nor ``true``."""
Bool = Annotated[bool, Strict()]
"""``true`` or ``false``, not a number."""


@dataclass(frozen=True)
class Rule:
    """Annotates a type with its rule in words, for errors: "must be ..."."""

    text: str


class ConfigError(ValueError):
    """A rule between keys is broken; ``key`` is the key at fault, below the model that checks the rule."""

    def __init__(self, message: str, *key: str | int) -> None:
        super().__init__(message)
        self.key = key
