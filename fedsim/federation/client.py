"""The Flower ClientApp: what a client does when a message reaches it.

``query.holds``     confirms a request: how many of the named records the client holds
``query.advertise``  the first message of an interactive privacy stage (public keys)
``query.share``      the second (shares of secrets)
``train``            local training, the privacy stages on the way out, and the reply
``query.unmask``     the last message of an interactive privacy stage (shares of others' secrets)

The app is stateless. What a client must remember (its ledger, where it stands in an interactive stage)
travels in the message's ``client-state`` record and is carried by the simulator, per branch. Only what a
deployed client must keep secret stays where it is, from the first message of a round to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fedsim.federation.beside import joined, put, taken
from fedsim.federation.grid import CLIENT_STATE, OWN, SHARED
from fedsim.federation.orders import WorkOrder
from fedsim.federation.records import from_record
from fedsim.federation.reports import telling
from fedsim.federation.runtime import ClientFailedError, ClientRuntime
from fedsim.federation.strategies.protocol import Trained, Vectors
from fedsim.life.events.protocol import Moment
from fedsim.model.vectors import Arrays, to_vector
from fedsim.training.jobs import TrainJob, TrainResult
from privacy import ClientParty, Ledger, Release, Update

INSTRUMENTS = "instruments"
"""Name of the record in which a simulated client says what its training took; not part of the protocol."""
UPDATE = "update"
"""Name of the record with what a client's training gave, as it leaves the privacy stages: ``PAYLOAD`` or
``CODES``."""
PAYLOAD = "payload"
CODES = "codes"


def make_client_app(runtime: ClientRuntime) -> ClientApp:
    """The ClientApp of all virtual clients; which one it is, the node's configuration says."""
    app = ClientApp()

    @app.query("holds")
    def holds(message: Message, context: Context) -> Message:
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
    step: Moment,
    what: Callable[[ClientParty, bytes], bytes],
) -> Message:
    """Answer a message of an interactive stage.

    ``what`` maps the client's party and what it heard to an answer.
    """
    client, order = configured_client(context), _order(message)
    _stay(order, step)
    party = runtime.party(client, order, _carried(message))
    said = what(party, _heard(message))
    memory = runtime.keep_memory(client, order, party)
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


def _stay(order: WorkOrder, *steps: Moment) -> None:
    """Fail if the scenario has the client drop out at one of these steps."""
    silent = [moment for condition in order.conditions if (moment := condition.silent_from()) in steps]
    if silent:
        raise ClientFailedError(f"dropped out {str(silent[0]).replace('_', ' ')}, as scripted")


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
    work = runtime.work(order)
    reference = content.array_records.get("reference")
    adapter = decode(content.array_records["arrays"])
    shared, own = _beside(runtime, content, to_vector(adapter).size)
    return TrainJob(
        client=client,
        round=order.round,
        seed=order.seed,
        adapter=adapter,
        reference=decode(reference) if reference is not None else None,
        pairs=tuple(runtime.pairs[client][position] for position in positions),
        record_ids=tuple(runtime.records[client][position].record_id for position in positions),
        local=order.local,
        objective=work.objective,
        refusals=runtime.refusals(client, positions, order.seed, work.objective),
        importance=work.importance,
        retained=runtime.retained(client, order, work.retain),
        drift=runtime.algorithm.drift(shared, own),
        rule=runtime.pipeline.local_rule(),
        task=runtime.task(client, order),
        ledger=ledger,
        keyed_secrets=runtime.keyed_secrets,
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
    own, whole = _with_extra(runtime, order, message, result)
    metrics = telling(runtime.pipeline, result.loss if runtime.work(order).tells else None)
    prepared = party.prepare(whole, weight=float(result.examples), metrics=metrics, delivery=_heard(message))
    memory = runtime.keep_memory(job.client, order, party)
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
    put(reply, OWN, own)
    if runtime.keyed_secrets:
        reply[INSTRUMENTS] = MetricRecord({"steps": result.steps, "tokens": result.tokens})
    return reply


def _beside(runtime: ClientRuntime, content: RecordDict, dimension: int) -> tuple[Vectors, Vectors]:
    """What the server sent beside the adapter, and what the client remembers."""
    names = runtime.algorithm.sends
    return taken(content, SHARED, names, dimension), taken(content, OWN, names, dimension)


def _with_extra(
    runtime: ClientRuntime, order: WorkOrder, message: Message, result: TrainResult
) -> tuple[Vectors, Update]:
    """What the client remembers from now on, and the vector that it sends; unlearning changes no memory."""
    algorithm = runtime.algorithm
    if order.method is not None or not algorithm.sends:
        return {}, joined(result.update, {}, algorithm.sends)
    shared, own = _beside(runtime, message.content, result.update.size)
    trained = Trained(update=result.update, steps=result.steps, local=order.local)
    own, extra = algorithm.after(trained, shared, own)
    return own, joined(result.update, extra, algorithm.sends)


def _sent(array: NDArray[Any], result: TrainResult) -> dict[str, Array]:
    """What travels of an update: its bytes, if they make it and the privacy stages left it as it was."""
    if result.codes and array.dtype == result.update.dtype and array.tobytes() == result.update.tobytes():
        return {CODES: Array(np.frombuffer(result.codes, dtype=np.uint8))}
    return {PAYLOAD: Array(array)}
