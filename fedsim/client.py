"""The Flower ClientApp: what a client does when a message reaches it.

``query.forget``     confirms a request: how many of the named records the client holds
``query.advertise``  the first message of an interactive privacy stage (a public key)
``train``            local training, the privacy stages on the way out, and the reply

The app is stateless. What a client must remember (its ledger) travels in the message's
``client-state`` record and is carried by the simulator, per branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.data.records import Record
from fedsim.federation import from_record
from fedsim.model import Arrays
from fedsim.orders import WorkOrder
from fedsim.rng import stream
from fedsim.scenario import LocalConfig
from fedsim.text import Pair
from fedsim.training import Executor, TrainJob, TrainResult, planned_steps
from fedsim.unlearning.protocol import MeanNll, Objective, Role
from privacy import ClientParty, Ledger, LocalTask, Pipeline


class ClientFailedError(RuntimeError):
    """Local training gave no usable update."""


@dataclass(kw_only=True)
class Meter:
    """Counts what local training took since the last ``reset``."""

    steps: int = 0
    tokens: int = 0
    clients: int = 0

    def add(self, result: TrainResult) -> None:
        self.steps += result.steps
        self.tokens += result.tokens
        self.clients += 1

    def reset(self) -> Meter:
        """Give what was counted and start again at zero."""
        counted = Meter(steps=self.steps, tokens=self.tokens, clients=self.clients)
        self.steps = self.tokens = self.clients = 0
        return counted


@dataclass(frozen=True, kw_only=True)
class ClientRuntime:
    """What the clients of one process share: executor, encoded data, privacy pipeline, objectives.

    ``objective`` maps (method JSON, role) to a local loss; ``simulated`` derives key material from the
    seed, while a deployment (False) takes it from the operating system.
    """

    executor: Executor
    records: Mapping[int, tuple[Record, ...]]
    pairs: Mapping[int, tuple[Pair, ...]]
    pipeline: Pipeline
    objective: Callable[[str, Role], Objective]
    meter: Meter = field(default_factory=Meter)
    simulated: bool = True

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
        keys = (order.branch, order.round, client, order.attempt)
        return self.pipeline.client(
            str(client),
            round_id=order.round,
            branch=order.branch,
            attempt=order.attempt,
            secret=stream(order.seed, "mask", *keys).bytes(32) if self.simulated else None,
            generator=stream(order.seed, "stage", order.round, client),
            planned_weight=order.weight,
        )


def make_client_app(runtime: ClientRuntime) -> ClientApp:
    """The ClientApp of all virtual clients; which one it is, the node's configuration says."""
    app = ClientApp()

    @app.query("forget")
    def forget(message: Message, context: Context) -> Message:
        client = int(context.node_config["client"])
        order = _order(message)
        held = len(runtime.select(client, order))
        return Message(RecordDict({"metrics": MetricRecord({"records": held})}), reply_to=message)

    @app.query("advertise")
    def advertise(message: Message, context: Context) -> Message:
        client = int(context.node_config["client"])
        setup = ConfigRecord({"message": runtime.party(client, _order(message)).advertise()})
        content = RecordDict({"setup": setup})
        return Message(content, reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["client"])
        order = _order(message)
        known = Ledger.from_json(str(message.content.config_records["client-state"]["ledger"]))
        ledger = known.fork()
        job = make_job(runtime, client, order, message.content, ledger)
        result = runtime.executor.train_clients([job])[0]
        runtime.meter.add(result)
        if result.error is not None:
            raise ClientFailedError(result.error)
        before = set(known.releases())
        made = Ledger(release for release in ledger.releases() if release not in before)
        return Message(_reply(runtime, client, order, message.content, result, made), reply_to=message)

    return app


def _order(message: Message) -> WorkOrder:
    return WorkOrder.model_validate_json(str(message.content.config_records["config"]["order"]))


def make_job(
    runtime: ClientRuntime, client: int, order: WorkOrder, content: RecordDict, ledger: Ledger
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
        adapter=from_record(content.array_records["arrays"]),
        reference=from_record(reference) if reference is not None else None,
        pairs=tuple(runtime.pairs[client][position] for position in positions),
        record_ids=tuple(runtime.records[client][position].record_id for position in positions),
        local=order.local,
        objective=objective,
        proximal_mu=order.proximal_mu,
        rule=rule,
        task=task,
        ledger=ledger,
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
    client: int,
    order: WorkOrder,
    content: RecordDict,
    result: TrainResult,
    made: Ledger,
) -> RecordDict:
    """Pass the update through the privacy stages and pack what comes out, with the releases made."""
    setup = content.config_records.get("setup")
    broadcast = bytes(setup["message"]) if setup is not None else b""  # type: ignore[arg-type]
    prepared = runtime.party(client, order).prepare(
        result.update, weight=float(result.examples), broadcast=broadcast
    )
    payload = prepared.payload
    return RecordDict(
        {
            "update": ArrayRecord({"payload": Array(payload.array)}),
            "fields": ConfigRecord(dict(payload.fields)),
            "config": ConfigRecord({"version": order.version}),
            "client-state": ConfigRecord({"ledger": made.to_json()}),
        }
    )


def check_per_sample(runtime: ClientRuntime, adapter: Arrays) -> None:
    """Train on one record if a privacy stage owns local training; ValueError when it cannot.

    Not every layer gives per-sample gradients (DoRA and adapted embeddings do not), and each client would
    fail alike.
    """
    rule = runtime.pipeline.local_rule()
    if rule is None:
        return
    client = min(runtime.records)
    order = WorkOrder(
        round=0, seed=0, branch="check", version=0, local=LocalConfig(batch_size=1), planned_steps=1
    )
    job = TrainJob(
        client=client,
        round=0,
        seed=0,
        adapter=adapter,
        pairs=runtime.pairs[client][:1],
        record_ids=(runtime.records[client][0].record_id,),
        local=order.local,
        objective=MeanNll(),
        rule=rule,
        task=local_task(client, order, nominal_records=1),
        ledger=Ledger(),
    )
    error = runtime.executor.train_clients([job])[0].error
    if error is not None:
        raise ValueError(f"example_dp cannot take per-sample gradients of this model ({error})")
