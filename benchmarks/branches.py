"""Six methods in one run against six runs with one method each: what branches have in common runs once.

The ideal for wall time is the ratio of local steps, of which six runs repeat those of the common prefix; the
trees of branches say nearly the same before anything runs, by participations of clients.
Runs are whole ones, from the scenario file to the verdict, without the start of a process; probes are few,
nothing is generated and no report is drawn.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Report, Variant, interleave, ratio, seconds
from fedsim.app.runs import execute, prepare
from fedsim.assembly.build import make_context
from fedsim.assembly.simulation import CheckedScenario
from fedsim.life.tree import Segment
from fedsim.scenario.file import load_scenario
from fedsim.storage.directory import RunDirectory
from fedsim.storage.progress import Quiet

METHODS: tuple[dict[str, Any], ...] = (
    {"method": "grad_ascent"},
    {"method": "grad_diff"},
    {"method": "npo"},
    {"method": "simnpo"},
    {"method": "grad_diff", "label": "grad_diff-strong", "gamma": 0.5},
    {"method": "npo", "label": "npo-kl", "retain": "kl"},
)


def run(options: Options) -> Report:
    steps: dict[str, list[int]] = {"one run": [], "six runs": []}
    ideal: dict[str, int] = {}

    def measured(name: str, groups: Sequence[Sequence[dict[str, Any]]]) -> Callable[[], float]:
        def measure() -> float:
            with tempfile.TemporaryDirectory(prefix="fedsim-bench-") as folder:
                runs = [_Run(Path(folder) / str(n), group, options) for n, group in enumerate(groups)]
                taken = sum(seconds(one.live) for one in runs)
                steps[name].append(sum(one.client_steps() for one in runs))
                ideal[name] = sum(one.participations() for one in runs)
            return taken

        return measure

    samples = interleave(
        [
            Variant(name="one run", measure=measured("one run", [METHODS])),
            Variant(name="six runs", measure=measured("six runs", [[method] for method in METHODS])),
        ],
        options.repeat,
    )
    wall = ratio("wall time, six runs over one", samples["six runs"], samples["one run"])
    trained = ratio("client steps, six runs over one", steps["six runs"], steps["one run"])
    return Report(
        name="branches",
        title="Six methods in one run, and in six",
        unit="s",
        settings={"clients": _scenario(options, [])["data"]["clients"], "threads": 1},
        samples=samples,
        ratios=[wall, trained],
        facts={
            "share of the ideal (client steps) that wall time reaches": wall.value / trained.value,
            "participations, six runs over one, from the trees": ideal["six runs"] / ideal["one run"],
            "client steps, one run": steps["one run"][-1],
            "client steps, six runs": steps["six runs"][-1],
        },
    )


def _scenario(options: Options, methods: Sequence[dict[str, Any]]) -> dict[str, Any]:
    clients = options.size(24, 5)
    return {
        "name": "branches",
        "data": {"source": "authors", "clients": clients, "holdout_authors": 2, "public_authors": 2},
        "federation": {"participation": 0.5, "local": {"epochs": 2, "batch_size": 8, "lr": 5e-3}},
        "timeline": [
            {"join": {"clients": f"0-{clients - 1}"}},
            {"train": {"rounds": options.size(20, 3)}},
            {"forget": {"client": 1}},
            {"train": {"rounds": options.size(6, 4)}},
        ],
        "compare": list(methods),
        "probes": {
            "every": 100,
            "records_per_client": 1,
            "max_retain": 2,
            "max_holdout": 2,
            "max_public": 2,
            "generate": "never",
        },
        "execution": {"device": "cpu", "threads": 1},
    }


class _Run:
    """One whole run in a folder of its own."""

    def __init__(self, folder: Path, methods: Sequence[dict[str, Any]], options: Options) -> None:
        folder.mkdir()
        self.file = folder / "scenario.yaml"
        self.file.write_text(json.dumps(_scenario(options, methods)))
        self.directory = RunDirectory(folder / "run")
        self.simulation: CheckedScenario | None = None

    def live(self) -> None:
        """From the scenario's file to the run's tables."""
        self.simulation = prepare(load_scenario(self.file), self.directory)
        execute(self.simulation, self.directory, Quiet())

    def _segments(self) -> list[Segment]:
        assert self.simulation is not None
        (variant,) = self.simulation.loaded.variants
        tree = make_context(self.simulation, variant, variant.scenario.seeds[0]).tree
        return [segment for segment, _ in tree.walk()]

    def participations(self) -> int:
        """Clients in rounds, over all segments of the tree."""
        return sum(len(step.cohort) for segment in self._segments() for step in segment.steps)

    def client_steps(self) -> int:
        """Local steps taken, each shared round counted once (the table has it for every branch)."""
        owners = {
            (segment.owner, round_)
            for segment in self._segments()
            for round_ in range(segment.start + 1, segment.end + 1)
        }
        rows = self.directory.table("costs").to_pylist()
        return sum(row["client_steps"] for row in rows if (row["branch"], row["round"]) in owners)
