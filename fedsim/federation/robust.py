"""Robust aggregation: rules that look at the clients' updates one by one, so that a few cannot move all.

Flower's own: the coordinates' median and trimmed mean (Yin et al., 2018, arXiv:1803.01498), Krum and
Multi-Krum (Blanchard et al., 2017, arXiv:1703.02757), Bulyan (El Mhamdi et al., 2018, arXiv:1802.07927). They
need what masks hide, each update, and enough of them to tell the odd ones from the others; how many is
checked here, since most of Flower's go on with any number. Weights count in Multi-Krum's mean alone, and
under ``weighting: examples`` they are what clients say they are.

Rounds with planned weights do not come here: a target that ascends beside helpers that descend is an odd one
by design, and a median would drop it.

>>> from flwr.serverapp.strategy import Krum
>>> too_few(Krum(num_malicious_nodes=1), 4)
'Krum that bears 1 malicious client takes at least 5 updates to choose from, and there are 4'
>>> too_few(Krum(num_malicious_nodes=1), 5) is None
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, MultiKrum

from fedsim.federation.grid import RosterGrid
from fedsim.federation.strategies import from_record
from fedsim.model.vectors import Arrays, Layout
from privacy import Contribution

ONE_BY_ONE = (FedMedian, FedTrimmedAvg, MultiKrum, Bulyan)
"""Strategies that need each client's update; Krum is a MultiKrum."""


def needs_individuals(strategy: FedAvg) -> bool:
    """Whether a strategy combines updates one by one, not their mean."""
    return isinstance(strategy, ONE_BY_ONE)


def fewest(strategy: FedAvg) -> int:
    """How many updates a strategy needs at least to be what it claims, f being the malicious ones it bears.

    ==================  =========================================================================
    median              1; of one or two it is their mean, which bears nobody
    trimmed mean        as many that one is cut at each end, unless ``beta`` is 0
    Krum, Multi-Krum    2 f + 3, and f more than are selected: else one of the f is among them
    Bulyan              4 f + 3
    ==================  =========================================================================
    """
    if isinstance(strategy, FedTrimmedAvg):
        least = math.ceil(1 / strategy.beta) if strategy.beta else 1
        return least if not strategy.beta or int(strategy.beta * least) else least + 1
    if isinstance(strategy, MultiKrum):
        bears = strategy.num_malicious_nodes
        return max(2 * bears + 3, strategy.num_nodes_to_select + bears)
    if isinstance(strategy, Bulyan):
        return 4 * strategy.num_malicious_nodes + 3
    return 1


def too_few(strategy: FedAvg, count: int) -> str | None:
    """Why ``count`` updates are not enough for a strategy, or None if they are. None for nobody's: that needs
    no explanation."""
    least = fewest(strategy)
    if not 0 < count < least:
        return None
    return f"{_claim(strategy)} takes at least {least} updates to choose from, and there are {count}"


def _claim(strategy: FedAvg) -> str:
    name = type(strategy).__name__
    if isinstance(strategy, FedTrimmedAvg):
        return f"{name} that cuts beta={strategy.beta} at each end"
    if isinstance(strategy, MultiKrum | Bulyan):
        bears = strategy.num_malicious_nodes
        chosen = getattr(strategy, "num_nodes_to_select", 1)
        selects = f" and selects {chosen}" if chosen > 1 else ""
        return f"{name} that bears {bears} malicious client{'' if bears == 1 else 's'}{selects}"
    return name


def combine(
    strategy: FedAvg, adapter: Arrays, updates: Mapping[int, Contribution], grid: RosterGrid, round_: int
) -> Arrays:
    """The adapter, fp32, that a strategy makes of one reply per client: adapter plus that client's update.

    Replies are in fp64: Krum takes distances as ``|x|^2 + |y|^2 - 2 x y``, which cancel in fp32 when the
    adapter is large against the updates. They come in an order of their own, whoever answered first.
    """
    assert too_few(strategy, len(updates)) is None, "the caller checks that there are enough"
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
    """The adapter plus an update, fp64; entries of an update are in the order of the arrays' names."""
    pieces = Layout.of(adapter).split(sent.update)
    moved = {name: adapter[name].astype(np.float64) + piece for name, piece in pieces.items()}
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in moved.items()})
