"""One federated round of a branch, through Flower's Strategy, Grid and ClientApp.

An unlearning round takes the same way as any other: the method's plan only changes what clients are
asked to do and with which weight their updates count. After the privacy pipeline the Strategy gets one
synthetic reply, the adapter plus the mean update, and does what it does with it.

A round is a generator that gives messages and takes their replies, so that the rounds of several branches
can send together and their clients train as one cohort.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedsim.client import UPDATE, ClientRuntime, local_task
from fedsim.exchange import Exchange, Running, Taken, carry, group_of
from fedsim.federation import Federation, from_record, to_record, untouched_global_random
from fedsim.grid import RosterGrid, client_of, node_of
from fedsim.model import Arrays, from_vector, to_vector
from fedsim.orders import Assignment, Planner, WorkOrder, with_shares
from fedsim.timeline import Step
from privacy import Ledger, Payload, RoundAborted, RoundResult, l2_norm


@dataclass(frozen=True, kw_only=True)
class Engine:
    """All that a round needs besides the state it changes; shared by all branches of one life."""

    grid: RosterGrid
    runtime: ClientRuntime
    planner: Planner


@dataclass(frozen=True, kw_only=True)
class RoundOutcome:
    """What a round did, as its instruments counted it.

    ``kind`` is ``train``, ``unlearn`` or ``empty`` (nobody contributed: adapter and momentum stay).
    ``target`` tells whether the forgetting client of an unlearning round contributed.
    ``update_norm`` is the L2 norm of the adapter's change. ``failures`` gives each failed client's
    reason; ``exhausted`` the clients whose privacy budget is spent; ``aborted`` why no sum came out.
    """

    kind: str
    request: int
    target: bool
    contributors: tuple[int, ...]
    failures: Mapping[int, str]
    exhausted: tuple[int, ...]
    aborted: str | None
    update_norm: float
    taken: Taken


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """What one attempt at a round gave; without a result and without failures it is final."""

    result: RoundResult | None = None
    failed: Mapping[int, str] = field(default_factory=dict)
    aborted: str | None = None


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

    Faults of clients are recorded and left out. When a masked round aborts, it is tried again without
    the clients that failed; with nobody left the round is empty.
    """
    federation.round = step.round
    assignment = engine.planner.assign(step, branch, federation.version)
    orders = dict(assignment.orders)
    if assignment.needs_reference:
        federation.remember(assignment.request)
    exhausted = tuple(
        client for client, order in orders.items() if not _affordable(client, order, federation, engine)
    )
    for client in exhausted:
        del orders[client]
    failures = yield from _confirm_request(step, orders, engine)
    for client in failures:
        del orders[client]
    tried = _Attempt()
    for attempt in itertools.count():
        if not orders or tried.result is not None or tried.aborted is not None:
            break
        asked = {client: order.model_copy(update={"attempt": attempt}) for client, order in orders.items()}
        tried = yield from _attempt(federation, with_shares(asked), assignment, branch, engine)
        failures |= tried.failed
        orders = {client: order for client, order in orders.items() if client not in tried.failed}
    result = tried.result
    before = federation.adapter
    if result is not None:
        _move(federation, result, assignment, engine)
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
        update_norm=l2_norm(change),
        taken=taken,
    )


def _confirm_request(step: Step, orders: Mapping[int, WorkOrder], engine: Engine) -> Exchange[dict[int, str]]:
    """Before the first unlearning round, ask the forgetting client whether it holds what is to be forgotten.

    Gives the client with the reason when it does not answer or holds none of it.
    """
    targets = {client: order for client, order in orders.items() if order.role == "target"}
    if step.unlearning is None or step.unlearning.index > 0 or not targets:
        return {}
    refused: dict[int, str] = {}
    for client, reply in (yield from _ask("forget", targets, engine)).items():
        if reply.has_error():
            refused[client] = str(reply.error.reason)
        elif not reply.content.metric_records["metrics"]["records"]:
            refused[client] = "holds none of the records that are to be forgotten"
    return refused


def _affordable(client: int, order: WorkOrder, federation: Federation, engine: Engine) -> bool:
    """Whether the client's privacy budget allows this round's local training."""
    rule = engine.runtime.pipeline.local_rule()
    if rule is None:
        return True
    task = local_task(client, order, nominal_records=len(engine.runtime.records[client]))
    return rule.affordable(task, federation.ledger)


def _attempt(
    federation: Federation,
    orders: Mapping[int, WorkOrder],
    assignment: Assignment,
    branch: str,
    engine: Engine,
) -> Exchange[_Attempt]:
    """Send the orders, collect updates, aggregate."""
    pipeline = engine.runtime.pipeline
    weights = {str(c): order.weight for c, order in orders.items() if order.weight is not None}
    some = next(iter(orders.values()))
    try:
        server = pipeline.open_round(
            round_id=some.round,
            branch=branch,
            attempt=some.attempt,
            cohort=[str(client) for client in orders],
            planned_weights=weights if assignment.planned else None,
            normalise=assignment.normalise,
            ledger=federation.ledger,
        )
        setup = None
        if pipeline.interactive:
            advertised, failed = yield from _advertise(orders, engine)
            if failed:
                return _Attempt(failed=failed)
            setup = server.collect(advertised)
        reference = federation.references.get(assignment.request)
        replies = yield _messages(federation, orders, setup, reference, engine)
        received, failed = _sift(replies, federation.version)
        if failed and (pipeline.needs_all or not received):
            # Nothing is charged: without the others a masked payload says nothing.
            return _Attempt(failed=failed)
        result = server.aggregate({client: payload for client, (payload, _) in received.items()})
    except RoundAborted as error:
        return _Attempt(aborted=str(error))
    for _, made in received.values():
        federation.ledger.extend(made.releases())
    rejected = {int(client): reason for client, reason in result.rejected.items()}
    return _Attempt(result=result, failed=failed | rejected)


