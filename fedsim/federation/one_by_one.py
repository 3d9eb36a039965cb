"""Combining updates one by one, through a strategy of Flower's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsim.federation.grid import RosterGrid
from fedsim.federation.records import from_record
from fedsim.model.vectors import Arrays, Layout
from privacy import Contribution


def combine(
    strategy: FedAvg, adapter: Arrays, updates: Mapping[int, Contribution], grid: RosterGrid, round_: int
) -> Arrays:
    """The adapter, fp32, that a strategy makes of one reply per client: adapter plus that client's update.

    Replies are in fp64: Krum takes distances as ``|x|^2 + |y|^2 - 2 x y``, which cancel in fp32 when the
    adapter is large against the updates. They come in an order of their own, whoever answered first.
    """
    replies = []
    for client in sorted(updates, key=str):
        arrays = _moved(adapter, updates[client])
        metrics = MetricRecord({strategy.weighted_by_key: updates[client].weight})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        replies.append(grid.reply_from_server(content, str(round_)))
    combined, _ = strategy.aggregate_train(round_, replies)
    assert combined is not None, "a strategy given enough valid replies returns arrays"
    return from_record(combined)


def _moved(adapter: Arrays, sent: Contribution) -> ArrayRecord:
    """The adapter plus an update, fp64."""
    pieces = Layout.of(adapter).split(sent.update)
    moved = {name: adapter[name].astype(np.float64) + piece for name, piece in pieces.items()}
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in moved.items()})
