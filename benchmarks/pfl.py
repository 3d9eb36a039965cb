"""The peer pfl-research (apple/pfl-research, PyTorch): its own virtual environment, its own process.

``make bench-peers`` makes the environment; without one that works, a benchmark says so and goes on.
The peer gets the base's files, the adapter to start from, and every client's token ids in the order in which
our first round takes them, so that the adapters after that round can be compared.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.children import run_child
from benchmarks.harness import FOLDER, ROOT
from benchmarks.world import SEED, Work, make_runtime, sequential
from fedsim.model.loading import resolve_base
from fedsim.model.text import Pair
from fedsim.rng import ordering
from fedsim.training.tuning import cores

PYTHON = ROOT / ".peers" / "pfl" / "bin" / "python"
SCRIPT = FOLDER / "peers" / "pfl_rounds.py"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How the peer uses the cores: worker processes (by torchrun), each with its threads."""

    processes: int
    threads: int

    @property
    def name(self) -> str:
        return f"processes={self.processes}, threads={self.threads}"


def shapes(threads: Sequence[int]) -> list[Shape]:
    """One process with each number of threads, and one process per core."""
    alone = [Shape(processes=1, threads=number) for number in threads]
    return [*alone, Shape(processes=cores(), threads=1)] if cores() > 1 else alone


def why_not_available() -> str | None:
    """Why the peer cannot run here, or None."""
    if not PYTHON.exists():
        return "its virtual environment is missing; make bench-peers makes it"
    tried = subprocess.run(
        [str(PYTHON), "-c", "import pfl.model.pytorch, peft"], capture_output=True, text=True, check=False
    )
    return None if tried.returncode == 0 else tried.stderr.strip().splitlines()[-1]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One federation for the peer; ``exported`` is what it is given."""

    work: Work
    exported: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, work: Work) -> Peer:
        model = work.model()
        runtime = make_runtime(work, model, sequential(model))
        start = {name: value.tolist() for name, value in model.fresh(SEED).items()}
        clients = []
        for client, records in runtime.records.items():
            order = ordering(SEED, "batch", 1, client, 0, ids=[record.record_id for record in records])
            clients.append(_tokens([runtime.pairs[client][place] for place in order]))
        local = work.local
        exported = {
            "base": resolve_base(work.base),
            "rank": work.rank,
            "alpha": 2.0 * work.rank,
            "start": start,
            "clients": clients,
            "pad_id": model.pad_id,
            "epochs": local.epochs,
            "batch_size": local.batch_size,
            "lr": local.lr,
            "weight_decay": local.weight_decay,
            "max_grad_norm": local.max_grad_norm,
        }
        return cls(work=work, exported=exported)

    def measure(self, shape: Shape, *, rounds: int) -> dict[str, Any]:
        """Seconds of each central iteration after the first, and the adapter after the first."""
        command = [str(PYTHON), str(SCRIPT)]
        if shape.processes > 1:
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(shape.processes)]
            command = [str(PYTHON), *launch, str(SCRIPT)]
        return run_child(command, {**self.exported, "rounds": rounds, "threads": shape.threads})


def _tokens(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Token ids, and where the answer begins."""
    return [{"ids": list(pair.input_ids), "answer": pair.answer_start} for pair in pairs]
