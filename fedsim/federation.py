"""The state that lives through time: adapter, server optimiser, round, ledger.

Strategies hold momentum and moments. Whoever edits the adapter outside a round goes through
``Federation.replace``, which says what becomes of them; otherwise FedAvgM, which remembers the last
adapter it saw, would take the edit for clients' progress and replay it for ever.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
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
from safetensors.numpy import load_file, save_file

from fedsim.adaptive import Adaptive, FedAdagrad, FedAdam, FedYogi
from fedsim.model import Arrays
from fedsim.results import read_json, write_json
from fedsim.scenario import StrategyConfig
from fedsim.unlearning.protocol import ServerState
from privacy import Ledger

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
    """Flower's strategy, or ours where Flower's differs from its paper (`fedsim.adaptive`), told to take
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


@dataclass(kw_only=True)
class Federation:
    """One branch's federation at one point in time; forked by ``fork``, saved by ``save``.

    ``version`` counts changes of the adapter: every update carries the version it started from.
    ``references`` holds, by request, the adapter at the start of its unlearning, for losses that compare;
    ``privacy_state`` what the privacy stages keep from round to round.
    """

    strategy: FedAvg
    adapter: Arrays
    round: int = 0
    version: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    references: dict[int, Arrays] = field(default_factory=dict)
    privacy_state: dict[str, float] = field(default_factory=dict)

    def fork(self, strategy: FedAvg) -> Federation:
        """An independent copy on a fresh ``strategy`` of the same kind."""
        import_server_state(strategy, export_server_state(self.strategy))
        return Federation(
            strategy=strategy,
            adapter={name: value.copy() for name, value in self.adapter.items()},
            round=self.round,
            version=self.version,
            ledger=self.ledger.fork(),
            references=dict(self.references),
            privacy_state=dict(self.privacy_state),
        )

    def adopt(self, arrays: Arrays) -> None:
        """Take the adapter that the strategy made of a round."""
        self.adapter = arrays
        self.version += 1

    def replace(self, arrays: Arrays, *, server_state: ServerState) -> None:
        """Put another adapter in place, from outside a round.

        ``reset`` forgets momentum and moments; ``rebase`` keeps them and moves the remembered adapter
        along; ``keep`` leaves everything, so that FedAvgM takes the edit for clients' progress.
        """
        self.adopt({name: np.asarray(arrays[name], dtype=np.float32).copy() for name in sorted(arrays)})
        if server_state == "keep":
            return
        remembered = export_server_state(self.strategy)
        state = dict(remembered) if server_state == "rebase" else {}
        if "current" in remembered:
            state["current"] = {name: value.copy() for name, value in self.adapter.items()}
        import_server_state(self.strategy, state)

    def remember(self, request: int) -> None:
        """Keep the present adapter as the reference of a request, unless there is one already."""
        if request not in self.references:
            self.references[request] = {name: value.copy() for name, value in self.adapter.items()}

    def stored_bytes(self) -> int:
        """Bytes of state that the server keeps for this branch beyond the adapter itself."""
        groups = [*export_server_state(self.strategy).values(), *self.references.values()]
        return sum(value.nbytes for group in groups for value in group.values())

    def save(self, directory: Path) -> None:
        """Write everything but the adapter (which goes to its PEFT directory) into an existing directory."""
        grouped = {f"server/{name}": group for name, group in export_server_state(self.strategy).items()}
        grouped |= {f"reference/{number}": group for number, group in self.references.items()}
        for prefix, group in grouped.items():
            path = directory / f"{prefix}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: np.ascontiguousarray(value) for name, value in group.items()}, path)
        orders = {name: list(group) for name, group in grouped.items()}
        state = {
            "round": self.round,
            "version": self.version,
            "orders": orders,
            "privacy": self.privacy_state,
        }
        write_json(directory / "state.json", state)
        (directory / "ledger.json").write_text(self.ledger.to_json())

    @classmethod
    def load(cls, directory: Path, strategy: FedAvg, adapter: Arrays) -> Federation:
        """Read what ``save`` wrote and put it beside ``adapter``; every array comes back bit for bit."""
        state = read_json(directory / "state.json")
        server: dict[str, Arrays] = {}
        references: dict[int, Arrays] = {}
        for prefix, order in state["orders"].items():
            stored = load_file(directory / f"{prefix}.safetensors")
            kind, name = prefix.split("/")
            group = {key: stored[key] for key in order}
            if kind == "server":
                server[name] = group
            else:
                references[int(name)] = group
        import_server_state(strategy, server)
        return cls(
            strategy=strategy,
            adapter=adapter,
            round=state["round"],
            version=state["version"],
            ledger=Ledger.from_json((directory / "ledger.json").read_text()),
            references=references,
            privacy_state=state["privacy"],
        )
