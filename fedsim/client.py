"""The Flower ClientApp: what a client does when a message reaches it.

``query.forget``     confirms a request: how many of the named records the client holds
``query.advertise``  the first message of an interactive privacy stage (public keys)
``query.share``      the second (shares of secrets)
``train``            local training, the privacy stages on the way out, and the reply
``query.unmask``     the last message of an interactive privacy stage (shares of others' secrets)

The app is stateless. What a client must remember (its ledger, where it stands in an interactive stage)
travels in the message's ``client-state`` record and is carried by the simulator, per branch. Only what a
deployed client must keep secret stays where it is, from the first message of a round to the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fedsim.data.records import Record
from fedsim.events import DropStage
from fedsim.federation import from_record
from fedsim.grid import CLIENT_STATE
from fedsim.model import Arrays
from fedsim.orders import WorkOrder
from fedsim.rng import secret_stream, stream
from fedsim.text import Pair
from fedsim.training import Executor, TrainJob, TrainResult, planned_steps
from fedsim.unlearning.protocol import MeanNll, Objective, Role
from privacy import ClientParty, Ledger, LocalTask, Pipeline, Release

INSTRUMENTS = "instruments"
"""Name of the record in which a simulated client says what its training took; not part of the protocol."""
UPDATE = "update"
"""Name of the record with what a client's training gave, as it leaves the privacy stages: ``PAYLOAD`` or
``CODES``."""
PAYLOAD = "payload"
CODES = "codes"


class ClientFailedError(RuntimeError):
    """Local training gave no usable update."""


@dataclass(frozen=True, kw_only=True)
class ClientRuntime:
    """What the clients of one process share: executor, encoded data, privacy pipeline, objectives.

    ``objective`` maps (method JSON, role) to a local loss; ``simulated`` derives key material and noise
    from the seed, while a deployment (False) takes them from the operating system.
    """

    executor: Executor
    records: Mapping[int, tuple[Record, ...]]
    pairs: Mapping[int, tuple[Pair, ...]]
    pipeline: Pipeline
    objective: Callable[[str, Role], Objective]
    simulated: bool = True
    kept: dict[tuple[str, int], tuple[tuple[int, int], bytes]] = field(default_factory=dict, repr=False)
    """A deployed client's memory by (branch, client), with the (round, attempt) it is of."""
    finished: set[tuple[str, int, int]] = field(default_factory=set, repr=False)
    """Rounds (branch, client, round) that a deployed client helped to unmask: it takes part in no other
    attempt at them, since the difference of two sums of one round is somebody's update."""

    def select(self, client: int, order: WorkOrder) -> list[int]:
        """Positions of the records that this order is about."""
        without, only = set(order.without), set(order.only)
        return [
            position
            for position, record in enumerate(self.records[client])
            if record.record_id not in without and (not only or record.record_id in only)
        ]

    def task(self, client: int, order: WorkOrder) -> LocalTask | None:
        """An order as the accountant sees it, where a privacy stage owns local training."""
        if self.pipeline.local_rule() is None:
            return None
        return local_task(client, order, nominal_records=len(self.records[client]))

    def party(
        self, client: int, order: WorkOrder, carried: bytes = b"", ledger: Ledger | None = None
    ) -> ClientParty:
        """This client's end of the privacy pipeline in this round, with what it remembers of it.

        A simulated client has that ``carried`` to it, a deployed one has kept it. What it releases is written
        into ``ledger``.

        Raises:
            ClientFailedError: a deployed client has helped to unmask this round already.
        """
        if (order.branch, client, order.round) in self.finished:
            raise ClientFailedError(
                f"client {client} helped to unmask round {order.round} and takes no part in another attempt"
            )
        if self.simulated:
            secret = stream(order.seed, "mask", order.branch, order.round, client, order.attempt).bytes(32)
            memory = carried
        else:
            place, memory = self.kept.get((order.branch, client), (None, b""))
            secret, memory = None, memory if place == (order.round, order.attempt) else b""
        return self.pipeline.client(
            str(client),
            round_id=order.round,
            branch=order.branch,
            attempt=order.attempt,
            secret=secret,
            memory=memory,
            generator=self._noise(client, order),
            planned_weight=order.weight,
            ledger=ledger,
            state=order.state,
        )

    def _noise(self, client: int, order: WorkOrder) -> np.random.Generator:
        """What the privacy stages draw at this client in one attempt; the same in every branch of a
        simulation."""
        if not self.simulated:
            return secret_stream()
        return stream(order.seed, "stage", order.round, client, order.attempt)

    def remember(self, client: int, order: WorkOrder, party: ClientParty) -> bytes:
        """Keep what a client must remember of a round; what is to be carried to it instead."""
        if self.simulated:
            return party.memory
        self.kept[order.branch, client] = ((order.round, order.attempt), party.memory)
        return b""

    def finish(self, client: int, order: WorkOrder) -> None:
        """Erase what a deployed client remembered of a round but that it is over: nobody can ask it about
        that again."""
        self.kept.pop((order.branch, client), None)
        if not self.simulated:
            self.finished.add((order.branch, client, order.round))


