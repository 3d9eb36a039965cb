"""What a round's combined update moves, and what a method makes of it afterwards."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import MetricRecord, RecordDict

from fedsim.federation.attempt import Engine
from fedsim.federation.one_by_one import combine
from fedsim.federation.orders import Assignment
from fedsim.federation.records import from_record, to_record
from fedsim.federation.server import Combined
from fedsim.federation.state import Federation
from fedsim.life.steps import Step
from fedsim.model.vectors import from_vector
from fedsim.unlearning.desk import Desk
from privacy import Contribution


def apply(
    federation: Federation,
    step: Step,
    result: Combined,
    assignment: Assignment,
    engine: Engine,
    updates: Mapping[int, Contribution],
) -> None:
    """Move what the plan says: the adapter, the request's draft of it, or nothing."""
    if assignment.moves == "adapter":
        move(federation, result, assignment, engine, updates)
        return
    update, request = from_vector(result.update, federation.adapter), assignment.request
    if assignment.moves == "draft":
        start = federation.starting_adapter(request, "draft")
        federation.keep(request, "draft", {name: start[name] + update[name] for name in start})
    else:
        assert step.unlearning is not None, "only a plan of unlearning moves nothing"
        federation.keep(request, f"round-{step.unlearning.index}", update)


def settle(federation: Federation, step: Step, assignment: Assignment, engine: Engine) -> bool:
    """Let a method edit the adapter after its round; whether it did."""
    if step.unlearning is None:
        return False
    method = engine.planner.methods[step.unlearning.branch]
    request = engine.planner.requests[step.unlearning.request]
    desk = Desk(adapter=federation.adapter, kept=federation.kept.get(request.number, {}))
    edited = method.settle(request, step.unlearning.index, desk)
    if edited is None:
        return False
    federation.replace(edited, server_state=assignment.server_state)
    return True


def move(
    federation: Federation,
    result: Combined,
    assignment: Assignment,
    engine: Engine,
    updates: Mapping[int, Contribution],
) -> None:
    """Move the adapter by the combined update.

    The update goes through the Strategy's optimiser, or around its memory. Given ``updates``, a robust
    Strategy combines them. What was combined by planned weights goes around a robust one in any case.
    """
    if updates:
        moved = combine(federation.strategy, federation.adapter, updates, engine.grid, federation.round)
        federation.adopt(moved)
        return
    update = from_vector(result.update, federation.adapter)
    moved = {name: federation.adapter[name] + update[name] for name in federation.adapter}
    if assignment.server_state != "keep" or federation.algorithm.one_by_one:
        federation.replace(moved, server_state=assignment.server_state)
        return
    content = RecordDict({"arrays": to_record(moved), "metrics": MetricRecord({"weight": 1.0})})
    reply = engine.grid.reply_from_server(content, str(federation.round))
    arrays, _ = federation.strategy.aggregate_train(federation.round, [reply])
    assert arrays is not None, "a strategy given a valid reply returns arrays"
    federation.adopt(from_record(arrays))
