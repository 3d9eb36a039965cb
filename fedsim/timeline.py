"""One life as a tree of branches: every step they have in common runs once.

A branch is unrolled into steps that say all that decides a round: its number, who takes part with
which data, and which unlearning round it is, if any. Branches whose first n steps are equal share
them, so a shared prefix is shared by construction, and a client's absence changes nothing before
its first participation. Who takes part is drawn per client and round from keyed streams: nobody's
draw depends on who else is there.

The reference at round t is the life without everyone whose request was granted by t: one
``retrain#k`` branch per request prefix, each living until the next request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fedsim.events import DropStage
from fedsim.life import Life, RecordIds, unlearning_spans
from fedsim.rng import uniform
from fedsim.scenario import FixedCohort
from fedsim.unlearning.protocol import MethodConfig, Request


@dataclass(frozen=True, kw_only=True)
class Participant:
    """A client in a round, with the ids of its records that it no longer uses."""

    client: int
    without: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class UnlearningStep:
    """Marks a round as unlearning round ``index`` (0-based) of a method for a request."""

    branch: str
    request: int
    index: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """All that decides one round of one branch.

    ``nominal_size`` is how many clients would be there had nobody been forgotten: a public number,
    the same in all branches. ``drops`` says which of those who are asked fall silent, and when.
    """

    round: int
    cohort: tuple[Participant, ...]
    nominal_size: int
    unlearning: UnlearningStep | None = None
    drops: tuple[tuple[int, DropStage], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A way the life could go on. It is measured from round ``observed_from`` on; before, it only replays.

    ``rosters`` says for each step who was there to be drawn.
    """

    name: str
    steps: tuple[Step, ...]
    observed_from: int = 0
    rosters: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A run of steps that the same branches share, with what follows where they part."""

    branches: tuple[str, ...]
    start: int
    steps: tuple[Step, ...]
    children: tuple[Segment, ...] = field(default=())

    @property
    def owner(self) -> str:
        """The branch that names this segment's checkpoints: the first that shares it."""
        return self.branches[0]

    @property
    def end(self) -> int:
        """The last round of the segment."""
        return self.start + len(self.steps)

    def walk(self) -> Iterator[tuple[Segment, Segment | None]]:
        """Every segment below and including this one with its parent, depth first, parents first."""
        stack: list[tuple[Segment, Segment | None]] = [(self, None)]
        while stack:
            segment, parent = stack.pop()
            yield segment, parent
            stack.extend((child, segment) for child in reversed(segment.children))


def retrain_name(prefix: int) -> str:
    """The branch without the clients of requests 1..prefix."""
    return f"retrain#{prefix}"


@dataclass(frozen=True, kw_only=True)
class Participation:
    """How each round's cohort is drawn."""

    seed: int
    rule: float | FixedCohort

    def cohort(self, round_: int, roster: Sequence[int], nominal: Sequence[int]) -> list[int]:
        """The clients of ``roster`` that take part, in order of id.

        ``nominal`` are the clients that would be there had nobody been forgotten: a fixed cohort
        keeps the place of one that is gone empty (``replacement: none``) or gives it to the next.
        """
        rate = self.rule.rate if isinstance(self.rule, FixedCohort) else self.rule
        if rate is not None:
            drawn = [client for client in roster if self._draw("participation", round_, client) < rate]
            if isinstance(self.rule, FixedCohort):
                drawn = self._ordered(round_, drawn)[: self.rule.cohort]
            return sorted(drawn)
        assert isinstance(self.rule, FixedCohort), "a rule without a rate"
        order = self._ordered(round_, nominal if self.rule.replacement == "none" else roster)
        present = set(roster)
        return sorted(client for client in order[: self.rule.cohort] if client in present)

    def _ordered(self, round_: int, clients: Sequence[int]) -> list[int]:
        return sorted(sorted(clients), key=lambda client: self._draw("priority", round_, client))

    def _draw(self, name: str, round_: int, client: int) -> float:
        return uniform(self.seed, name, round_, client)


class _Roster:
    """Who is there with which data, in one branch."""

    def __init__(self, records: RecordIds, granted: Sequence[Request] = ()) -> None:
        self.records = records
        self.present: dict[int, set[str]] = {}
        self.granted = list(granted)
        """Requests still to come that this branch obeys from the start: it never uses their data."""

    def enter(self, client: int, brings: Sequence[str]) -> None:
        """Join with these records, save those that a granted request will ask to forget."""
        barred = {name for request in self.granted if request.client == client for name in request.record_ids}
        self.present[client] = set(brings) - barred

    def forget(self, request: Request) -> None:
        """From now on without these records; data that come again later are new."""
        if request.client in self.present:
            self.present[request.client] -= set(request.record_ids)
        if request in self.granted:
            self.granted.remove(request)

    def participants(self, clients: Sequence[int]) -> tuple[Participant, ...]:
        return tuple(
            Participant(
                client=client,
                without=tuple(name for name in self.records[client] if name not in self.present[client]),
            )
            for client in clients
        )

    def active(self) -> list[int]:
        return sorted(client for client, held in self.present.items() if held)


