"""Rounds that matter: of unlearning, of measuring, of replaying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedsim.life.events.registry import EVENTS
from fedsim.life.script import Life
from fedsim.life.steps import Branch, Line
from fedsim.unlearning.protocol import MethodConfig
from fedsim.unlearning.request import Request


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A request as a method answers it, in rounds ``first`` to ``last`` (before ``first``: in none)."""

    request: Request
    first: int
    last: int


def answers(life: Life, method: MethodConfig) -> tuple[Answer, ...]:
    """How a method answers the requests of a life; they wait in line.

    A later request goes back as far as the ones before it: what was trained since is free of no other one.
    """
    found: list[Answer] = []
    unlearning: set[int] = set()
    busy, since = 0, life.horizon
    for request in life.requests:
        first = max(busy, request.round) + 1
        since = min(since, request.since)
        trained = tuple(round_ for round_ in range(1, first) if round_ not in unlearning)
        answered = replace(request, since=since, trained=trained)
        busy = first + method.rounds_for(answered) - 1
        unlearning.update(range(first, busy + 1))
        found.append(Answer(request=answered, first=first, last=busy))
    return tuple(found)


def judged_round(life: Life, request: Request) -> int:
    """The round after which a request is judged: the horizon, or the last one before its client came back."""
    back = [
        event.round
        for event in life.events
        if event.kind == "rejoin" and request.client in event.clients and event.round > request.round
    ]
    return min(back, default=life.horizon)


def replay_from(branches: Sequence[Branch], life: Life, line: Line | None = None) -> dict[int, int]:
    """For each request, the first round that retraining a line of lives for it must replay.

    That is where its reference parts from the reference before it; one past the request when the client
    had not taken part yet.
    """
    line = line or Line()
    steps = {branch.name: branch.steps for branch in branches}
    first = {}
    for request in life.requests:
        before, own = (steps[line.retrain(number)] for number in (request.number - 1, request.number))
        shared = (a == b for a, b in zip(own, before, strict=False))
        parted = next((index + 1 for index, same in enumerate(shared) if not same), request.round + 1)
        first[request.number] = min(parted, request.round + 1)
    return first


def milestones(life: Life, methods: Sequence[MethodConfig]) -> frozenset[int]:
    """The rounds that matter: the first and last, those of events, ends of unlearning."""
    marks = {0, life.horizon}
    for event in life.events:
        marks |= EVENTS[event.kind].milestones(event)
    for method in methods:
        marks |= {answer.last for answer in answers(life, method)}
    return frozenset(marks)


def probe_rounds(
    branches: Sequence[Branch], life: Life, methods: Sequence[MethodConfig], every: int
) -> Mapping[str, frozenset[int]]:
    """The rounds after which each branch is measured: every ``every``, around events, and milestones."""
    marks = set(milestones(life, methods))
    marks.update(round_ for round_ in range(life.horizon + 1) if round_ % every == 0)
    for event in life.events:
        marks.update({event.round, event.round + 1})
    chosen: dict[str, frozenset[int]] = {}
    for branch in branches:
        if branch.part:
            chosen[branch.name] = frozenset()
            continue
        last = len(branch.steps)
        if branch.name.startswith("retrain#"):
            ends_at_request = last < life.horizon
            wanted = {r for r in marks if branch.observed_from <= r and (r < last or not ends_at_request)}
        else:
            wanted = marks
        chosen[branch.name] = frozenset(round_ for round_ in wanted if round_ <= last)
    return chosen
