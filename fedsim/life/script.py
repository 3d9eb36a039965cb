"""A scripted life: which events happen after which round, and who asked for what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedsim.data.names import ClientNames
from fedsim.life.events import Drop, DropStage
from fedsim.unlearning.request import Request

EventKind = Literal["join", "forget", "leave", "rejoin", "drop", "probe"]
RecordIds = Mapping[int, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class LifeEvent:
    """Something that happens after round ``round`` and before the next."""

    round: int
    kind: EventKind
    clients: tuple[int, ...]
    request: int | None = None
    brings: tuple[str, ...] | None = None
    drop: Drop | None = None
    text: str

    @property
    def client(self) -> int | None:
        return self.clients[0] if len(self.clients) == 1 else None


@dataclass(frozen=True, kw_only=True)
class Life:
    """All events in order, with the last round and what clients are called.

    The requests among them are numbered from 1.
    """

    horizon: int
    events: tuple[LifeEvent, ...]
    requests: tuple[Request, ...]
    names: ClientNames = field(default_factory=ClientNames)

    def request(self, number: int) -> Request:
        """The request of a number, from 1."""
        return self.requests[number - 1]

    def at(self, round_: int) -> tuple[LifeEvent, ...]:
        """The events between round ``round_`` and the next."""
        return tuple(event for event in self.events if event.round == round_)

    def drops(self, round_: int) -> dict[int, DropStage]:
        """Who falls silent in a round, and when; of several scripted steps the last one said counts."""
        return {
            client: event.drop.stage
            for event in self.events
            if event.drop is not None and event.round < round_ <= event.round + event.drop.rounds
            for client in event.clients
        }

    def label(self, round_: int) -> str:
        """What happens after a round, for the ``event`` column: ``forget:1``, ``join``, or empty."""
        marks = [
            f"forget:{event.request}" if event.kind == "forget" else event.kind for event in self.at(round_)
        ]
        return "+".join(marks)
