"""Rounds as generators that yield messages and receive replies, advanced in lockstep.

So the rounds of several branches share one send, and their clients train in one batch. Each round has its own
count of what crossed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from flwr.app import Message, MetricRecord
from flwr.serverapp import Grid

from fedsim.federation.client import INSTRUMENTS, UPDATE
from fedsim.federation.grid import payload_bytes

Result = TypeVar("Result")
Exchange = Generator[list[Message], list[Message], Result]
"""Gives messages to send, takes their replies, and ends with a result."""


@dataclass(kw_only=True)
class Taken:
    """What a round took: messages and payload bytes both ways, and training as clients' instruments say.

    ``clients`` counts trainings, repeated attempts included. ``steps`` and ``tokens`` are None once a client
    has not told: those of a deployment do not.
    """

    messages: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    clients: int = 0
    steps: int | None = 0
    tokens: int | None = 0

    def add(self, messages: Iterable[Message], replies: Iterable[Message]) -> None:
        for message in messages:
            self.messages += 1
            self.bytes_down += payload_bytes(message.content)
        for reply in replies:
            if not reply.has_content():
                continue
            self.bytes_up += payload_bytes(reply.content)
            instruments = reply.content.metric_records.get(INSTRUMENTS)
            if instruments is not None:
                self.bytes_up -= 8 * len(instruments)
            if instruments is not None or UPDATE in reply.content.array_records:
                self.clients += 1
                self.steps = _plus(self.steps, instruments, "steps")
                self.tokens = _plus(self.tokens, instruments, "tokens")


def _plus(so_far: int | None, instruments: MetricRecord | None, name: str) -> int | None:
    """A count with one more client's, None if either is not known."""
    value = None if instruments is None else instruments.get(name)
    return so_far + value if so_far is not None and isinstance(value, int) else None


def group_of(branch: str, round_: int) -> str:
    """The group id of a round's messages: replies come back under it."""
    return f"{branch}/{round_}"


@dataclass(kw_only=True)
class Running(Generic[Result]):
    """A conversation on its way: what it wants sent under its group id, or its result once it has ended."""

    group: str
    exchange: Exchange[Result]
    taken: Taken
    messages: list[Message] = field(default_factory=list)
    ended: bool = False
    result: Result | None = None

    def advance(self, replies: list[Message] | None) -> None:
        """Go on to the next messages, with the replies to the last ones."""
        if replies is not None:
            self.taken.add(self.messages, replies)
        self.messages = []
        try:
            self.messages = next(self.exchange) if replies is None else self.exchange.send(replies)
        except StopIteration as stop:
            self.ended, self.result = True, stop.value


def carry(running: Sequence[Running[Result]], grid: Grid) -> list[Result]:
    """Carry messages and replies until every conversation has ended; groups must differ."""
    for one in running:
        one.advance(None)
    while any(not one.ended for one in running):
        replies: dict[str, list[Message]] = {one.group: [] for one in running}
        for reply in grid.send_and_receive([message for one in running for message in one.messages]):
            replies[reply.metadata.group_id].append(reply)
        for one in running:
            if not one.ended:
                one.advance(replies[one.group])
    return [cast(Result, one.result) for one in running]
