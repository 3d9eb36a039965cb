"""One attempt at a round: the messages of the privacy pipeline, from the first keys to the combined update.

A plain pipeline takes one exchange, in which clients train. An interactive one (secure aggregation) takes
four: keys, shares, training, unmasking. Whoever fails at one of them is left out from then on; whether the
others are enough, the pipeline says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fedsim.federation.beside import put
from fedsim.federation.exchange import Exchange, group_of
from fedsim.federation.grid import CLIENT_STATE, OWN, SHARED, RosterGrid, client_of, node_of
from fedsim.federation.orders import Assignment, WorkOrder
from fedsim.federation.planner import Planner
from fedsim.federation.records import to_record, untouched_global_random
from fedsim.federation.replies import ReplyError, Trained, read_answer, read_update
from fedsim.federation.runtime import ClientRuntime
from fedsim.federation.server import Combined, ServerEnd, named, names_of
from fedsim.federation.state import Federation
from fedsim.federation.strategies.protocol import Vectors
from fedsim.model.vectors import Layout
from fedsim.rng import secret_stream, stream
from privacy import Contribution, Reveals, RoundAborted, RoundContext, SumUnusable


@dataclass(frozen=True, kw_only=True)
class Engine:
    """All that a round needs besides the state it changes; shared by all branches of one life."""

    grid: RosterGrid
    runtime: ClientRuntime
    planner: Planner


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What one attempt at a round gave.

    Without a result, another one without the ``failed`` may have one, unless this one is ``final``: its sum
    was read.

    ``updates`` holds by client what was combined, where the Strategy or a method wants it one by one,
    ``remembered`` what its contributors remember from now on.
    """

    result: Combined | None = None
    updates: Mapping[int, Contribution] = field(default_factory=dict)
    remembered: Mapping[int, Vectors] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    aborted: str | None = None
    final: bool = False


def attempt_round(
    federation: Federation,
    orders: Mapping[int, WorkOrder],
    assignment: Assignment,
    branch: str,
    attempt: int,
    engine: Engine,
) -> Exchange[Attempt]:
    """Send the orders, collect updates, aggregate.

    With no orders left the noise alone is released: under central DP an empty round must look like any other.
    Updates that the server can see one by one are charged when they arrive; masked ones when their sum was
    read, since before that they say nothing.
    """
    pipeline = engine.runtime.pipeline
    talk = _Conversation(federation=federation, assignment=assignment, engine=engine, orders=dict(orders))
    try:
        talk.open(branch, attempt)
        deliveries = (yield from talk.agree()) if pipeline.interactive else None
        yield from talk.train(deliveries)
        if not talk.received and not pipeline.releases_anyway:
            return Attempt(failed=talk.failed)
        result = yield from talk.combine()
    except RoundAborted as error:
        if talk.server is not None:
            talk.fail(talk.server.rejected)
        return Attempt(failed=talk.failed, aborted=str(error), final=isinstance(error, SumUnusable))
    talk.fail(result.rejected)
    own = {client: talk.received[client].own for client in result.contributors}
    return Attempt(result=result, updates=talk.updates(), remembered=own, failed=talk.failed)


