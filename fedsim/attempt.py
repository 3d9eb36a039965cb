"""One attempt at a round: the messages of the privacy pipeline, from the first keys to the combined update.

A plain pipeline takes one exchange, in which clients train. An interactive one (secure aggregation) takes
four: keys, shares, training, unmasking. Whoever fails at one of them is left out from then on; whether the
others are enough, the pipeline says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fedsim.client import ClientRuntime
from fedsim.exchange import Exchange, group_of
from fedsim.federation import Federation, to_record, untouched_global_random
from fedsim.grid import CLIENT_STATE, RosterGrid, client_of, node_of
from fedsim.model import Arrays
from fedsim.orders import Assignment, Planner, WorkOrder
from fedsim.replies import ReplyError, Trained, said, trained
from fedsim.rng import secret_stream, stream
from fedsim.robust import needs_individuals
from privacy import Contribution, RoundAborted, RoundResult, ServerRound, SumUnusable


@dataclass(frozen=True, kw_only=True)
class Engine:
    """All that a round needs besides the state it changes; shared by all branches of one life."""

    grid: RosterGrid
    runtime: ClientRuntime
    planner: Planner


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What one attempt at a round gave. Without a result, another one without the ``failed`` may have one,
    unless this one is ``final``: its sum was read.

    ``updates`` holds by client what was combined, where the Strategy wants to do that itself."""

    result: RoundResult | None = None
    updates: Mapping[str, Contribution] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    aborted: str | None = None
    final: bool = False


@dataclass(kw_only=True)
class _Conversation:
    """What is said in one attempt: who is still in, what each simulated client remembers, who failed and
    why."""

    engine: Engine
    orders: dict[int, WorkOrder]
    memory: dict[int, bytes] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def say(self, action: str, setups: Mapping[str, bytes]) -> Exchange[dict[str, bytes]]:
        """Send ``query.ACTION`` to each client that ``setups`` names; answers by client."""
        orders = {int(client): self.orders[int(client)] for client in setups}
        states = {client: self.memory.get(client, b"") for client in orders}
        setup = {int(client): message for client, message in setups.items()}
        answers: dict[str, bytes] = {}
        for client, reply in (yield from ask(action, orders, self.engine, setup, states)).items():
            try:
                answers[str(client)], self.memory[client] = said(reply)
            except ReplyError as error:
                self.fail({client: str(error)})
        return answers

    def fail(self, reasons: Mapping[int, str]) -> None:
        """Clients of whom nothing more is expected."""
        self.failed |= {client: reason for client, reason in reasons.items() if client not in self.failed}


def attempt_round(
    federation: Federation,
    orders: Mapping[int, WorkOrder],
    assignment: Assignment,
    branch: str,
    attempt: int,
    engine: Engine,
) -> Exchange[Attempt]:
    """Send the orders, collect updates, aggregate; without orders, release what a sum of nobody's updates is.

    Updates that the server can see one by one are charged when they arrive; masked ones when their sum was
    read, since before that they say nothing.
    """
    pipeline = engine.runtime.pipeline
    weights = {str(c): order.weight for c, order in orders.items() if order.weight is not None}
    talk = _Conversation(engine=engine, orders=dict(orders))
    server: ServerRound | None = None
    try:
        server = pipeline.open_round(
            round_id=federation.round,
            branch=branch,
            attempt=attempt,
            cohort=[str(client) for client in orders],
            planned_weights=weights if assignment.planned else None,
            planned_total=assignment.planned_total,
            largest_weight=assignment.largest_weight(
                assignment.draw.expected() if pipeline.central else None
            ),
            normalise=assignment.normalise,
            ledger=federation.ledger,
            generator=_server_noise(engine, federation.round, attempt),
            roster=[str(client) for client in assignment.roster],
            invited=[str(client) for client in assignment.invited if client in orders],
            draw=assignment.draw,
            state=federation.privacy_state,
            counts=_counts(orders, engine.runtime),
        )
        deliveries: Mapping[str, bytes] | None = None
        if pipeline.interactive:
            roster = server.collect((yield from talk.say("advertise", {str(c): b"" for c in orders})))
            known = {str(c): roster for c in orders if c not in talk.failed and str(c) not in server.rejected}
            deliveries = server.deliver((yield from talk.say("share", known)))
        received = yield from _trained(federation, talk, deliveries, assignment)
        if pipeline.reveals == "individual":
            _charge(federation, received)
        if not received and not pipeline.releases_anyway:
            return Attempt(failed=talk.failed)
        requests = server.receive({client: sent.payload for client, sent in received.items()})
        answers = (yield from talk.say("unmask", requests)) if requests else {}
        result = server.aggregate(answers)
        one_by_one = needs_individuals(federation.strategy) and not assignment.planned
        updates = server.individuals() if one_by_one else {}
    except SumUnusable as error:
        _charge(federation, received if pipeline.reveals == "sum" else {})
        talk.fail(_by_number(server.rejected if server is not None else {}))
        return Attempt(failed=talk.failed, aborted=str(error), final=True)
    except RoundAborted as error:
        talk.fail(_by_number(server.rejected if server is not None else {}))
        return Attempt(failed=talk.failed, aborted=str(error))
    if pipeline.reveals == "sum":
        _charge(federation, received)
    talk.fail(_by_number(result.rejected))
    return Attempt(result=result, updates=updates, failed=talk.failed)