def unroll(
    life: Life, records: RecordIds, participation: Participation, methods: Sequence[MethodConfig]
) -> tuple[Branch, ...]:
    """Every branch of a life: keep, leave, one retrain per request prefix, and each method."""
    nominal: dict[int, list[int]] = {}

    def live(
        name: str, granted: int | None, method: MethodConfig | None, until: int, observed_from: int = 0
    ) -> Branch:
        steps, rosters = [], []
        roster = _Roster(records, life.requests[: granted or 0])
        pending: list[UnlearningStep] = []
        for round_ in range(1, until + 1):
            _apply_events(roster, life, round_ - 1, name, pending, method)
            active = roster.active()
            if name == "keep":
                nominal[round_] = active
            rosters.append(tuple(active))
            clients = participation.cohort(round_, active, nominal[round_])
            unlearning = pending.pop(0) if pending else None
            asked = {*clients, *([life.requests[unlearning.request - 1].client] if unlearning else [])}
            dropping = ((client, stage) for client, stage in life.drops(round_).items() if client in asked)
            steps.append(
                Step(
                    round=round_,
                    cohort=roster.participants(clients),
                    nominal_size=len(nominal[round_]),
                    unlearning=unlearning,
                    drops=tuple(sorted(dropping)),
                )
            )
        return Branch(name=name, steps=tuple(steps), observed_from=observed_from, rosters=tuple(rosters))

    branches = [live("keep", None, None, life.horizon), live("leave", None, None, life.horizon)]
    for prefix, request in enumerate(life.requests, start=1):
        last = life.requests[prefix].round if prefix < len(life.requests) else life.horizon
        branches.append(live(retrain_name(prefix), prefix, None, last, request.round))
    for method in methods:
        if method.unlearning_rounds > 0:
            branches.append(live(method.branch, None, method, life.horizon))
    return tuple(branches)


def _apply_events(
    roster: _Roster,
    life: Life,
    after: int,
    branch: str,
    pending: list[UnlearningStep],
    method: MethodConfig | None,
) -> None:
    """Let the events between round ``after`` and the next change a branch's roster."""
    for event in life.at(after):
        if event.kind == "join":
            for client in event.clients:
                roster.enter(client, roster.records[client])
        elif event.kind == "leave":
            roster.present.pop(event.clients[0], None)
        elif event.kind == "rejoin":
            assert event.brings is not None
            client = event.clients[0]
            # Where its request was ignored it never went, and loses nothing by coming back.
            kept = roster.present.get(client, set()) if branch == "keep" else set()
            roster.enter(client, [name for name in roster.records[client] if name in {*event.brings, *kept}])
        elif event.kind == "forget" and branch != "keep":
            assert event.request is not None
            request = life.requests[event.request - 1]
            roster.forget(request)
            if method is not None:
                pending.extend(
                    UnlearningStep(branch=method.branch, request=request.number, index=index)
                    for index in range(method.unlearning_rounds)
                )


def build_tree(branches: Sequence[Branch]) -> Segment:
    """Merge branches into segments: equal steps in the same place are one step."""
    return _segment([(branch.name, branch.steps) for branch in branches], start=0)


def _segment(group: list[tuple[str, tuple[Step, ...]]], start: int) -> Segment:
    depth = start
    while True:
        following = {steps[depth] if len(steps) > depth else None for _, steps in group}
        if len(following) != 1 or None in following:
            break
        depth += 1
    parts: dict[Step, list[tuple[str, tuple[Step, ...]]]] = {}
    for name, steps in group:
        if len(steps) > depth:
            parts.setdefault(steps[depth], []).append((name, steps))
    longest = max(group, key=lambda item: len(item[1]))[1]
    return Segment(
        branches=tuple(name for name, _ in group),
        start=start,
        steps=longest[start:depth],
        children=tuple(_segment(part, depth) for part in parts.values()),
    )


def replay_from(branches: Sequence[Branch], life: Life) -> dict[int, int]:
    """For each request, the first round that retraining for it must replay.

    That is where its reference parts from the reference before it; one past the request when the client
    had not taken part yet.
    """
    steps = {branch.name: branch.steps for branch in branches}
    first = {}
    for request in life.requests:
        before = steps[retrain_name(request.number - 1) if request.number > 1 else "keep"]
        own = steps[retrain_name(request.number)]
        shared = (a == b for a, b in zip(own, before, strict=False))
        parted = next((index + 1 for index, same in enumerate(shared) if not same), request.round + 1)
        first[request.number] = min(parted, request.round + 1)
    return first


def milestones(life: Life, methods: Sequence[MethodConfig]) -> frozenset[int]:
    """The rounds that matter: the first and last, around requests and probe events, ends of unlearning."""
    marks = {0, life.horizon}
    for event in life.events:
        if event.kind in ("forget", "probe"):
            marks |= {event.round, event.round + 1}
        elif event.kind == "rejoin":  # what was forgotten is judged before it comes back
            marks.add(event.round)
    for method in methods:
        marks |= {last for _, last in unlearning_spans(life, method.unlearning_rounds).values()}
    return frozenset(marks)


def probe_rounds(
    branches: Sequence[Branch], life: Life, methods: Sequence[MethodConfig], every: int
) -> Mapping[str, frozenset[int]]:
    """The rounds after which each branch is measured: every ``every``, around events, and milestones."""
    marks = set(milestones(life, methods))
    marks.update(round_ for round_ in range(life.horizon + 1) if round_ % every == 0)
    for event in life.events:
        marks.update({event.round, event.round + 1})
    chosen = {}
    for branch in branches:
        last = len(branch.steps)
        if branch.name.startswith("retrain#"):
            ends_at_request = last < life.horizon
            wanted = {r for r in marks if branch.observed_from <= r and (r < last or not ends_at_request)}
        else:
            wanted = marks
        chosen[branch.name] = frozenset(round_ for round_ in wanted if round_ <= last)
    return chosen
