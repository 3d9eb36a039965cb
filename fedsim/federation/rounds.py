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
from dataclasses import dataclass, field

from fedsim.federation.attempt import Attempt, Engine, ask, attempt_round
from fedsim.federation.budgets import affordable_orders, with_affordable_roster
from fedsim.federation.exchange import Exchange, Running, Taken, carry, group_of
from fedsim.federation.influence import Heaviest, heaviest
from fedsim.federation.moving import apply, begin, settle, store
from fedsim.federation.orders import Assignment, WorkOrder, with_shares
from fedsim.federation.replies import ReplyError, read_count
from fedsim.federation.state import Federation
from fedsim.life.steps import Step
from fedsim.model.vectors import to_vector
from privacy import l2_norm


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
    assignment = engine.planner.assign(step, branch, federation.version, federation.kept)
    if assignment.compares or assignment.each:
        federation.keep_reference(assignment.request)
    begin(federation, step, engine)
    orders, exhausted = affordable_orders(assignment, branch, federation, engine)
    assignment = with_affordable_roster(assignment, branch, federation, engine)
    refused = yield from _confirm_request(step, orders, engine)
    orders = _without(orders, refused)
    tries = yield from _attempts(federation, orders, assignment, branch, engine)
    tried = _unless_lacking(tries.last, federation, assignment)
    result = tried.result
    before = federation.adapter
    store(federation, assignment, tried.updates)
    if result is not None:
        apply(federation, step, branch, result, assignment, engine, tried.updates)
        federation.remembered |= {client: own for client, own in tried.remembered.items() if own}
        federation.privacy_state = {**federation.privacy_state, **result.state}
    settled = settle(federation, step, assignment, engine, result)
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
    """Try a round until it gives a sum, each time without those who failed; not at all with too few."""
    reason = _lacking(federation, assignment, len(orders))
    if reason is not None:
        return _Tries(last=Attempt(aborted=reason))
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


def _lacking(federation: Federation, assignment: Assignment, count: int) -> str | None:
    """Why the Strategy can do nothing with the updates of ``count`` clients, or None."""
    return None if assignment.weights is not None else federation.algorithm.too_few(count)


def _unless_lacking(tried: Attempt, federation: Federation, assignment: Assignment) -> Attempt:
    """The attempt, without its result if that came of too few; trying again would not make them more."""
    if tried.result is None:
        return tried
    reason = _lacking(federation, assignment, len(tried.result.contributors))
    return tried if reason is None else Attempt(failed=tried.failed, aborted=reason)
