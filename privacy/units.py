"""What a guarantee protects, and how contributors are weighed."""

from typing import Literal

Unit = Literal["example", "client"]
Weighting = Literal["uniform", "examples"]