def _ask(action: str, orders: Mapping[int, WorkOrder], engine: Engine) -> Exchange[dict[int, Message]]:
    """Send ``query.ACTION`` with each client's order; replies by client."""
    messages = [
        engine.grid.create_message(
            RecordDict({"config": ConfigRecord({"order": order.model_dump_json()})}),
            f"query.{action}",
            node_of(client),
            group_of(order.branch, order.round),
        )
        for client, order in sorted(orders.items())
    ]
    replies = yield messages
    return {client_of(reply.metadata.src_node_id): reply for reply in replies}


def _advertise(
    orders: Mapping[int, WorkOrder], engine: Engine
) -> Exchange[tuple[dict[str, bytes], dict[int, str]]]:
    """Collect the first messages of an interactive stage, and why some did not come."""
    advertised: dict[str, bytes] = {}
    failed: dict[int, str] = {}
    for client, reply in (yield from _ask("advertise", orders, engine)).items():
        if reply.has_error():
            failed[client] = str(reply.error.reason)
        else:
            advertised[str(client)] = cast(bytes, reply.content.config_records["setup"]["message"])
    return advertised, failed


def _messages(
    federation: Federation,
    orders: Mapping[int, WorkOrder],
    setup: bytes | None,
    reference: Arrays | None,
    engine: Engine,
) -> list[Message]:
    """The Strategy's training messages, each completed with its client's order."""
    engine.grid.roster = tuple(sorted(orders))
    arrays = to_record(federation.adapter)
    with untouched_global_random():
        configured = federation.strategy.configure_train(
            federation.round, arrays, ConfigRecord(), engine.grid
        )
    compared = to_record(reference) if reference is not None else None
    messages = []
    for message in configured:
        client = client_of(message.metadata.dst_node_id)
        order = orders[client]
        config = ConfigRecord(dict(message.content.config_records["config"]))
        config["order"] = order.model_dump_json()
        content = RecordDict({"arrays": message.content.array_records["arrays"], "config": config})
        ledger = Ledger(federation.ledger.releases(str(client)))
        content["client-state"] = ConfigRecord({"ledger": ledger.to_json()})
        if setup is not None:
            content["setup"] = ConfigRecord({"message": setup})
        if compared is not None and _needs_reference(order, engine):
            content["reference"] = compared
        messages.append(
            engine.grid.create_message(
                content,
                message.metadata.message_type,
                message.metadata.dst_node_id,
                group_of(order.branch, order.round),
            )
        )
    return messages


def _needs_reference(order: WorkOrder, engine: Engine) -> bool:
    if order.method is None or order.role is None:
        return False
    return engine.runtime.objective(order.method, order.role).needs_reference


def _sift(
    replies: Sequence[Message], version: int
) -> tuple[dict[str, tuple[Payload, Ledger]], dict[int, str]]:
    """By client: what it sent with the releases it made, or why it sent nothing usable."""
    received: dict[str, tuple[Payload, Ledger]] = {}
    failed: dict[int, str] = {}
    for reply in replies:
        client = client_of(reply.metadata.src_node_id)
        try:
            received[str(client)] = _unpack(reply, version)
        except KeyError as error:
            failed[client] = f"the reply lacks {error}"
        except (TypeError, ValueError) as error:
            failed[client] = str(error)
    return received, failed


def _unpack(reply: Message, version: int) -> tuple[Payload, Ledger]:
    """A reply's payload and releases; KeyError, TypeError or ValueError when they cannot be used."""
    if reply.has_error():
        raise ValueError(reply.error.reason)
    records = reply.content.config_records
    started_from = records["config"]["version"]
    if started_from != version:
        raise ValueError(f"trained on version {started_from!r}, the server is at {version}")
    array = reply.content.array_records[UPDATE]["payload"].numpy()
    fields = cast(dict[str, int | float | str], dict(records["fields"]))
    ledger = Ledger.from_json(str(records["client-state"]["ledger"]))
    return Payload(array=array, fields=fields), ledger


def _move(federation: Federation, result: RoundResult, assignment: Assignment, engine: Engine) -> None:
    """Move the adapter by the combined update, through the Strategy's optimiser or around its memory."""
    update = from_vector(result.update, federation.adapter)
    moved = {name: federation.adapter[name] + update[name] for name in federation.adapter}
    if assignment.server_state != "keep":
        federation.replace(moved, server_state=assignment.server_state)
        return
    content = RecordDict({"arrays": to_record(moved), "metrics": MetricRecord({"weight": 1.0})})
    reply = engine.grid.reply_from_server(content, str(federation.round))
    arrays, _ = federation.strategy.aggregate_train(federation.round, [reply])
    assert arrays is not None, "a strategy given a valid reply returns arrays"
    federation.adopt(from_record(arrays))
