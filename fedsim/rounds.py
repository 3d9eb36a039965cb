"""One federated round of a branch, through Flower's Strategy, Grid and ClientApp.

An unlearning round takes the same way as any other: the method's plan only changes what clients are
asked to do and with which weight their updates count. After the privacy pipeline the Strategy gets one
synthetic reply, the adapter plus the mean update, and does what it does with it. A robust one (see
``fedsim.robust``) gets one reply per contributor; but weights that a plan has fixed are kept to, too.

A round is a generator that gives messages and takes their replies, so that the rounds of several branches
can send together and their clients train as one cohort.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import MetricRecord, RecordDict

from fedsim.attempt import Attempt, Engine, ask, attempt_round
from fedsim.exchange import Exchange, Running, Taken, carry, group_of
from fedsim.federation import Federation, from_record, to_record
from fedsim.influence import Heaviest, heaviest
from fedsim.model import from_vector, to_vector
from fedsim.orders import Assignment, WorkOrder, with_shares
from fedsim.replies import ReplyError, held
from fedsim.robust import combine, needs_individuals, too_few
from fedsim.timeline import Step
from privacy import Contribution, RoundResult, l2_norm


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
    """One round; whoever carries its messages counts what it takes.

    Faults of clients are recorded and left out. When a round aborts because clients failed, it is tried again
    without them; with nobody left the round is empty, unless it must be released anyway. It is not begun when
    the cohort is too small for the Strategy, and empty when too few contribute.
    """
    federation.round = step.round
    assignment = engine.planner.assign(step, branch, federation.version)
    orders = dict(assignment.orders)
    if assignment.needs_reference:
        federation.remember(assignment.request)
    exhausted = tuple(
        client
        for client, order in orders.items()
        if not _affordable(client, order, assignment, federation, engine)
    )
    for client in exhausted:
        del orders[client]
    assignment = _with_affordable_roster(assignment, branch, federation, engine)
    failures = yield from _confirm_request(step, orders, engine)
    for client in failures:
        del orders[client]
    pipeline = engine.runtime.pipeline
    anyway = pipeline.releases_anyway and bool(assignment.roster)
    helpers = assignment.draw.expected() if pipeline.central else None
    tried, repeated = Attempt(aborted=_lacking(federation, assignment, len(orders))), []
    for attempt in itertools.count() if tried.aborted is None else ():
        changes = {"attempt": attempt, "state": federation.privacy_state}
        asked = {client: order.model_copy(update=changes) for client, order in orders.items()}
        if asked or anyway:
            asked = with_shares(asked, helpers)
            tried = yield from attempt_round(federation, asked, assignment, branch, attempt, engine)
        failures |= tried.failed
        orders = {client: order for client, order in orders.items() if client not in tried.failed}
        if tried.result is not None or tried.final or not tried.failed or not orders:
            break
        repeated.append(tried.aborted or "nobody's update came")
    tried = _unless_lacking(tried, federation, assignment)
    result = tried.result
    before = federation.adapter
    if result is not None:
        _move(federation, result, assignment, engine, tried.updates)
        federation.privacy_state = {**federation.privacy_state, **result.state}
    change = to_vector(federation.adapter, sorted(before)) - to_vector(before, sorted(before))
    if engine.planner.is_last(step):
        federation.references.pop(assignment.request, None)
    contributors = tuple(sorted(int(name) for name in result.contributors)) if result else ()
    return RoundOutcome(
        kind=assignment.kind if result is not None else "empty",
        request=assignment.request,
        target=any(assignment.orders[client].role == "target" for client in contributors),
        contributors=contributors,
        failures=failures,
        exhausted=exhausted,
        aborted=tried.aborted,
        repeated=tuple(repeated),
        update_norm=l2_norm(change),
        taken=taken,
        heaviest=heaviest(result.lengths)
        if result is not None and not assignment.planned and not pipeline.protects
        else None,
    )


def _confirm_request(step: Step, orders: Mapping[int, WorkOrder], engine: Engine) -> Exchange[dict[int, str]]:
    """Before the first unlearning round, ask the forgetting client whether it holds what is to be forgotten.

    Gives the client with the reason when it does not answer or holds none of it.
    """
    targets = {client: order for client, order in orders.items() if order.role == "target"}
    if step.unlearning is None or step.unlearning.index > 0 or not targets:
        return {}
    refused: dict[int, str] = {}
    for client, reply in (yield from ask("forget", targets, engine)).items():
        try:
            if not held(reply):
                refused[client] = "holds none of the records that are to be forgotten"
        except ReplyError as error:
            refused[client] = str(error)
    return refused


def _affordable(
    client: int, order: WorkOrder, assignment: Assignment, federation: Federation, engine: Engine
) -> bool:
    """Whether the client's privacy budget allows this round, its local training included."""
    pipeline = engine.runtime.pipeline
    rule = pipeline.local_rule()
    task = engine.runtime.task(client, order)
    if rule is not None and task is not None and not rule.affordable(task, federation.ledger):
        return False
    return pipeline.affordable(
        str(client),
        ledger=federation.ledger,
        round_id=order.round,
        branch=order.branch,
        draw=assignment.draw if client in assignment.roster else None,
        invited=client in assignment.invited,
    )


def _with_affordable_roster(
    assignment: Assignment, branch: str, federation: Federation, engine: Engine
) -> Assignment:
    """With those alone who could have been drawn: whoever's budget is spent could not."""
    pipeline = engine.runtime.pipeline
    if not pipeline.central:
        return assignment
    left = tuple(
        client
        for client in assignment.roster
        if pipeline.affordable(
            str(client),
            ledger=federation.ledger,
            round_id=federation.round,
            branch=branch,
            draw=assignment.draw,
        )
    )
    return replace(assignment, roster=left)


def _lacking(federation: Federation, assignment: Assignment, count: int) -> str | None:
    """Why the Strategy can do nothing with the updates of ``count`` clients, or None."""
    return None if assignment.planned else too_few(federation.strategy, count)


def _unless_lacking(tried: Attempt, federation: Federation, assignment: Assignment) -> Attempt:
    """The attempt, without its result if that came of too few; trying again would not make them more."""
    if tried.result is None:
        return tried
    reason = _lacking(federation, assignment, len(tried.result.contributors))
    return tried if reason is None else Attempt(failed=tried.failed, aborted=reason)


def _move(
    federation: Federation,
    result: RoundResult,
    assignment: Assignment,
    engine: Engine,
    updates: Mapping[str, Contribution],
) -> None:
    """Move the adapter by the combined update, through the Strategy's optimiser or around its memory; or,
    given ``updates``, by what a robust Strategy makes of them. What was combined by planned weights goes
    around a robust one in any case: it remembers nothing."""
    if updates:
        moved = combine(federation.strategy, federation.adapter, updates, engine.grid, federation.round)
        federation.adopt(moved)
        return
    update = from_vector(result.update, federation.adapter)
    moved = {name: federation.adapter[name] + update[name] for name in federation.adapter}
    if assignment.server_state != "keep" or needs_individuals(federation.strategy):
        federation.replace(moved, server_state=assignment.server_state)
        return
    content = RecordDict({"arrays": to_record(moved), "metrics": MetricRecord({"weight": 1.0})})
    reply = engine.grid.reply_from_server(content, str(federation.round))
    arrays, _ = federation.strategy.aggregate_train(federation.round, [reply])
    assert arrays is not None, "a strategy given a valid reply returns arrays"
    federation.adopt(from_record(arrays))
