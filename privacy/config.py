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

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of all stages' configurations.

    *Guarantees.* Frozen, no unknown keys, finite numbers. A number is neither text nor true or false; a whole
    one may stand where any number may, not the other way round."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
