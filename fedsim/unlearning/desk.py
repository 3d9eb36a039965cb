"""What lies before a method when it combines or settles a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fedsim.model.vectors import Arrays


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What a client sent in a round: its update, and the weight with which it counts."""

    update: Arrays
    weight: float


class History(Protocol):
    """What the server stored of past rounds (see ``MethodConfig.stores``)."""

    def adapter(self, round_: int) -> Arrays:
        """The adapter before a round."""
        ...

    def updates(self, round_: int) -> dict[int, Sent]:
        """What each contributor to a round sent."""
        ...


class Forgetful:
    """The history of a server that stores nothing."""

    def adapter(self, round_: int) -> Arrays:
        """Nothing.

        Raises:
            LookupError: always.
        """
        raise LookupError(f"round {round_} is not stored")

    def updates(self, round_: int) -> dict[int, Sent]:
        """Nothing, as ``adapter``."""
        raise LookupError(f"round {round_} is not stored")


@dataclass(frozen=True, kw_only=True)
class Desk:
    """The adapter after the round, and what the request has kept since its first round, by name.

    ``kept`` may hold ``reference`` (the adapter at the request), ``draft`` and ``round-INDEX`` (see
    ``RoundPlan.moves``), and what the method itself remembers. ``told`` is the mean loss in the round of the
    clients that were asked for theirs (``LocalWork.tells``), None if none of them contributed.
    """

    adapter: Arrays
    kept: Mapping[str, Arrays]
    history: History = field(default_factory=Forgetful)
    told: float | None = None
