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

from fedsim.federation.strategies.protocol import StrategyConfig
from fedsim.model.vectors import Arrays
from fedsim.storage.whole import read_json, write_json
from fedsim.unlearning.protocol import ServerState
from privacy import Ledger


@dataclass(kw_only=True)
class Federation:
    """One branch's federation at one point in time; forked by ``fork``, saved by ``save``.

    ``version`` counts changes of the adapter: every update carries the version it started from.
    ``references`` holds, by request, the adapter at the start of its unlearning, for losses that compare;
    ``privacy_state`` what the privacy stages keep from round to round.
    """

    algorithm: StrategyConfig
    adapter: Arrays
    round: int = 0
    version: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    references: dict[int, Arrays] = field(default_factory=dict)
    privacy_state: dict[str, float] = field(default_factory=dict)
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
            references=dict(self.references),
            privacy_state=dict(self.privacy_state),
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

    def keep_reference(self, request: int) -> None:
        """Keep the present adapter as the reference of a request, unless there is one already."""
        if request not in self.references:
            self.references[request] = {name: value.copy() for name, value in self.adapter.items()}

    def stored_bytes(self) -> int:
        """Bytes of state that the server keeps for this branch beyond the adapter itself."""
        groups = [*self.server_memory().values(), *self.references.values()]
        return sum(value.nbytes for group in groups for value in group.values())

    def save(self, directory: Path) -> None:
        """Write everything but the adapter (which goes to its PEFT directory) into an existing directory."""
        grouped = {f"server/{name}": group for name, group in self.server_memory().items()}
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
    def load(cls, directory: Path, algorithm: StrategyConfig, adapter: Arrays) -> Federation:
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
        federation = cls(
            algorithm=algorithm,
            adapter=adapter,
            round=state["round"],
            version=state["version"],
            ledger=Ledger.from_json((directory / "ledger.json").read_text()),
            references=references,
            privacy_state=state["privacy"],
        )
        algorithm.restore(federation.strategy, server)
        return federation
