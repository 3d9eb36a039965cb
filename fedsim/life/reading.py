"""From the events of a scenario to a checked life.

Impossible lives are refused here: training with nobody, forgetting who never joined, leaving twice,
asking for more unlearning rounds than the life has left.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Literal

from fedsim.data.names import ClientNames
from fedsim.life.events import Drop, Event, Forget, Rejoin
from fedsim.life.schedule import unlearning_spans
from fedsim.life.script import EventKind, Life, LifeEvent, RecordIds
from fedsim.places import KeyPath, Source
from fedsim.rng import uniform
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
    reader = _Reader(records, seed, source, names)
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


class _Reader:
    """Walks the timeline once, keeping track of who is there."""

    def __init__(self, records: RecordIds, seed: int, source: Source, names: ClientNames) -> None:
        self.records, self.seed, self.source, self.names = records, seed, source, names
        self.round = 0
        self.status: dict[int, str] = {}
        self.events: list[LifeEvent] = []
        self.requests: list[Request] = []
        self.request_events: list[int] = []
        self.forgotten: dict[int, set[str]] = {}

    def read(self, index: int, event: Event) -> None:
        key: KeyPath = ("timeline", index)
        if event.join is not None:
            self._join((*key, "join", "clients"), event.join.clients)
        elif event.train is not None:
            if not self._present():
                raise self.source.error(
                    (*key, "train"), f"nobody is there to train in round {self.round + 1}; let clients join"
                )
            self.round += event.train.rounds
        elif event.forget is not None:
            self._forget((*key, "forget"), event.forget)
            self.request_events.append(index)
        elif event.leave is not None:
            client = self._id((*key, "leave", "client"), event.leave.client)
            self._must_be_present((*key, "leave", "client"), client, "leave")
            self.status[client] = f"already left, after round {self.round}"
            self._add("leave", (client,), f"{self.names.text(client)} leaves")
        elif event.rejoin is not None:
            self._rejoin((*key, "rejoin"), event.rejoin)
        elif event.drop is not None:
            self._drop((*key, "drop", "clients"), event.drop)
        elif event.probe is not None:
            self._add("probe", (), event.probe.label)

    def _add(self, kind: EventKind, clients: tuple[int, ...], text: str, **more: Any) -> None:
        self.events.append(LifeEvent(round=self.round, kind=kind, clients=clients, text=text, **more))

    def _present(self) -> list[int]:
        return [client for client, status in self.status.items() if status == "present"]

    def _id(self, key: KeyPath, written: int | str) -> int:
        try:
            return self.names.find(written)
        except ValueError as error:
            raise self.source.error(key, str(error)) from None

    def _ids(self, key: KeyPath, written: Sequence[int | str], everybody: Sequence[int]) -> tuple[int, ...]:
        try:
            return self.names.read(written, everybody)
        except ValueError as error:
            raise self.source.error(key, str(error)) from None

    def _must_be_present(self, key: KeyPath, client: int, verb: str) -> None:
        status = self.status.get(client)
        if status == "present":
            return
        why = "never joined" if status is None else status
        near = min(self._present(), key=lambda other: abs(other - client), default=None)
        choice = "; nobody is there"
        if near is not None:
            choice = f"; the nearest client that is there is {self.names.name(near)}"
        raise self.source.error(
            key, f"{self.names.text(client)} cannot {verb} after round {self.round}: it {why}{choice}"
        )

    def _join(self, key: KeyPath, written: Sequence[int | str]) -> None:
        clients = self._ids(key, written, [client for client in self.records if client not in self.status])
        if not clients:
            raise self.source.error(key, "all clients of the data have joined already; leave this event out")
        for client in clients:
            status = self.status.get(client)
            if status is not None:
                how = "is already there" if status == "present" else f"{status}; use rejoin to bring it back"
                raise self.source.error(
                    key, f"{self.names.text(client)} cannot join after round {self.round}: it {how}"
                )
            self.status[client] = "present"
        self._add("join", clients, f"{self.names.range_text(clients)} join{'s' if len(clients) == 1 else ''}")

    def _drop(self, key: KeyPath, drop: Drop) -> None:
        clients = self._ids(key, drop.clients, self._present())
        if not clients:
            raise self.source.error(key, "nobody is there to drop out; let clients join")
        for client in clients:
            self._must_be_present(key, client, "drop out")
        who, when = self.names.range_text(clients), drop.stage.replace("_", " ")
        text = f"{who} drop{'s' if len(clients) == 1 else ''} out {when}"
        self._add("drop", clients, text, drop=drop)

    def _forget(self, key: KeyPath, forget: Forget) -> None:
        client = self._id((*key, "client"), forget.client)
        if not self.status.get(client, "").startswith("already left"):
            self._must_be_present((*key, "client"), client, "be forgotten")
        gone = self.forgotten.setdefault(client, set())
        held = [name for name in self.records[client] if name not in gone]
        if not held:
            raise self.source.error((*key, "client"), f"{self.names.text(client)} holds no records to forget")
        number = len(self.requests) + 1
        chosen = self._chosen(key, forget, client, held)
        scope: Literal["client", "records"] = "records" if len(chosen) < len(held) else "client"
        if scope == "client":
            self.status[client] = f"was already forgotten, after round {self.round}"
        gone.update(chosen)
        what = "to be forgotten" if scope == "client" else f"to forget {len(chosen)} of {len(held)} records"
        self._add("forget", (client,), f"{self.names.text(client)} asks {what}", request=number)
        self.requests.append(
            Request(number=number, client=client, round=self.round, scope=scope, record_ids=tuple(chosen))
        )

    def _chosen(self, key: KeyPath, forget: Forget, client: int, held: list[str]) -> list[str]:
        if forget.records is not None:
            for name in forget.records:
                self._must_hold((*key, "records"), client, name, held)
            return list(dict.fromkeys(forget.records))
        if forget.fraction is None:
            return held
        if len(held) == 1:
            raise self.source.error(
                (*key, "fraction"),
                f"{self.names.text(client)} holds one record only; leave fraction out to forget the client",
            )
        count = min(max(1, round(forget.fraction * len(held))), len(held) - 1)
        priority = {name: uniform(self.seed, "forget", client, name) for name in held}
        chosen = set(sorted(held, key=lambda name: priority[name])[:count])
        return [name for name in held if name in chosen]

    def _must_hold(self, key: KeyPath, client: int, name: str, held: Sequence[str]) -> None:
        if name in held:
            return
        if name in self.records[client]:
            raise self.source.error(key, f"{self.names.text(client)} already forgot its record {name!r}")
        near = difflib.get_close_matches(name, held, n=1, cutoff=0.0)
        raise self.source.error(
            key, f"{self.names.text(client)} has no record {name!r}; nearest is {near[0]!r}"
        )

    def _rejoin(self, key: KeyPath, rejoin: Rejoin) -> None:
        client, records = self._id((*key, "client"), rejoin.client), rejoin.records
        status = self.status.get(client)
        if status is None or status == "present":
            how = "never joined; use join" if status is None else "is already there"
            raise self.source.error(
                (*key, "client"),
                f"{self.names.text(client)} cannot rejoin after round {self.round}: it {how}",
            )
        brings = self.records[client] if records == "all" else tuple(dict.fromkeys(records))
        for name in brings:
            self._must_hold((*key, "records"), client, name, self.records[client])
        self.status[client] = "present"
        self.forgotten[client] = set(self.records[client]) - set(brings)
        self._add(
            "rejoin", (client,), f"{self.names.text(client)} rejoins with {_count(brings)}", brings=brings
        )


def _count(records: Sequence[str]) -> str:
    return f"{len(records)} record{'' if len(records) == 1 else 's'}"


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
        spans = unlearning_spans(life, method.unlearning_rounds)
        for request, index in zip(life.requests, request_events, strict=True):
            busy_until = spans[request.number][1]
            if busy_until > life.horizon:
                raise source.error(
                    ("timeline", index, "forget"),
                    f"{method.branch} takes {method.unlearning_rounds} rounds per request and would end "
                    f"after round {busy_until}, but the life ends after round {life.horizon}; add "
                    f"{busy_until - life.horizon} or more rounds of training at the end",
                )
