"""A granted request to be forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Request:
    """A granted request to be forgotten. ``scope`` is ``client`` (all of it) or ``records``."""

    number: int
    client: int
    round: int
    scope: Literal["client", "records"]
    record_ids: tuple[str, ...]
    since: int = 1
    """The first round in which its data, or those of a request before it, could be trained on."""
    trained: tuple[int, ...] = ()
    """The rounds of ordinary training behind the adapter on which a method answers it."""

    @property
    def subject(self) -> str:
        """The name of its records in the metric tables."""
        return f"forget:{self.number}"