def _server_noise(engine: Engine, round_: int, attempt: int) -> np.random.Generator:
    """What the server's noise is drawn from: the same in every branch of a simulation, nobody's in a
    deployment."""
    if not engine.runtime.simulated:
        return secret_stream()
    return stream(engine.planner.seed, "server", round_, attempt)


def _counts(orders: Mapping[int, WorkOrder], runtime: ClientRuntime) -> dict[str, float]:
    """How many records each client has for its order: the weight that it may claim by examples."""
    return {str(client): float(len(runtime.select(client, order))) for client, order in orders.items()}


def _by_number(reasons: Mapping[str, str]) -> dict[int, str]:
    return {int(client): reason for client, reason in reasons.items()}


def _charge(federation: Federation, received: Mapping[str, Trained]) -> None:
    for sent in received.values():
        federation.ledger.extend(sent.made.releases())


def _trained(
    federation: Federation,
    talk: _Conversation,
    deliveries: Mapping[str, bytes] | None,
    assignment: Assignment,
) -> Exchange[dict[str, Trained]]:
    """Have those who are still in train: by client, what it sent."""
    orders = {
        client: order
        for client, order in talk.orders.items()
        if client not in talk.failed and (deliveries is None or str(client) in deliveries)
    }
    if not orders:
        return {}
    reference = federation.references.get(assignment.request)
    replies = yield _training_messages(federation, orders, talk, deliveries, reference)
    dimension = sum(array.size for array in federation.adapter.values())
    received: dict[str, Trained] = {}
    for reply in replies:
        client = client_of(reply.metadata.src_node_id)
        try:
            sent = trained(
                reply,
                client,
                orders[client],
                talk.engine.runtime,
                version=federation.version,
                dimension=dimension,
            )
        except ReplyError as error:
            talk.fail({client: str(error)})
        else:
            received[str(client)], talk.memory[client] = sent, sent.memory
    return received


def ask(
    action: str,
    orders: Mapping[int, WorkOrder],
    engine: Engine,
    setups: Mapping[int, bytes] | None = None,
    states: Mapping[int, bytes] | None = None,
) -> Exchange[dict[int, Message]]:
    """Send ``query.ACTION`` with each client's order, and with what the privacy pipeline has to say and what
    the client remembers of it, if anything; replies by client."""
    messages = []
    for client, order in sorted(orders.items()):
        content = RecordDict({"config": ConfigRecord({"order": order.model_dump_json()})})
        if setups is not None:
            content["setup"] = ConfigRecord({"message": setups[client]})
        if states is not None:
            content[CLIENT_STATE] = ConfigRecord({"memory": states[client]})
        group = group_of(order.branch, order.round)
        messages.append(engine.grid.create_message(content, f"query.{action}", node_of(client), group))
    replies = yield messages
    return {client_of(reply.metadata.src_node_id): reply for reply in replies}


def _training_messages(
    federation: Federation,
    orders: Mapping[int, WorkOrder],
    talk: _Conversation,
    deliveries: Mapping[str, bytes] | None,
    reference: Arrays | None,
) -> list[Message]:
    """The Strategy's training messages, each completed with its client's order."""
    grid = talk.engine.grid
    grid.roster = tuple(sorted(orders))
    arrays = to_record(federation.adapter)
    with untouched_global_random():
        configured = federation.strategy.configure_train(federation.round, arrays, ConfigRecord(), grid)
    compared = to_record(reference) if reference is not None else None
    messages = []
    for message in configured:
        client = client_of(message.metadata.dst_node_id)
        order = orders[client]
        config = ConfigRecord(dict(message.content.config_records["config"]))
        config["order"] = order.model_dump_json()
        content = RecordDict({"arrays": message.content.array_records["arrays"], "config": config})
        past = federation.ledger.past(str(client))
        content[CLIENT_STATE] = ConfigRecord(
            {"ledger": past.to_json(), "memory": talk.memory.get(client, b"")}
        )
        if deliveries is not None:
            content["setup"] = ConfigRecord({"message": deliveries[str(client)]})
        if compared is not None and _needs_reference(order, talk.engine):
            content["reference"] = compared
        kind, group = message.metadata.message_type, group_of(order.branch, order.round)
        messages.append(grid.create_message(content, kind, message.metadata.dst_node_id, group))
    return messages


def _needs_reference(order: WorkOrder, engine: Engine) -> bool:
    if order.method is None or order.role is None:
        return False
    return engine.runtime.objective(order.method, order.role).needs_reference
