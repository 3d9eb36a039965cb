"""What the configurations of all stages share: frozen models, known keys, numbers exactly as written.

>>> from pydantic import ValidationError
>>> class Example(Config):
...     norm: float
>>> Example(norm=1)
Example(norm=1.0)
>>> for wrong in (True, "1.0", float("inf")):
...     try:
...         Example(norm=wrong)
...     except ValidationError as error:
...         print(error.errors()[0]["msg"])
Input should be a valid number
Input should be a valid number
Input should be a finite number
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

LEAST, MOST = 1e-12, 1e12
"""Sizes between which a number can be meant; beyond, sums lose it or overflow."""


def meant(value: Any) -> Any:
    """The value itself; ValueError for a number other than 0 of a size that no scenario can mean.

    >>> meant(0.0), meant(1e-5), meant("text")
    (0.0, 1e-05, 'text')
    """
    if isinstance(value, float) and value != 0.0 and not LEAST <= abs(value) <= MOST:
        near = LEAST if abs(value) < LEAST else MOST
        raise ValueError(
            f"found {value:g}; must be 0 or of a size from {LEAST:g} to {MOST:g}; nearest is "
            f"{near if value > 0 else -near:g}"
        )
    return value


class Config(BaseModel):
    """Base of all stages' configurations.

    *Guarantees.* Frozen, no unknown keys, finite numbers of a size that can be meant. A number is neither
    text nor true or false; a whole one may stand where any number may, not the other way round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    _meant = field_validator("*")(meant)
