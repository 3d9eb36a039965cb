"""From the events of a scenario to a checked life.

Impossible lives are refused here: training with nobody, forgetting who never joined, leaving twice,
asking for more unlearning rounds than the life has left.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from fedsim.data.names import ClientNames
from fedsim.life.events.registry import Event
from fedsim.life.schedule import answers
from fedsim.life.script import Life, LifeEvent, RecordIds
from fedsim.places import KeyPath, Source
from fedsim.unlearning.protocol import MethodConfig
from fedsim.unlearning.request import Request

MOST_TURNS = 2_000_000
"""Rounds times clients of one life: each branch plans who takes part in every one."""


def read_life(
    timeline: Sequence[Event],
    methods: Sequence[MethodConfig],
    records: RecordIds,
    *,
    seed: int,
    source: Source,
    names: ClientNames | None = None,
) -> Life:
    """Resolve a timeline, in which ``methods`` are to be compared, against the clients that the data has.

    ``records`` gives the record ids of each client, ``names`` what they are called (by default their
    numbers). Raises ScenarioError at the offending event.
    """
    names = names or ClientNames.of(str(client) for client in records)
    reader = Reader(records, seed, source, names)
    for index, event in enumerate(timeline):
        reader.read(index, event)
    life = Life(
        horizon=reader.round, events=tuple(reader.events), requests=tuple(reader.requests), names=names
    )
    if life.horizon == 0:
        raise source.error(("timeline",), "the life has no round of training; add - train: {rounds: 10}")
    turns = life.horizon * len(records)
    if turns > MOST_TURNS:
        raise source.error(
            ("timeline",),
            f"{life.horizon:,} rounds of {len(records):,} clients are {turns:,} turns to plan; at most "
            f"{MOST_TURNS:,} make one life",
        )
    _check_room(methods, life, reader.request_events, source)
    return life


class Reader:
    """Walks the timeline once, keeping track of who is there; events write themselves into it.

    ``status`` says of each client that ever joined whether it is ``present`` or why it is not; ``forgotten``
    which of its records are; ``since`` the first round in which its others could be trained on;
    ``request_events`` at which place of the timeline each request stands.
    """

    def __init__(self, records: RecordIds, seed: int, source: Source, names: ClientNames) -> None:
        self.records, self.seed, self.source, self.names = records, seed, source, names
        self.round = 0
        self.index = 0
        self.status: dict[int, str] = {}
        self.events: list[LifeEvent] = []
        self.requests: list[Request] = []
        self.request_events: list[int] = []
        self.forgotten: dict[int, set[str]] = {}
        self.since: dict[int, int] = {}

    def read(self, index: int, event: Event) -> None:
        """Let the event at a place of the timeline happen."""
        self.index = index
        happening = event.given()
        happening.enter(self, ("timeline", index, happening.name))

    def add(self, kind: str, clients: tuple[int, ...], text: str, **more: Any) -> None:
        """Write an event into the life, after the rounds so far."""
        self.events.append(LifeEvent(round=self.round, kind=kind, clients=clients, text=text, **more))

    def grant(self, request: Request) -> None:
        """Write a request into the life."""
        self.requests.append(request)
        self.request_events.append(self.index)

    def enters(self, client: int) -> None:
        """From the next round on the client is there; if it was before, what it did then still counts."""
        self.status[client] = "present"
        self.since.setdefault(client, self.round + 1)

    def present(self) -> list[int]:
        """Clients that are there now."""
        return [client for client, status in self.status.items() if status == "present"]

    def find(self, key: KeyPath, written: int | str) -> int:
        """The client that is written so."""
        try:
            return self.names.find(written)
        except ValueError as error:
            raise self.source.error(key, str(error)) from None

    def find_all(
        self, key: KeyPath, written: Sequence[int | str], everybody: Sequence[int]
    ) -> tuple[int, ...]:
        """The clients that are written so; ``all`` stands for ``everybody``."""
        try:
            return self.names.read(written, everybody)
        except ValueError as error:
            raise self.source.error(key, str(error)) from None

    def find_present(self, key: KeyPath, written: Sequence[int | str], verb: str) -> tuple[int, ...]:
        """Clients that are written so and must be there to ``verb``."""
        clients = self.find_all(key, written, self.present())
        if not clients:
            raise self.source.error(key, f"nobody is there to {verb}; let clients join")
        for client in clients:
            self.must_be_present(key, client, verb)
        return clients

    def must_be_present(self, key: KeyPath, client: int, verb: str) -> None:
        """Refuse an event for a client that is not there, with the nearest that is."""
        status = self.status.get(client)
        if status == "present":
            return
        why = "never joined" if status is None else status
        near = min(self.present(), key=lambda other: abs(other - client), default=None)
        choice = "; nobody is there"
        if near is not None:
            choice = f"; the nearest client that is there is {self.names.name(near)}"
        raise self.source.error(
            key, f"{self.names.text(client)} cannot {verb} after round {self.round}: it {why}{choice}"
        )

    def must_hold(self, key: KeyPath, client: int, name: str, held: Sequence[str]) -> None:
        """Refuse a record that the client does not hold, with the nearest that it does."""
        if name in held:
            return
        if name in self.records[client]:
            raise self.source.error(key, f"{self.names.text(client)} already forgot its record {name!r}")
        near = difflib.get_close_matches(name, held, n=1, cutoff=0.0)
        raise self.source.error(
            key, f"{self.names.text(client)} has no record {name!r}; nearest is {near[0]!r}"
        )


def _check_room(
    methods: Sequence[MethodConfig], life: Life, request_events: Sequence[int], source: Source
) -> None:
    """Every method's unlearning rounds must fit between its requests and the end of the life."""
    if life.requests and life.requests[-1].round >= life.horizon:
        raise source.error(
            ("timeline", request_events[-1], "forget"),
            "no round follows the request, so nothing can be observed; add - train: {rounds: 5}",
        )
    for method in methods:
        for answer, index in zip(answers(life, method), request_events, strict=True):
            if answer.last > life.horizon:
                rounds = answer.last - answer.first + 1
                raise source.error(
                    ("timeline", index, "forget"),
                    f"{method.branch} takes {rounds} round{'' if rounds == 1 else 's'} for this request and "
                    f"would end after round {answer.last}, but the life ends after round {life.horizon}; add "
                    f"{answer.last - life.horizon} or more rounds of training at the end",
                )
