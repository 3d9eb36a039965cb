"""The state that lives through time: adapter, server optimiser, round, ledger.

Strategies hold momentum and moments. Whoever edits the adapter outside a round goes through
``Federation.replace``, which says what becomes of them; otherwise FedAvgM, which remembers the last
adapter it saw, would take the edit for clients' progress and replay it for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.serverapp.strategy import FedAvg
from safetensors.numpy import load_file, save_file

from fedsim.federation.history import StoredHistory
from fedsim.federation.strategies.protocol import StrategyConfig, Vectors
from fedsim.model.vectors import Arrays, Layout
from fedsim.storage.whole import read_json, write_json
from fedsim.unlearning.protocol import Moves, ServerState
from privacy import Ledger


@dataclass(kw_only=True)
class Federation:
    """One branch's federation at one point in time; forked by ``fork``, saved by ``save``.

    ``version`` counts changes of the adapter: every update carries the version it started from.
    ``history`` is what is stored of past rounds, if a method looks back. ``kept`` holds, by request and name,
    arrays of its unlearning (see ``unlearning.desk``); ``privacy_state`` what the privacy stages keep from
    round to round; ``shared`` what the algorithm sends beside the adapter; ``remembered`` what each client
    remembers of earlier rounds, carried for it.
    """

    algorithm: StrategyConfig
    adapter: Arrays
    round: int = 0
    version: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    history: StoredHistory | None = None
    kept: dict[int, dict[str, Arrays]] = field(default_factory=dict)
    privacy_state: dict[str, float] = field(default_factory=dict)
    shared: Vectors = field(default_factory=dict)
    remembered: dict[int, Vectors] = field(default_factory=dict)
    strategy: FedAvg = field(init=False)

    def __post_init__(self) -> None:
        self.strategy = self.algorithm.make()

    def server_memory(self) -> dict[str, Arrays]:
        """What the strategy remembers between rounds, as named groups of arrays."""
        return self.algorithm.remembered(self.strategy)

    def fork(self) -> Federation:
        """An independent copy."""
        copy = Federation(
            algorithm=self.algorithm,
            adapter={name: value.copy() for name, value in self.adapter.items()},
            round=self.round,
            version=self.version,
            ledger=self.ledger.fork(),
            history=self.history,
            kept={request: dict(named) for request, named in self.kept.items()},
            privacy_state=dict(self.privacy_state),
            shared=dict(self.shared),
            remembered=dict(self.remembered),
        )
        copy.algorithm.restore(copy.strategy, self.server_memory())
        return copy

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
        remembered = self.server_memory()
        state = dict(remembered) if server_state == "rebase" else {}
        if "current" in remembered:
            state["current"] = {name: value.copy() for name, value in self.adapter.items()}
        self.algorithm.restore(self.strategy, state)

    def keep(self, request: int, name: str, arrays: Arrays) -> None:
        """Keep a copy of arrays for a request until its last round."""
        named = self.kept.setdefault(request, {})
        named[name] = {key: np.asarray(value, dtype=np.float32).copy() for key, value in arrays.items()}

    def keep_reference(self, request: int) -> None:
        """Keep the present adapter as the reference of a request, unless there is one already."""
        if "reference" not in self.kept.get(request, {}):
            self.keep(request, "reference", self.adapter)

    def sent_beside(self) -> Vectors:
        """What the algorithm sends beside the adapter: zeros at first."""
        size = Layout.of(self.adapter).size
        zeros = {name: np.zeros(size, dtype=np.float32) for name in self.algorithm.sends}
        return {**zeros, **self.shared}

    def starting_adapter(self, request: int, moves: Moves) -> Arrays:
        """Where the clients of a round start: the adapter, or the draft of it that a request works on."""
        return self.kept.get(request, {}).get("draft", self.adapter) if moves == "draft" else self.adapter

    def stored_bytes(self) -> int:
        """Bytes of state that the server keeps for this branch beyond the adapter itself."""
        kept = [group for named in self.kept.values() for group in named.values()]
        groups = [*self.server_memory().values(), *kept, self.shared]
        return sum(value.nbytes for group in groups for value in group.values())

    def save(self, directory: Path) -> None:
        """Write everything but the adapter (which goes to its PEFT directory) into an existing directory."""
        grouped = {f"server/{name}": group for name, group in self.server_memory().items()}
        grouped |= {
            f"kept/{n}/{name}": group for n, named in self.kept.items() for name, group in named.items()
        }
        grouped |= {"shared/vectors": dict(self.shared)} if self.shared else {}
        grouped |= {f"client/{client}": dict(own) for client, own in self.remembered.items()}
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
    def load(cls, directory: Path, algorithm: StrategyConfig, adapter: Arrays) -> Federation:
        """Read what ``save`` wrote and put it beside ``adapter``; every array comes back bit for bit."""
        state = read_json(directory / "state.json")
        server: dict[str, Arrays] = {}
        kept: dict[int, dict[str, Arrays]] = {}
        shared: Arrays = {}
        remembered: dict[int, Vectors] = {}
        for prefix, order in state["orders"].items():
            stored = load_file(directory / f"{prefix}.safetensors")
            kind, *address = prefix.split("/")
            group = {key: stored[key] for key in order}
            if kind == "server":
                server[address[0]] = group
            elif kind == "shared":
                shared = group
            elif kind == "client":
                remembered[int(address[0])] = group
            else:
                kept.setdefault(int(address[0]), {})[address[1]] = group
        federation = cls(
            algorithm=algorithm,
            adapter=adapter,
            round=state["round"],
            version=state["version"],
            ledger=Ledger.from_json((directory / "ledger.json").read_text()),
            kept=kept,
            privacy_state=state["privacy"],
            shared=shared,
            remembered=remembered,
        )
        algorithm.restore(federation.strategy, server)
        return federation
