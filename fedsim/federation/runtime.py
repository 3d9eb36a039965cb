"""What the clients of a federation stand on: data, executor, privacy pipeline, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsim.data.records import Record
from fedsim.federation.orders import WorkOrder
from fedsim.federation.strategies.protocol import StrategyConfig
from fedsim.model.text import Pair
from fedsim.rng import secret_stream, stream
from fedsim.training.jobs import Executor, Retained
from fedsim.training.objectives import LocalWork, MeanNll, Objective, RetainTerm
from fedsim.unlearning.protocol import Role
from privacy import ClientContext, ClientParty, Ledger, LocalTask, Pipeline


class ClientFailedError(RuntimeError):
    """Local training gave no usable update."""


@dataclass(frozen=True, kw_only=True)
class ClientRuntime:
    """What the clients of one process share: executor, encoded data, privacy pipeline, objectives.

    ``local_work`` maps (method JSON, role, index) to what a client computes; ``refuse`` encodes a refusal
    beside a record's own pair under a seed. ``algorithm`` is the clients' end of the federated one.
    ``keyed_secrets`` derives key material and noise from the seed, while a deployment (False) takes them from
    the operating system. ``public`` are records that a retain term may use, encoded, by id.
    """

    executor: Executor
    records: Mapping[int, tuple[Record, ...]]
    pairs: Mapping[int, tuple[Pair, ...]]
    pipeline: Pipeline
    local_work: Callable[[str, Role, int], LocalWork]
    refuse: Callable[[Record, Pair, int], Pair]
    algorithm: StrategyConfig
    public: Mapping[str, Pair] = field(default_factory=dict)
    keyed_secrets: bool = True
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

    def texts(self, client: int, most: int | None = None) -> dict[str, Pair]:
        """A client's records as they are trained, by id, in order; the first ``most`` of them."""
        held = zip(self.records[client][:most], self.pairs[client][:most], strict=True)
        return {record.record_id: pair for record, pair in held}

    def work(self, order: WorkOrder) -> LocalWork:
        """What a client is asked to compute."""
        if order.method and order.role:
            return self.local_work(order.method, order.role, order.index)
        return LocalWork(MeanNll())

    def refusals(
        self, client: int, positions: Sequence[int], seed: int, objective: Objective
    ) -> tuple[Pair, ...]:
        """A refusal for each of a client's records, if the objective needs them."""
        if objective.needs.answers == "own":
            return ()
        records, pairs = self.records[client], self.pairs[client]
        return tuple(self.refuse(records[position], pairs[position], seed) for position in positions)

    def retained(self, client: int, order: WorkOrder, term: RetainTerm | None) -> Retained | None:
        """The records of a retain term, if there is one.

        Raises:
            ClientFailedError: there are no such records.
        """
        if term is None:
            return None
        texts = self.public if term.records == "public" else self._unnamed(client, order)
        if not texts:
            raise ClientFailedError(f"client {client} has no {term.records} records for the retain term")
        return Retained(term=term, pairs=tuple(texts.values()), record_ids=tuple(texts))

    def _unnamed(self, client: int, order: WorkOrder) -> dict[str, Pair]:
        """The client's records that the order does not name."""
        named = {*order.without, *order.only}
        return {name: pair for name, pair in self.texts(client).items() if name not in named}

    def task(self, client: int, order: WorkOrder) -> LocalTask | None:
        """An order as the accountant sees it, where a privacy stage owns local training."""
        if self.pipeline.local_rule() is None:
            return None
        return local_task(client, order, nominal_records=len(self.records[client]))

    def party(
        self, client: int, order: WorkOrder, carried: bytes = b"", ledger: Ledger | None = None
    ) -> ClientParty:
        """The client's end of the privacy pipeline in this round, with what it remembers of it.

        A simulated client has that ``carried`` to it, a deployed one has kept it. What it releases is written
        into ``ledger``.

        Raises:
            ClientFailedError: a deployed client has helped to unmask this round already.
        """
        if (order.branch, client, order.round) in self.finished:
            raise ClientFailedError(
                f"client {client} helped to unmask round {order.round} and takes no part in another attempt"
            )
        if self.keyed_secrets:
            secret = stream(order.seed, "mask", order.branch, order.round, client, order.attempt).bytes(32)
            memory = carried
        else:
            place, memory = self.kept.get((order.branch, client), (None, b""))
            secret, memory = None, memory if place == (order.round, order.attempt) else b""
        context = ClientContext(
            client=str(client),
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
        return self.pipeline.client(context)

    def _noise(self, client: int, order: WorkOrder) -> np.random.Generator:
        """What the privacy stages draw at this client in one attempt.

        In a simulation it is the same in every branch.
        """
        if not self.keyed_secrets:
            return secret_stream()
        return stream(order.seed, "stage", order.round, client, order.attempt)

    def keep_memory(self, client: int, order: WorkOrder, party: ClientParty) -> bytes:
        """Keep what a client must remember of a round; what is to be carried to it instead."""
        if self.keyed_secrets:
            return party.memory
        self.kept[order.branch, client] = ((order.round, order.attempt), party.memory)
        return b""

    def finish(self, client: int, order: WorkOrder) -> None:
        """Erase what a deployed client remembered of a round but that it is over.

        Nobody can ask it about that round again.
        """
        self.kept.pop((order.branch, client), None)
        if not self.keyed_secrets:
            self.finished.add((order.branch, client, order.round))


def local_task(client: int, order: WorkOrder, *, nominal_records: int) -> LocalTask:
    """An order as the accountant sees it: public numbers only.

    A client for whom no ordinary round is planned has a budget for the one training it is asked for.
    """
    steps = order.local.planned_steps(nominal_records)
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