def make_client_app(runtime: ClientRuntime) -> ClientApp:
    """The ClientApp of all virtual clients; which one it is, the node's configuration says."""
    app = ClientApp()

    @app.query("forget")
    def forget(message: Message, context: Context) -> Message:
        client = configured_client(context)
        order = _order(message)
        held = len(runtime.select(client, order))
        return Message(RecordDict({"metrics": MetricRecord({"records": held})}), reply_to=message)

    @app.query("advertise")
    def advertise(message: Message, context: Context) -> Message:
        return _say(runtime, message, context, "before_keys", lambda party, heard: party.advertise())

    @app.query("share")
    def share(message: Message, context: Context) -> Message:
        return _say(runtime, message, context, "after_keys", lambda party, heard: party.share(heard))

    @app.query("unmask")
    def unmask(message: Message, context: Context) -> Message:
        return _say(runtime, message, context, "during_unmasking", lambda party, heard: party.unmask(heard))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        (reply,) = train_together(runtime, [(message, context)])
        if isinstance(reply, Exception):
            raise reply
        return reply

    return app


def _say(
    runtime: ClientRuntime,
    message: Message,
    context: Context,
    step: DropStage,
    what: Callable[[ClientParty, bytes], bytes],
) -> Message:
    """Answer a message of an interactive stage; ``what`` maps the client's party and what it heard to an
    answer."""
    client, order = configured_client(context), _order(message)
    _stay(order, step)
    party = runtime.party(client, order, _carried(message))
    said = what(party, _heard(message))
    memory = runtime.remember(client, order, party)
    if step == "during_unmasking":
        runtime.finish(client, order)
    content = RecordDict(
        {"setup": ConfigRecord({"message": said}), CLIENT_STATE: ConfigRecord({"memory": memory})}
    )
    return Message(content, reply_to=message)


def _heard(message: Message) -> bytes:
    """What the server says in an interactive stage; empty at the first message."""
    setup = message.content.config_records.get("setup")
    return bytes(setup["message"]) if setup is not None else b""  # type: ignore[arg-type]


def _carried(message: Message) -> bytes:
    """What a simulated client remembers."""
    state = message.content.config_records.get(CLIENT_STATE, ConfigRecord())
    return bytes(state.get("memory", b""))  # type: ignore[arg-type]


def _stay(order: WorkOrder, *steps: DropStage) -> None:
    """Fail if the scenario has the client drop out at one of these steps."""
    if order.drop in steps:
        raise ClientFailedError(f"dropped out {order.drop.replace('_', ' ')}, as scripted")


def train_together(
    runtime: ClientRuntime, asked: Sequence[tuple[Message, Context]]
) -> list[Message | Exception]:
    """Answer several clients' ``train`` messages, trained as one cohort; a client's exception is its answer.

    The same as asking them one by one. Arrays that several messages share are decoded once.
    """
    decoded: dict[int, Arrays] = {}

    def arrays(record: ArrayRecord) -> Arrays:
        if id(record) not in decoded:
            decoded[id(record)] = from_record(record)
        return decoded[id(record)]

    orders: list[WorkOrder | Exception] = []
    jobs: list[TrainJob] = []
    known: list[frozenset[Release]] = []
    for message, context in asked:
        try:
            order = _order(message)
            _stay(order, "before_keys", "after_keys", "after_shares")
            ledger = Ledger.from_json(str(message.content.config_records[CLIENT_STATE]["ledger"]))
            before = frozenset(ledger.releases())
            jobs.append(make_job(runtime, configured_client(context), order, message.content, ledger, arrays))
        except Exception as error:
            orders.append(error)
        else:
            orders.append(order)
            known.append(before)
    results = iter(zip(jobs, known, runtime.executor.train_clients(jobs), strict=True))
    replies: list[Message | Exception] = []
    for (message, _), given in zip(asked, orders, strict=True):
        if isinstance(given, Exception):
            replies.append(given)
            continue
        job, before, result = next(results)
        try:
            replies.append(Message(_reply(runtime, given, message, job, result, before), reply_to=message))
        except Exception as error:
            replies.append(error)
    return replies


