"""The server's end of the privacy pipeline in one attempt at a round, with clients by number.

The privacy layer calls clients by text, the federation by number; here the two meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from privacy import Contribution, Payload, ServerRound, Update

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Combined:
    """What the pipeline made of a round: see ``privacy.RoundResult``, whose fields these are."""

    update: Update
    contributors: tuple[int, ...]
    rejected: Mapping[int, str]
    state: Mapping[str, float]
    lengths: Mapping[int, float]
    metrics: Mapping[str, float]


class ServerEnd:
    """Drives one ``ServerRound``; every mapping goes by client."""

    def __init__(self, party: ServerRound) -> None:
        self._party = party

    @property
    def rejected(self) -> dict[int, str]:
        """Clients of whom a message could not be used so far, with reasons."""
        return numbered(self._party.rejected)

    def collect(self, messages: Mapping[int, bytes]) -> bytes:
        """First messages -> what every client gets."""
        return self._party.collect(named(messages))

    def deliver(self, messages: Mapping[int, bytes]) -> dict[int, bytes]:
        """Second messages -> what each client that is still in gets before it trains."""
        return numbered(self._party.deliver(named(messages)))

    def receive(self, payloads: Mapping[int, Payload]) -> dict[int, bytes]:
        """Updates -> what their senders are asked; nothing where updates travel in the clear."""
        return numbered(self._party.receive(named(payloads)))

    def aggregate(self, answers: Mapping[int, bytes]) -> Combined:
        """Last messages -> the combined update."""
        result = self._party.aggregate(named(answers))
        return Combined(
            update=result.update,
            contributors=tuple(sorted(map(int, result.contributors))),
            rejected=numbered(result.rejected),
            state=result.state,
            lengths=numbered(result.lengths),
            metrics=result.metrics,
        )

    def individuals(self) -> dict[int, Contribution]:
        """What each contributor sent, where the server sees that."""
        return numbered(self._party.individuals())


def names_of(clients: Iterable[int]) -> tuple[str, ...]:
    """Clients as the privacy layer calls them."""
    return tuple(map(str, clients))


def named(values: Mapping[int, Value]) -> dict[str, Value]:
    """Values by client, for the privacy layer."""
    return {str(client): value for client, value in values.items()}


def numbered(values: Mapping[str, Value]) -> dict[int, Value]:
    """Values by client, from the privacy layer."""
    return {int(client): value for client, value in values.items()}
