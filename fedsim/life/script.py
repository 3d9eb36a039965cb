"""A scripted life: which events happen after which round, and who asked for what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedsim.data.names import ClientNames
from fedsim.life.events.protocol import Condition
from fedsim.unlearning.request import Request

RecordIds = Mapping[int, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class LifeEvent:
    """Something that happens after round ``round`` and before the next.

    ``condition`` holds for its clients in the ``lasts`` rounds after it.
    """

    round: int
    kind: str
    clients: tuple[int, ...]
    request: int | None = None
    brings: tuple[str, ...] | None = None
    condition: Condition | None = None
    lasts: int = 0
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

    def members(self) -> list[int]:
        """Everybody who is ever there, sorted."""
        return sorted({c for event in self.events if event.kind == "join" for c in event.clients})

    def at(self, round_: int) -> tuple[LifeEvent, ...]:
        """The events between round ``round_`` and the next."""
        return tuple(event for event in self.events if event.round == round_)

    def conditions(self, round_: int) -> dict[int, tuple[Condition, ...]]:
        """What is different about whom in a round; of several events of a kind the last one said counts."""
        found: dict[tuple[int, str], Condition] = {}
        for event in self.events:
            if event.condition is not None and event.round < round_ <= event.round + event.lasts:
                found |= {(client, event.condition.kind): event.condition for client in event.clients}
        clients = sorted({client for client, _ in found})
        return {client: tuple(found[key] for key in sorted(found) if key[0] == client) for client in clients}

    def label(self, round_: int) -> str:
        """What happens after a round, for the ``event`` column: ``forget:1``, ``join``, or empty."""
        marks = [
            f"forget:{event.request}" if event.kind == "forget" else event.kind for event in self.at(round_)
        ]
        return "+".join(marks)