def configured_client(context: Context) -> int:
    """Which client a node is: its configuration says."""
    return int(context.node_config["client"])


def _order(message: Message) -> WorkOrder:
    return WorkOrder.model_validate_json(str(message.content.config_records["config"]["order"]))


def make_job(
    runtime: ClientRuntime,
    client: int,
    order: WorkOrder,
    content: RecordDict,
    ledger: Ledger,
    decode: Callable[[ArrayRecord], Arrays] = from_record,
) -> TrainJob:
    """The training job that a work order describes."""
    positions = runtime.select(client, order)
    if not positions:
        raise ClientFailedError(f"client {client} holds no record that round {order.round} is about")
    objective = runtime.objective(order.method, order.role) if order.method and order.role else MeanNll()
    reference = content.array_records.get("reference")
    return TrainJob(
        client=client,
        round=order.round,
        seed=order.seed,
        adapter=decode(content.array_records["arrays"]),
        reference=decode(reference) if reference is not None else None,
        pairs=tuple(runtime.pairs[client][position] for position in positions),
        record_ids=tuple(runtime.records[client][position].record_id for position in positions),
        local=order.local,
        objective=objective,
        proximal_mu=order.proximal_mu,
        rule=runtime.pipeline.local_rule(),
        task=runtime.task(client, order),
        ledger=ledger,
        simulated=runtime.simulated,
    )


def local_task(client: int, order: WorkOrder, *, nominal_records: int) -> LocalTask:
    """An order as the accountant sees it: public numbers only.

    A client for whom no ordinary round is planned has a budget for the one training it is asked for.
    """
    steps = planned_steps(nominal_records, order.local)
    return LocalTask(
        client=str(client),
        round_id=order.round,
        branch=order.branch,
        attempt=order.attempt,
        nominal_records=nominal_records,
        steps=steps,
        planned_steps=order.planned_steps or steps,
        batch_size=float(order.local.batch_size),
    )


def _reply(
    runtime: ClientRuntime,
    order: WorkOrder,
    message: Message,
    job: TrainJob,
    result: TrainResult,
    known: frozenset[Release],
) -> RecordDict:
    """Pass the update through the privacy stages and pack what comes out, with the releases made.

    An update that was made of bytes and that no stage changed travels as these. What training took travels
    as ``instruments`` in a simulation; a deployed client does not tell.
    """
    if result.error is not None:
        raise ClientFailedError(result.error)
    assert job.ledger is not None
    party = runtime.party(job.client, order, _carried(message), job.ledger)
    prepared = party.prepare(result.update, weight=float(result.examples), delivery=_heard(message))
    memory = runtime.remember(job.client, order, party)
    made = Ledger(job.ledger.since(known))
    _stay(order, "after_masking")
    payload = prepared.payload
    reply = RecordDict(
        {
            UPDATE: ArrayRecord(_sent(payload.array, result)),
            "fields": ConfigRecord(dict(payload.fields)),
            "config": ConfigRecord({"version": order.version}),
            CLIENT_STATE: ConfigRecord({"ledger": made.to_json(), "memory": memory}),
        }
    )
    if runtime.simulated:
        reply[INSTRUMENTS] = MetricRecord({"steps": result.steps, "tokens": result.tokens})
    return reply


def _sent(array: NDArray[Any], result: TrainResult) -> dict[str, Array]:
    """What travels of an update: its bytes, if they make it and the privacy stages left it as it was."""
    if result.codes and array.dtype == result.update.dtype and array.tobytes() == result.update.tobytes():
        return {CODES: Array(np.frombuffer(result.codes, dtype=np.uint8))}
    return {PAYLOAD: Array(array)}
