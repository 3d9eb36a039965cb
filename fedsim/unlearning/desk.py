"""What lies before a method when it settles a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedsim.model.vectors import Arrays


@dataclass(frozen=True, kw_only=True)
class Desk:
    """The adapter after the round, and what the request has kept since its first round, by name.

    ``kept`` may hold ``reference`` (the adapter at the request), ``draft`` and ``round-INDEX`` (see
    ``RoundPlan.moves``).
    """

    adapter: Arrays
    kept: Mapping[str, Arrays]
