"""One federated round of one branch, through Flower's Strategy, Grid and ClientApp.

An unlearning round takes the same way as any other: the method's plan only changes what clients are
asked to do and with which weight their updates count. After the privacy pipeline the Strategy gets one
synthetic reply, the adapter plus the mean update, and does what it does with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsim.client import ClientRuntime, Meter, WorkOrder, local_task
from fedsim.federation import Federation, from_record, to_record, untouched_global_random
from fedsim.grid import InProcessGrid, Traffic, client_of, node_of
from fedsim.model import from_vector, to_vector
from fedsim.scenario import LocalConfig
from fedsim.timeline import Participant, Step
from fedsim.unlearning.protocol import MethodConfig, Request, RoundPlan
from privacy import Ledger, Payload, RoundAborted, RoundResult


@dataclass(frozen=True, kw_only=True)
class Engine:
    """All that a round needs besides the state it changes; shared by all branches of one life.

    ``planned_steps`` is the most local steps each client may take in this life, for noise calibration.
    """

    seed: int
    grid: InProcessGrid
    runtime: ClientRuntime
    local: LocalConfig
    methods: Mapping[str, MethodConfig]
    requests: Mapping[int, Request]
    proximal_mu: float = 0.0
    planned_steps: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RoundOutcome:
    """What a round did, as its instruments counted it.

    ``kind`` is ``train``, ``unlearn`` or ``empty`` (nobody contributed: adapter and momentum stay).
    ``update_norm`` is the L2 norm of the adapter's change. ``failures`` gives each failed client's
    reason; ``exhausted`` the clients whose privacy budget is spent.
    """

    kind: str
    request: int
    contributors: tuple[int, ...]
    failures: Mapping[int, str]
    exhausted: tuple[int, ...]
    update_norm: float
    meter: Meter
    traffic: Traffic


@dataclass(frozen=True, kw_only=True)
class _Assignment:
    """The orders of a round, and how the server combines the updates."""

    orders: Mapping[int, WorkOrder]
    planned: bool
    normalise: bool
    kind: str
    request: int


def run_round(federation: Federation, step: Step, branch: str, engine: Engine) -> RoundOutcome:
    """Run one round on ``federation``, in place.

    Faults of clients are recorded and left out. When a masked round aborts, it is tried again without
    the clients that failed; with nobody left the round is empty.
    """
    federation.round = step.round
    assignment = _assign(federation, step, branch, engine)
    orders = dict(assignment.orders)
    exhausted = tuple(client for client, order in orders.items() if not _affordable(client, order, federation, engine))
    for client in exhausted:
        del orders[client]
    failures: dict[int, str] = {}
    result: RoundResult | None = None
    attempt = 0
    while orders and result is None:
        attempt_orders = {client: order.model_copy(update={"attempt": attempt}) for client, order in orders.items()}
        result, failed = _attempt(federation, attempt_orders, assignment, branch, engine)
        failures |= failed
        orders = {client: order for client, order in orders.items() if client not in failed}
        attempt += 1
        if result is None and not failed:
            break
    before = federation.adapter
    if result is not None:
        _step_strategy(federation, result, engine)
    change = to_vector(federation.adapter, sorted(before)) - to_vector(before, sorted(before))
    _forget_reference(federation, step, engine)
    return RoundOutcome(
        kind=assignment.kind if result is not None else "empty",
        request=assignment.request,
        contributors=tuple(sorted(int(name) for name in result.contributors)) if result else (),
        failures=failures,
        exhausted=exhausted,
        update_norm=float(np.linalg.norm(change)),
        meter=engine.runtime.meter.reset(),
        traffic=engine.grid.traffic.reset(),
    )


# --------------------------------------------------------------------------- who does what


def _assign(federation: Federation, step: Step, branch: str, engine: Engine) -> _Assignment:
    """Turn a step into one order per client."""
    if step.unlearning is None:
        orders = {p.client: _ordinary(federation, step, branch, p, engine) for p in step.cohort}
        return _Assignment(orders=orders, planned=False, normalise=True, kind="train", request=0)
    method = engine.methods[step.unlearning.branch]
    request = engine.requests[step.unlearning.request]
    federation.references.setdefault(
        request.number, {name: value.copy() for name, value in federation.adapter.items()}
    )
    plan = method.plan(request, step.unlearning.index)
    orders = _planned_orders(federation, step, branch, plan, method, request, engine)
    return _Assignment(
        orders=orders,
        planned=True,
        normalise=plan.combine == "mean",
        kind="unlearn",
        request=request.number,
    )


def _ordinary(
    federation: Federation, step: Step, branch: str, participant: Participant, engine: Engine
) -> WorkOrder:
    return WorkOrder(
        round=step.round,
        seed=engine.seed,
        branch=branch,
        version=federation.version,
        local=engine.local,
        without=participant.without,
        proximal_mu=engine.proximal_mu,
        planned_steps=engine.planned_steps.get(participant.client, 0),
    )


def _planned_orders(
    federation: Federation,
    step: Step,
    branch: str,
    plan: RoundPlan,
    method: MethodConfig,
    request: Request,
    engine: Engine,
) -> dict[int, WorkOrder]:
    """Orders of an unlearning round; the forgetting client has one role, that of the target."""
    settings = method.model_dump_json()
    orders: dict[int, WorkOrder] = {}
    if plan.helper is not None:
        helpers = [p for p in step.cohort if plan.target is None or p.client != request.client]
        for participant in helpers:
            orders[participant.client] = _ordinary(federation, step, branch, participant, engine).model_copy(
                update={
                    "method": settings,
                    "role": "helper",
                    "weight": plan.helper.weight / len(helpers),
                    "local": _overridden(engine.local, plan.helper.lr, plan.helper.epochs),
                }
            )
    if plan.target is not None:
        participant = Participant(client=request.client)
        orders[request.client] = _ordinary(federation, step, branch, participant, engine).model_copy(
            update={
                "method": settings,
                "role": "target",
                "only": request.record_ids,
                "weight": plan.target.weight,
                "local": _overridden(engine.local, plan.target.lr, plan.target.epochs),
            }
        )
    return orders


def _overridden(local: LocalConfig, lr: float | None, epochs: int | None) -> LocalConfig:
    changes = {"lr": lr, "epochs": epochs}
    return local.model_copy(update={key: value for key, value in changes.items() if value is not None})


def _affordable(client: int, order: WorkOrder, federation: Federation, engine: Engine) -> bool:
    """Whether the client's privacy budget allows this round's local training."""
    rule = engine.runtime.pipeline.local_rule()
    if rule is None:
        return True
    records = engine.runtime.records[client]
    used = len(engine.runtime.select(client, order))
    task = local_task(client, order, nominal_records=len(records), used=used)
    return rule.affordable(task, federation.ledger)


def _forget_reference(federation: Federation, step: Step, engine: Engine) -> None:
    """Drop a request's reference adapter after its last unlearning round."""
    if step.unlearning is not None:
        method = engine.methods[step.unlearning.branch]
        if step.unlearning.index == method.unlearning_rounds - 1:
            del federation.references[step.unlearning.request]


