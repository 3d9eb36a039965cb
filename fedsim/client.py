"""The Flower ClientApp: what a client does when a message reaches it.

``query.forget``     confirms a request: how many of the named records the client holds
``query.advertise``  the first message of an interactive privacy stage (a public key)
``train``            local training, the privacy stages on the way out, and the reply

The app is stateless. What a client must remember (its ledger) travels in the message's
``client-state`` record and is carried by the simulator, per branch. Only a deployed client's key material
stays where it is, from the advertisement to the update.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.data.records import Record
from fedsim.federation import from_record
from fedsim.model import Arrays
from fedsim.orders import WorkOrder
from fedsim.rng import secret_stream, stream
from fedsim.scenario import LocalConfig
from fedsim.text import Pair
from fedsim.training import Executor, TrainJob, TrainResult, planned_steps
from fedsim.unlearning.protocol import MeanNll, Objective, Role
from privacy import ClientParty, Ledger, LocalTask, Pipeline, Release

INSTRUMENTS = "instruments"
"""Name of the record in which a simulated client says what its training took; not part of the protocol."""
UPDATE = "update"
"""Name of the record with what a client's training gave, as it leaves the privacy stages."""


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
    """A deployed client's key material by (branch, client), with the (round, attempt) it is for."""

    def select(self, client: int, order: WorkOrder) -> list[int]:
        """Positions of the records that this order is about."""
        without, only = set(order.without), set(order.only)
        return [
            position
            for position, record in enumerate(self.records[client])
            if record.record_id not in without and (not only or record.record_id in only)
        ]

    def party(self, client: int, order: WorkOrder) -> ClientParty:
        """This client's end of the privacy pipeline in this round."""
        return self.pipeline.client(
            str(client),
            round_id=order.round,
            branch=order.branch,
            attempt=order.attempt,
            secret=self._secret(client, order),
            generator=stream(order.seed, "stage", order.round, client) if self.simulated else secret_stream(),
            planned_weight=order.weight,
        )

    def _secret(self, client: int, order: WorkOrder) -> bytes:
        """32 bytes of key material for one attempt; a deployed client draws them and keeps them till used."""
        if self.simulated:
            return stream(order.seed, "mask", order.branch, order.round, client, order.attempt).bytes(32)
        place = (order.round, order.attempt)
        held, secret = self.kept.get((order.branch, client), (None, b""))
        if held != place:
            secret = os.urandom(32)
            self.kept[order.branch, client] = (place, secret)
        return secret

    def done(self, client: int, order: WorkOrder) -> None:
        """Forget the key material of an attempt: nothing is sealed with it twice."""
        self.kept.pop((order.branch, client), None)


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
        client = configured_client(context)
        setup = ConfigRecord({"message": runtime.party(client, _order(message)).advertise()})
        content = RecordDict({"setup": setup})
        return Message(content, reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        (reply,) = train_together(runtime, [(message, context)])
        if isinstance(reply, Exception):
            raise reply
        return reply

    return app


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
            ledger = Ledger.from_json(str(message.content.config_records["client-state"]["ledger"]))
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
            replies.append(
                Message(_reply(runtime, given, message.content, job, result, before), reply_to=message)
            )
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
    rule = runtime.pipeline.local_rule()
    task = None
    if rule is not None:
        task = local_task(client, order, nominal_records=len(runtime.records[client]))
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
        rule=rule,
        task=task,
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
    content: RecordDict,
    job: TrainJob,
    result: TrainResult,
    known: frozenset[Release],
) -> RecordDict:
    """Pass the update through the privacy stages and pack what comes out, with the releases made.

    What training took travels as ``instruments`` in a simulation; a deployed client does not tell.
    """
    if result.error is not None:
        raise ClientFailedError(result.error)
    assert job.ledger is not None
    made = Ledger(job.ledger.since(known))
    setup = content.config_records.get("setup")
    broadcast = bytes(setup["message"]) if setup is not None else b""  # type: ignore[arg-type]
    party = runtime.party(job.client, order)
    runtime.done(job.client, order)
    prepared = party.prepare(result.update, weight=float(result.examples), broadcast=broadcast)
    payload = prepared.payload
    reply = RecordDict(
        {
            UPDATE: ArrayRecord({"payload": Array(payload.array)}),
            "fields": ConfigRecord(dict(payload.fields)),
            "config": ConfigRecord({"version": order.version}),
            "client-state": ConfigRecord({"ledger": made.to_json()}),
        }
    )
    if runtime.simulated:
        reply[INSTRUMENTS] = MetricRecord({"steps": result.steps, "tokens": result.tokens})
    return reply


def trial_jobs(
    runtime: ClientRuntime, adapter: Arrays, local: LocalConfig, *, clients: int, private: bool
) -> list[TrainJob]:
    """Jobs to try an executor with, which no life knows of: one step of each of the first clients."""
    jobs = []
    size = local.batch_size
    for client in sorted(runtime.records)[:clients]:
        order = WorkOrder(round=0, seed=0, branch="trial", version=0, local=local, planned_steps=1)
        nominal = min(size, len(runtime.records[client]))
        jobs.append(
            TrainJob(
                client=client,
                round=0,
                seed=0,
                adapter=adapter,
                pairs=runtime.pairs[client][:size],
                record_ids=tuple(record.record_id for record in runtime.records[client][:size]),
                local=local,
                objective=MeanNll(),
                rule=runtime.pipeline.local_rule() if private else None,
                task=local_task(client, order, nominal_records=nominal) if private else None,
                ledger=Ledger(),
            )
        )
    return jobs


def check_per_sample(runtime: ClientRuntime, adapter: Arrays) -> None:
    """Train on one record if a privacy stage owns local training; ValueError when it cannot.

    Not every layer gives per-sample gradients (DoRA and adapted embeddings do not), and each client would
    fail alike.
    """
    if runtime.pipeline.local_rule() is None:
        return
    jobs = trial_jobs(runtime, adapter, LocalConfig(batch_size=1), clients=1, private=True)
    error = runtime.executor.train_clients(jobs)[0].error
    if error is not None:
        raise ValueError(f"example_dp cannot take per-sample gradients of this model ({error})")
