"""One federated round of a branch, through Flower's Strategy, Grid and ClientApp.

An unlearning round takes the same way as any other: the method's plan only changes what clients are
asked to do and with which weight their updates count. After the privacy pipeline the Strategy gets one
synthetic reply, the adapter plus the mean update, and does what it does with it. A robust one (see
``strategies.robust``) gets one reply per contributor; but weights that a plan has fixed are kept to, too.

A round is a generator that gives messages and takes their replies, so that the rounds of several branches
can send together and their clients train as one cohort.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import MetricRecord, RecordDict

from fedsim.federation.attempt import Attempt, Engine, ask, attempt_round
from fedsim.federation.exchange import Exchange, Running, Taken, carry, group_of
from fedsim.federation.influence import Heaviest, heaviest
from fedsim.federation.one_by_one import combine
from fedsim.federation.orders import Assignment, WorkOrder, with_shares
from fedsim.federation.records import from_record, to_record
from fedsim.federation.replies import ReplyError, read_count
from fedsim.federation.server import Combined
from fedsim.federation.state import Federation
from fedsim.life.steps import Step
from fedsim.model.vectors import from_vector, to_vector
from fedsim.unlearning.desk import Desk
from privacy import Contribution, Draw, RoundContext, l2_norm


@dataclass(frozen=True, kw_only=True)
class RoundOutcome:
    """What a round did, as its instruments counted it.

    ``kind`` is ``train``, ``unlearn`` or ``empty`` (nobody contributed: adapter and momentum stay).
    ``repeated`` says why each attempt before the last gave no sum. ``target`` tells whether the forgetting
    client of an unlearning round contributed. ``update_norm`` is the L2 norm of the adapter's change.
    ``failures`` gives each failed client's reason; ``exhausted`` the clients whose privacy budget is spent;
    ``aborted`` why no sum came out, or why there were too few for the Strategy. ``heaviest`` is the client
    whose update outweighed the others, in a round by the clients' own weights of which the server sees every
    update and promises nobody privacy.
    """

    kind: str
    request: int
    target: bool
    contributors: tuple[int, ...]
    failures: Mapping[int, str]
    exhausted: tuple[int, ...]
    aborted: str | None
    repeated: tuple[str, ...]
    update_norm: float
    taken: Taken
    heaviest: Heaviest | None = None


def run_round(federation: Federation, step: Step, branch: str, engine: Engine) -> RoundOutcome:
    """Run one round on ``federation``, in place."""
    return run_rounds([(federation, step, branch)], engine)[0]


def run_rounds(rounds: Sequence[tuple[Federation, Step, str]], engine: Engine) -> list[RoundOutcome]:
    """Run one round of each of several branches (federation, step, name), in place, sending together."""
    running = []
    for federation, step, branch in rounds:
        taken = Taken()
        exchange = _round(federation, step, branch, engine, taken)
        running.append(Running(group=group_of(branch, step.round), exchange=exchange, taken=taken))
    return carry(running, engine.grid)


def _round(
    federation: Federation, step: Step, branch: str, engine: Engine, taken: Taken
) -> Exchange[RoundOutcome]:
    """One round as a generator; the caller delivers its messages and counts their cost.

    Faults of clients are recorded and left out. When a round aborts because clients failed, it is tried again
    without them; with nobody left the round is empty, unless it must be released anyway. It is not begun when
    the cohort is too small for the Strategy, and empty when too few contribute.
    """
    federation.round = step.round
    assignment = engine.planner.assign(step, branch, federation.version)
    if assignment.compares:
        federation.keep_reference(assignment.request)
    orders, exhausted = _affordable(assignment, branch, federation, engine)
    assignment = _with_affordable_roster(assignment, branch, federation, engine)
    refused = yield from _confirm_request(step, orders, engine)
    orders = _without(orders, refused)
    reason = _lacking(federation, assignment, len(orders))
    if reason is None:
        tries = yield from _attempts(federation, orders, assignment, branch, engine)
    else:
        tries = _Tries(last=Attempt(aborted=reason))
    tried = _unless_lacking(tries.last, federation, assignment)
    result = tried.result
    before = federation.adapter
    if result is not None:
        _apply(federation, step, result, assignment, engine, tried.updates)
        federation.privacy_state = {**federation.privacy_state, **result.state}
    settled = _settle(federation, step, assignment, engine)
    if engine.planner.is_last(step):
        federation.kept.pop(assignment.request, None)
    contributors = result.contributors if result is not None else ()
    by_own_weights = assignment.weights is None and not engine.runtime.pipeline.protects
    return RoundOutcome(
        kind=assignment.kind if result is not None or settled else "empty",
        request=assignment.request,
        target=any(assignment.orders[client].role == "target" for client in contributors),
        contributors=contributors,
        failures={**refused, **tries.failures},
        exhausted=exhausted,
        aborted=tried.aborted,
        repeated=tries.repeated,
        update_norm=l2_norm(to_vector(federation.adapter) - to_vector(before)),
        taken=taken,
        heaviest=heaviest(result.lengths) if result is not None and by_own_weights else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Tries:
    """The last attempt at a round, who failed in any of them, and why each before the last gave no sum."""

    last: Attempt
    failures: Mapping[int, str] = field(default_factory=dict)
    repeated: tuple[str, ...] = ()


def _attempts(
    federation: Federation,
    orders: Mapping[int, WorkOrder],
    assignment: Assignment,
    branch: str,
    engine: Engine,
) -> Exchange[_Tries]:
    """Try a round until it gives a sum, each time without those who failed."""
    pipeline = engine.runtime.pipeline
    anyway = pipeline.releases_anyway and bool(assignment.sampling.roster)
    helpers = assignment.sampling.draw.expected() if pipeline.central else None
    failures: dict[int, str] = {}
    repeated: list[str] = []
    tried = Attempt()
    for attempt in itertools.count():
        changes = {"attempt": attempt, "state": federation.privacy_state}
        asked = {client: order.model_copy(update=changes) for client, order in orders.items()}
        if asked or anyway:
            asked = with_shares(asked, helpers)
            tried = yield from attempt_round(federation, asked, assignment, branch, attempt, engine)
        failures |= tried.failed
        orders = _without(orders, tried.failed)
        if tried.result is not None or tried.final or not tried.failed or not orders:
            break
        repeated.append(tried.aborted or "nobody's update came")
    return _Tries(last=tried, failures=failures, repeated=tuple(repeated))


def _without(orders: Mapping[int, WorkOrder], clients: Container[int]) -> dict[int, WorkOrder]:
    return {client: order for client, order in orders.items() if client not in clients}


def _confirm_request(step: Step, orders: Mapping[int, WorkOrder], engine: Engine) -> Exchange[dict[int, str]]:
    """Before the first unlearning round, ask the forgetting client whether it holds what is to be forgotten.

    Gives the client with the reason when it does not answer or holds none of it.
    """
    targets = {client: order for client, order in orders.items() if order.role == "target"}
    if step.unlearning is None or step.unlearning.index > 0 or not targets:
        return {}
    refused: dict[int, str] = {}
    for client, reply in (yield from ask("holds", targets, engine)).items():
        try:
            if not read_count(reply):
                refused[client] = "holds none of the records that are to be forgotten"
        except ReplyError as error:
            refused[client] = str(error)
    return refused


def _affordable(
    assignment: Assignment, branch: str, federation: Federation, engine: Engine
) -> tuple[dict[int, WorkOrder], tuple[int, ...]]:
    """The orders of clients whose privacy budget allows this round, and the clients whose budget is spent."""
    sampling = assignment.sampling
    rule = engine.runtime.pipeline.local_rule()

    def allowed(client: int, order: WorkOrder) -> bool:
        task = engine.runtime.task(client, order)
        if rule is not None and task is not None and not rule.affordable(task, federation.ledger):
            return False
        draw = sampling.draw if client in sampling.roster else None
        return _budget_allows(client, branch, draw, client in sampling.invited, federation, engine)

    orders = {client: order for client, order in assignment.orders.items() if allowed(client, order)}
    return orders, tuple(client for client in assignment.orders if client not in orders)


def _with_affordable_roster(
    assignment: Assignment, branch: str, federation: Federation, engine: Engine
) -> Assignment:
    """Keep those alone who could have been sampled: whoever's budget is spent could not."""
    sampling = assignment.sampling
    if not engine.runtime.pipeline.central:
        return assignment
    left = tuple(
        client
        for client in sampling.roster
        if _budget_allows(client, branch, sampling.draw, False, federation, engine)
    )
    return replace(assignment, sampling=replace(sampling, roster=left))