# ------------------------------------------------------------------------- one attempt


def _attempt(
    federation: Federation,
    orders: Mapping[int, WorkOrder],
    assignment: _Assignment,
    branch: str,
    engine: Engine,
) -> tuple[RoundResult | None, dict[int, str]]:
    """Send the orders, collect updates, aggregate; gives the result (or None) and failures by client."""
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
            advertised, failed = _advertise(orders, engine)
            if failed:
                return None, failed
            setup = server.collect(advertised)
        replies = engine.grid.send_and_receive(_messages(federation, orders, setup, engine))
        received, failed = _sift(replies, federation.version)
        if failed and pipeline.needs_all:
            return None, failed
        result = server.aggregate({client: payload for client, (payload, _) in received.items()})
    except RoundAborted as error:
        return None, {client: f"round aborted: {error}" for client in orders}
    for client in result.contributors:
        federation.ledger.extend(received[client][1].releases())
    return result, failed | {int(client): reason for client, reason in result.rejected.items()}


def _advertise(
    orders: Mapping[int, WorkOrder], engine: Engine
) -> tuple[dict[str, bytes], dict[int, str]]:
    """Collect the first messages of an interactive stage."""
    asked = [
        engine.grid.create_message(_order_content(order), "query.advertise", node_of(client), str(order.round))
        for client, order in sorted(orders.items())
    ]
    advertised: dict[str, bytes] = {}
    failed: dict[int, str] = {}
    for reply in engine.grid.send_and_receive(asked):
        client = client_of(reply.metadata.src_node_id)
        if reply.has_error():
            failed[client] = reply.error.reason
        else:
            advertised[str(client)] = reply.content.config_records["setup"]["message"]
    return advertised, failed


