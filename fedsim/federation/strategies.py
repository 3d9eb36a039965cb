"""Flower's strategies: made from configuration, and their state taken out and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import (
    Bulyan,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    Krum,
    MultiKrum,
)
from numpy.typing import NDArray

from fedsim.federation.adaptive import Adaptive, FedAdagrad, FedAdam, FedYogi
from fedsim.federation.config import StrategyConfig
from fedsim.model.vectors import Arrays

STRATEGIES: dict[str, type[FedAvg]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedmedian": FedMedian,
    "fedtrimmedavg": FedTrimmedAvg,
    "krum": Krum,
    "multikrum": MultiKrum,
    "bulyan": Bulyan,
}


def make_strategy(config: StrategyConfig) -> FedAvg:
    """Flower's strategy, or ours where Flower's differs from its paper (see ``adaptive``), told to take
    every node the roster offers (cohorts are drawn elsewhere)."""
    own: dict[str, Any] = config.parameters()
    return STRATEGIES[config.name](min_train_nodes=1, min_available_nodes=1, weighted_by_key="weight", **own)


def to_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Arrays as Flower carries them; a result of arithmetic without dimensions, which NumPy makes a scalar,
    included."""
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Arrays of a record in fp32 (Flower's adaptive strategies return float64), sorted by name."""
    return {name: record[name].numpy().astype(np.float32) for name in sorted(record)}


@contextmanager
def untouched_global_random() -> Iterator[None]:
    """Flower's node sampling reads Python's global generator; leave it as it was found."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def export_server_state(strategy: FedAvg) -> dict[str, Arrays]:
    """What a strategy remembers between rounds, as named groups of arrays; empty groups are left out.

    ``current`` is the adapter it last saw, ``momentum`` FedAvgM's velocity, ``m`` and ``v`` the moments
    and ``steps`` how many rounds are in them.
    """
    current = getattr(strategy, "current_arrays", None)
    if isinstance(current, ArrayRecord):
        current = {name: array.numpy() for name, array in current.items()}
    momentum = getattr(strategy, "momentum_vector", None)
    if momentum is not None:
        assert current is not None, "FedAvgM has momentum only after it saw an adapter"
        momentum = dict(zip(current, momentum, strict=True))
    steps = getattr(strategy, "steps", 0)
    groups: dict[str, Any] = {
        "steps": {"count": np.array([steps], dtype=np.int64)} if steps else None,
        "current": current,
        "momentum": momentum,
        "m": getattr(strategy, "m_t", None),
        "v": getattr(strategy, "v_t", None),
    }
    return {name: {k: v.copy() for k, v in group.items()} for name, group in groups.items() if group}


def import_server_state(strategy: FedAvg, state: Mapping[str, Arrays]) -> None:
    """The inverse of ``export_server_state``; groups that are absent are forgotten by the strategy."""
    current = state.get("current")
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = to_record(current) if current else None
        momentum = state.get("momentum")
        strategy.momentum_vector = list(momentum.values()) if momentum else None
    elif isinstance(strategy, Adaptive):
        strategy.steps = int(state["steps"]["count"][0]) if "steps" in state else 0
        strategy.current_arrays = dict(current) if current else None
        strategy.m_t = dict(state["m"]) if "m" in state else None
        strategy.v_t = dict(state["v"]) if "v" in state else None