def _budget_allows(
    client: int, branch: str, draw: Draw | None, invited: bool, federation: Federation, engine: Engine
) -> bool:
    """Whether the privacy stages can afford this client in a round.

    Without a ``draw`` it could not be sampled.
    """
    name = str(client)
    alone = RoundContext(
        round_id=federation.round,
        branch=branch,
        roster=() if draw is None else (name,),
        invited=(name,) if invited else (),
        draw=Draw() if draw is None else draw,
    )
    return engine.runtime.pipeline.affordable(name, alone, federation.ledger)


def _lacking(federation: Federation, assignment: Assignment, count: int) -> str | None:
    """Why the Strategy can do nothing with the updates of ``count`` clients, or None."""
    return None if assignment.weights is not None else federation.algorithm.too_few(count)


def _unless_lacking(tried: Attempt, federation: Federation, assignment: Assignment) -> Attempt:
    """The attempt, without its result if that came of too few; trying again would not make them more."""
    if tried.result is None:
        return tried
    reason = _lacking(federation, assignment, len(tried.result.contributors))
    return tried if reason is None else Attempt(failed=tried.failed, aborted=reason)


def _apply(
    federation: Federation,
    step: Step,
    result: Combined,
    assignment: Assignment,
    engine: Engine,
    updates: Mapping[int, Contribution],
) -> None:
    """Move what the plan says: the adapter, the request's draft of it, or nothing."""
    if assignment.moves == "adapter":
        _move(federation, result, assignment, engine, updates)
        return
    update, request = from_vector(result.update, federation.adapter), assignment.request
    if assignment.moves == "draft":
        start = federation.starting_adapter(request, "draft")
        federation.keep(request, "draft", {name: start[name] + update[name] for name in start})
    else:
        assert step.unlearning is not None, "only a plan of unlearning moves nothing"
        federation.keep(request, f"round-{step.unlearning.index}", update)


def _settle(federation: Federation, step: Step, assignment: Assignment, engine: Engine) -> bool:
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


def _move(
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