def _order_content(order: WorkOrder) -> RecordDict:
    return RecordDict({"config": ConfigRecord({"order": order.model_dump_json()})})


def _messages(
    federation: Federation, orders: Mapping[int, WorkOrder], setup: bytes | None, engine: Engine
) -> list[Message]:
    """The Strategy's training messages, each completed with its client's order."""
    engine.grid.roster = tuple(sorted(orders))
    arrays = to_record(federation.adapter)
    with untouched_global_random():
        configured = federation.strategy.configure_train(
            federation.round, arrays, ConfigRecord(), engine.grid
        )
    reference = _reference_record(federation, orders, engine)
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
        if reference is not None and _needs_reference(order, engine):
            content["reference"] = reference
        messages.append(
            engine.grid.create_message(
                content, message.metadata.message_type, message.metadata.dst_node_id, str(federation.round)
            )
        )
    return messages


def _needs_reference(order: WorkOrder, engine: Engine) -> bool:
    if order.method is None or order.role is None:
        return False
    return engine.runtime.objective(order.method, order.role).needs_reference


def _reference_record(
    federation: Federation, orders: Mapping[int, WorkOrder], engine: Engine
) -> ArrayRecord | None:
    """The adapter at the time of the request that this round is about, if some loss compares with it."""
    if not any(_needs_reference(order, engine) for order in orders.values()):
        return None
    return to_record(federation.references[max(federation.references)])


def _sift(
    replies: Sequence[Message], version: int
) -> tuple[dict[str, tuple[Payload, Ledger]], dict[int, str]]:
    """By client: what it sent with the releases it made, or why it sent nothing usable."""
    received: dict[str, tuple[Payload, Ledger]] = {}
    failed: dict[int, str] = {}
    for reply in replies:
        client = client_of(reply.metadata.src_node_id)
        if reply.has_error():
            failed[client] = reply.error.reason
            continue
        content = reply.content
        started_from = content.config_records["config"]["version"]
        if started_from != version:
            failed[client] = f"trained on version {started_from}, the server is at {version}"
            continue
        array = content.array_records["update"]["payload"].numpy()
        payload = Payload(array=array, fields=dict(content.config_records["fields"]))
        ledger = Ledger.from_json(str(content.config_records["client-state"]["ledger"]))
        received[str(client)] = (payload, ledger)
    return received, failed


def _step_strategy(federation: Federation, result: RoundResult, engine: Engine) -> None:
    """Give the Strategy one reply: the adapter plus the combined update."""
    update = from_vector(result.update, federation.adapter)
    moved = {name: federation.adapter[name] + update[name] for name in federation.adapter}
    content = RecordDict({"arrays": to_record(moved), "metrics": MetricRecord({"weight": 1.0})})
    reply = engine.grid.reply_from_server(content, str(federation.round))
    arrays, _ = federation.strategy.aggregate_train(federation.round, [reply])
    assert arrays is not None, "a strategy given a valid reply returns arrays"
    federation.adopt(from_record(arrays))