@dataclass(kw_only=True)
class _Conversation:
    """The state of one attempt while its messages pass.

    It holds the server's end, what was received, what each simulated client remembers, who failed and why.
    """

    federation: Federation
    assignment: Assignment
    engine: Engine
    orders: dict[int, WorkOrder]
    server: ServerEnd | None = None
    received: dict[int, Trained] = field(default_factory=dict)
    memory: dict[int, bytes] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def open(self, branch: str, attempt: int) -> None:
        """Open the server's end; RoundAborted when the cohort is too small for it."""
        federation, pipeline = self.federation, self.engine.runtime.pipeline
        sampling, weights = self.assignment.sampling, self.assignment.weights
        planned = {c: order.weight for c, order in self.orders.items() if order.weight is not None}
        largest = weights.largest(sampling.draw.expected()) if weights and pipeline.central else None
        context = RoundContext(
            round_id=federation.round,
            branch=branch,
            attempt=attempt,
            cohort=names_of(self.orders),
            generator=self._noise(attempt),
            ledger=federation.ledger,
            roster=names_of(sampling.roster),
            invited=names_of(client for client in sampling.invited if client in self.orders),
            draw=sampling.draw,
            planned_weights=named(planned) if weights else None,
            counts=named(self._counts()),
            largest_weight=largest,
            planned_total=weights.total if weights else None,
            state=federation.privacy_state,
        )
        normalise = weights.normalise if weights else True
        self.server = ServerEnd(pipeline.open_round(context, normalise=normalise))

    def agree(self) -> Exchange[dict[int, bytes]]:
        """Carry the messages before training, keys and shares; gives what each client gets of the others."""
        server = self._server()
        roster = server.collect((yield from self.say("advertise", dict.fromkeys(self.orders, b""))))
        out = self.failed.keys() | server.rejected.keys()
        known = {client: roster for client in self.orders if client not in out}
        return server.deliver((yield from self.say("share", known)))

    def train(self, deliveries: Mapping[int, bytes] | None) -> Exchange[None]:
        """Have those who are still in train, and take what they send."""
        orders = {
            client: order
            for client, order in self.orders.items()
            if client not in self.failed and (deliveries is None or client in deliveries)
        }
        replies = (yield self._training_messages(orders, deliveries)) if orders else []
        dimension = Layout.of(self.federation.adapter).size
        for reply in replies:
            client = client_of(reply.metadata.src_node_id)
            try:
                sent = read_update(
                    reply,
                    client,
                    orders[client],
                    self.engine.runtime,
                    version=self.federation.version,
                    dimension=dimension,
                )
            except ReplyError as error:
                self.fail({client: str(error)})
            else:
                self.received[client], self.memory[client] = sent, sent.memory
        self._charge("individual")

    def combine(self) -> Exchange[Combined]:
        """Add up what was received; clients are asked once more where masks must be taken off."""
        server = self._server()
        requests = server.receive({client: sent.payload for client, sent in self.received.items()})
        answers = (yield from self.say("unmask", requests)) if requests else {}
        try:
            combined = server.aggregate(answers)
        except SumUnusable:
            self._charge("sum")
            raise
        self._charge("sum")
        return combined

    def updates(self) -> dict[int, Contribution]:
        """Each contributor's update, if the Strategy or a method wants them one by one."""
        assignment = self.assignment
        one_by_one = self.federation.algorithm.one_by_one and assignment.weights is None
        wanted = one_by_one or assignment.each or assignment.stored
        return self._server().individuals() if wanted else {}

    def say(self, action: str, setups: Mapping[int, bytes]) -> Exchange[dict[int, bytes]]:
        """Send ``query.ACTION`` to each client that ``setups`` names; answers by client."""
        orders = {client: self.orders[client] for client in setups}
        states = {client: self.memory.get(client, b"") for client in orders}
        answers: dict[int, bytes] = {}
        for client, reply in (yield from ask(action, orders, self.engine, setups, states)).items():
            try:
                answers[client], self.memory[client] = read_answer(reply)
            except ReplyError as error:
                self.fail({client: str(error)})
        return answers

    def fail(self, reasons: Mapping[int, str]) -> None:
        """Record these clients as failed; they are asked nothing more."""
        self.failed |= {client: reason for client, reason in reasons.items() if client not in self.failed}

    def _server(self) -> ServerEnd:
        assert self.server is not None, "the round was opened"
        return self.server

    def _charge(self, revealed: Reveals) -> None:
        """Write what was received into the ledger, if this is what the server sees of it."""
        if self.engine.runtime.pipeline.reveals == revealed:
            for sent in self.received.values():
                self.federation.ledger.extend(sent.made.releases())

    def _noise(self, attempt: int) -> np.random.Generator:
        """Where the server's noise comes from.

        In a simulation it is the same in every branch, as branches are alternatives; parts of an ensemble
        live at once, and each has its own. In a deployment it is the operating system's.
        """
        if not self.engine.runtime.keyed_secrets:
            return secret_stream()
        part = self.assignment.part
        where = (self.federation.round, attempt) if part is None else (self.federation.round, attempt, part)
        return stream(self.engine.planner.seed, "server", *where)

    def _counts(self) -> dict[int, float]:
        """How many records each client has for its order: the weight that it may claim by examples."""
        select = self.engine.runtime.select
        return {client: float(len(select(client, order))) for client, order in self.orders.items()}

    def _training_messages(
        self, orders: Mapping[int, WorkOrder], deliveries: Mapping[int, bytes] | None
    ) -> list[Message]:
        """The Strategy's training messages, each completed with its client's order."""
        federation, grid = self.federation, self.engine.grid
        grid.roster = tuple(sorted(orders))
        request = self.assignment.request
        arrays = to_record(federation.starting_adapter(request, self.assignment.moves))
        with untouched_global_random():
            configured = federation.strategy.configure_train(federation.round, arrays, ConfigRecord(), grid)
        reference = federation.kept.get(request, {}).get("reference")
        compared = to_record(reference) if reference is not None else None
        messages = []
        for message in configured:
            client = client_of(message.metadata.dst_node_id)
            order = orders[client]
            config = ConfigRecord(dict(message.content.config_records["config"]))
            config["order"] = order.model_dump_json()
            content = RecordDict({"arrays": message.content.array_records["arrays"], "config": config})
            past = federation.ledger.past(str(client)).to_json()
            content[CLIENT_STATE] = ConfigRecord({"ledger": past, "memory": self.memory.get(client, b"")})
            if deliveries is not None:
                content["setup"] = ConfigRecord({"message": deliveries[client]})
            if compared is not None and order.role in self.assignment.compares:
                content["reference"] = compared
            if order.method is None:
                put(content, SHARED, federation.sent_beside())
                put(content, OWN, federation.remembered.get(client, {}))
            kind, group = message.metadata.message_type, group_of(order.branch, order.round)
            messages.append(grid.create_message(content, kind, message.metadata.dst_node_id, group))
        return messages


def ask(
    action: str,
    orders: Mapping[int, WorkOrder],
    engine: Engine,
    setups: Mapping[int, bytes] | None = None,
    states: Mapping[int, bytes] | None = None,
) -> Exchange[dict[int, Message]]:
    """Send ``query.ACTION`` with each client's order; replies by client.

    ``setups`` is what the privacy pipeline has to say to each, ``states`` what each remembers of it, if
    anything.
    """
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
