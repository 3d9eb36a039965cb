"""What a round's combined update moves, and what a method makes of it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flwr.app import MetricRecord, RecordDict
from numpy.typing import NDArray

from fedsim.federation.attempt import Engine
from fedsim.federation.beside import parted
from fedsim.federation.one_by_one import combine
from fedsim.federation.orders import Assignment
from fedsim.federation.records import from_record, to_record
from fedsim.federation.reports import told
from fedsim.federation.server import Combined
from fedsim.federation.state import Federation
from fedsim.federation.strategies.protocol import Vectors
from fedsim.life.steps import Step, UnlearningStep
from fedsim.model.vectors import Arrays, Layout, from_vector
from fedsim.unlearning.desk import Desk, Forgetful, Sent
from fedsim.unlearning.protocol import MethodConfig
from fedsim.unlearning.request import Request
from privacy import Contribution


def store(federation: Federation, assignment: Assignment, updates: Mapping[int, Contribution]) -> None:
    """Store a round for the methods that will look back at it, also one to which nobody contributed."""
    if assignment.stored and federation.history is not None:
        federation.history.append(federation.round, federation.adapter, _sent(federation, updates))


def apply(
    federation: Federation,
    step: Step,
    branch: str,
    result: Combined,
    assignment: Assignment,
    engine: Engine,
    updates: Mapping[int, Contribution],
) -> None:
    """Move what the plan says: the adapter, the request's draft of it, or nothing."""
    vector, extra = _parted(federation, result.update)
    update = from_vector(vector, federation.adapter)
    if assignment.weights is None and federation.algorithm.sends:
        there, came = (engine.planner.there(step, branch, ago) for ago in (0, 1)), len(result.contributors)
        now, before = there
        share, grown = came / max(now, came), before / now if now else 1.0
        federation.shared = federation.algorithm.served(federation.shared, extra, share, grown)
    if assignment.each:
        assert step.unlearning is not None, "only a plan of unlearning combines by itself"
        method, request = _asked(step.unlearning, engine)
        sent = _sent(federation, updates)
        update = method.combined(request, step.unlearning.index, sent, _desk(federation, request))
    if assignment.moves == "adapter":
        move(federation, update, assignment, engine, updates)
        return
    number = assignment.request
    if assignment.moves == "draft":
        start = federation.starting_adapter(number, "draft")
        federation.keep(number, "draft", {name: start[name] + update[name] for name in start})
    else:
        assert step.unlearning is not None, "only a plan of unlearning moves nothing"
        federation.keep(number, f"round-{step.unlearning.index}", update)


def begin(federation: Federation, step: Step, engine: Engine) -> None:
    """Before a method's first round, put in place the draft that it begins with, if any.

    A client that is forgotten whole has nothing carried for it any more.
    """
    if step.unlearning is None or step.unlearning.index > 0:
        return
    method, request = _asked(step.unlearning, engine)
    if request.scope == "client":
        federation.remembered.pop(request.client, None)
    draft = method.draft(request, _desk(federation, request))
    if draft is not None:
        federation.keep(request.number, "draft", draft)


def settle(
    federation: Federation, step: Step, assignment: Assignment, engine: Engine, result: Combined | None
) -> bool:
    """Let a method remember what it will, and edit the adapter after its round; whether it did the latter."""
    if step.unlearning is None:
        return False
    method, request = _asked(step.unlearning, engine)
    loss = None if result is None else told(result.metrics, result.contributors, assignment.tellers)
    index, desk = step.unlearning.index, replace(_desk(federation, request), told=loss)
    for name, arrays in method.remember(request, index, desk).items():
        federation.keep(request.number, name, arrays)
    edited = method.settle(request, index, replace(desk, kept=federation.kept.get(request.number, {})))
    if edited is None:
        return False
    federation.replace(edited, server_state=assignment.server_state)
    return True


def _asked(unlearning: UnlearningStep, engine: Engine) -> tuple[MethodConfig, Request]:
    """The method of an unlearning round, and the request it answers."""
    return engine.planner.methods[unlearning.branch], engine.planner.request(unlearning)


def _desk(federation: Federation, request: Request) -> Desk:
    kept = federation.kept.get(request.number, {})
    return Desk(adapter=federation.adapter, kept=kept, history=federation.history or Forgetful())


def _sent(federation: Federation, updates: Mapping[int, Contribution]) -> dict[int, Sent]:
    """Updates one by one, as arrays of the adapter."""
    found = {}
    for client, one in updates.items():
        vector, _ = _parted(federation, one.update)
        found[client] = Sent(update=from_vector(vector, federation.adapter), weight=one.weight)
    return found


def _parted(federation: Federation, whole: NDArray[Any]) -> tuple[NDArray[Any], Vectors]:
    """The update in a vector that passed the privacy stages, and what travelled beside it."""
    return parted(whole, Layout.of(federation.adapter).size, federation.algorithm.sends)


def move(
    federation: Federation,
    update: Arrays,
    assignment: Assignment,
    engine: Engine,
    updates: Mapping[int, Contribution],
) -> None:
    """Move the adapter by the combined update.

    The update goes through the Strategy's optimiser, or around its memory. A robust Strategy combines
    ``updates`` itself. What was combined by planned weights goes around a robust one in any case.
    """
    if federation.algorithm.one_by_one and assignment.weights is None:
        moved = combine(federation.strategy, federation.adapter, updates, engine.grid, federation.round)
        federation.adopt(moved)
        return
    moved = {name: federation.adapter[name] + update[name] for name in federation.adapter}
    if assignment.server_state != "keep" or federation.algorithm.one_by_one:
        federation.replace(moved, server_state=assignment.server_state)
        return
    content = RecordDict({"arrays": to_record(moved), "metrics": MetricRecord({"weight": 1.0})})
    reply = engine.grid.reply_from_server(content, str(federation.round))
    arrays, _ = federation.strategy.aggregate_train(federation.round, [reply])
    assert arrays is not None, "a strategy given a valid reply returns arrays"
    federation.adopt(from_record(arrays))
