"""Runs a life: the tree of branches, depth first, with checkpoints from which a killed run goes on.

Each segment of the tree starts from the saved end of its parent and saves its own state, rows
included, every few rounds and at its end. A resumed run and an uninterrupted one take the same path
through the same files, so they end with the same numbers.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from flwr.serverapp.strategy import FedAvg

from fedsim.federation import Federation
from fedsim.life import Life
from fedsim.measure import Measurement, ProbeSet, measure
from fedsim.model import AdapterModel, load_adapter, save_adapter
from fedsim.predictor import CausalPredictor
from fedsim.probe import DivergedError
from fedsim.progress import Progress
from fedsim.results import COSTS, ITEMS, METRICS, TIMINGS, Row, RunDirectory, whole_directory, write_table
from fedsim.rounds import Engine, RoundOutcome, run_round
from fedsim.scenario import Scenario
from fedsim.timeline import Segment, Step, milestones, retrain_name

SCHEMAS = {"metrics": METRICS, "items": ITEMS, "costs": COSTS, "timings": TIMINGS}


@dataclass(frozen=True, kw_only=True)
class LifeContext:
    """One variant and seed, ready to run: everything but the state."""

    variant: str
    seed: int
    scenario: Scenario
    life: Life
    tree: Segment
    probe_rounds: Mapping[str, frozenset[int]]
    replay_from: Mapping[int, int]
    engine: Engine
    model: AdapterModel
    probes: ProbeSet
    make_strategy: Callable[[], FedAvg]
    epsilon: Callable[[Federation], Mapping[int, float]]
    """Epsilon spent by each client so far; empty without a DP stage."""

    def rounds(self) -> int:
        """Rounds over all segments of the tree."""
        return sum(len(segment.steps) for segment, _ in self.tree.walk())


@dataclass(kw_only=True)
class Rows:
    """Rows of one segment so far, by table."""

    tables: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in SCHEMAS})

    def save(self, directory: Path) -> None:
        for name, rows in self.tables.items():
            write_table(directory / f"{name}.parquet", rows, SCHEMAS[name])

    @classmethod
    def load(cls, directory: Path) -> Rows:
        tables = {
            name: pq.read_table(directory / f"{name}.parquet", partitioning=None).to_pylist()
            for name in SCHEMAS
        }
        return cls(tables=tables)


class LifeRunner:
    """Runs one life of a run directory to its end, from wherever it stands."""

    def __init__(self, context: LifeContext, directory: RunDirectory, progress: Progress) -> None:
        self.context, self.directory, self.progress = context, directory, progress
        self.root = directory.path / "checkpoints" / context.variant / str(context.seed)
        self.milestones = milestones(context.life, context.scenario.compare)

    def run(self) -> None:
        """Run every segment that is not complete."""
        self.context.model.fresh(self.context.seed)
        for segment, parent in self.context.tree.walk():
            if not self._checkpoint(segment, segment.end).exists():
                self._run_segment(segment, parent)

    def rows(self) -> Iterator[Rows]:
        """The rows of every segment of a finished life, parents first."""
        for segment, _ in self.context.tree.walk():
            yield Rows.load(self._checkpoint(segment, segment.end))

    def final_federation(self, branch: str) -> Federation:
        """The state at the end of a branch."""
        leaf = next(s for s, _ in reversed(list(self.context.tree.walk())) if branch in s.branches)
        return self._load(self._checkpoint(leaf, leaf.end))

    # ------------------------------------------------------------------------- segments

    def _checkpoint(self, segment: Segment, round_: int) -> Path:
        return self.root / f"round-{round_:04d}" / segment.owner.replace("#", "-")

    def _run_segment(self, segment: Segment, parent: Segment | None) -> None:
        federation, rows, done = self._starting_point(segment, parent)
        self._count_done(segment, done)
        if parent is None and done == 0 and not rows.tables["metrics"]:
            self._probe(federation, segment, 0, rows)
        every = self.context.scenario.execution.checkpoint_every
        previous = self._checkpoint(segment, segment.start + done) if done else None
        if not segment.steps:
            self._save(segment, federation, rows, segment.end)
        for step in segment.steps[done:]:
            self._round(federation, segment, step, rows)
            last = step.round == segment.end
            if last or (step.round - segment.start) % every == 0:
                current = self._save(segment, federation, rows, step.round)
                if previous is not None:
                    _remove(previous)
                previous = None if last else current
        self.directory.log(
            "segment",
            variant=self.context.variant,
            seed=self.context.seed,
            branches=list(segment.branches),
            first=segment.start + 1,
            last=segment.end,
        )

    def _starting_point(self, segment: Segment, parent: Segment | None) -> tuple[Federation, Rows, int]:
        """Where a segment goes on: its last checkpoint, its parent's end, or the beginning of life."""
        for done in range(len(segment.steps), 0, -1):
            path = self._checkpoint(segment, segment.start + done)
            if path.exists():
                return self._load(path), Rows.load(path), done
        if parent is not None:
            return self._load(self._checkpoint(parent, parent.end)), Rows(), 0
        adapter = self.context.model.fresh(self.context.seed)
        return Federation(strategy=self.context.make_strategy(), adapter=adapter), Rows(), 0

    def _count_done(self, segment: Segment, done: int) -> None:
        for step in segment.steps[:done]:
            self.progress.round(segment.owner, step.round, 0)

    def _save(self, segment: Segment, federation: Federation, rows: Rows, round_: int) -> Path:
        path = self._checkpoint(segment, round_)
        with whole_directory(path) as temporary:
            save_adapter(self.context.model, federation.adapter, temporary / "adapter")
            federation.save(temporary)
            rows.save(temporary)
        return path

    def _load(self, path: Path) -> Federation:
        adapter = load_adapter(self.context.model, path / "adapter")
        return Federation.load(path, self.context.make_strategy(), adapter)

    # --------------------------------------------------------------------------- rounds

    def _round(self, federation: Federation, segment: Segment, step: Step, rows: Rows) -> None:
        started = time.perf_counter()
        outcome = run_round(federation, step, segment.owner, self.context.engine)
        trained = time.perf_counter()
        self._report(outcome, segment, step)
        self._account(federation, outcome, segment, step, rows)
        self._probe(federation, segment, step.round, rows)
        for phase, seconds in (("round", trained - started), ("probe", time.perf_counter() - trained)):
            rows.tables["timings"].append(
                {**self._who(segment.owner, step.round), "phase": phase, "seconds": seconds}
            )
        self.progress.round(segment.owner, step.round, len(outcome.contributors))

    def _who(self, branch: str, round_: int) -> dict[str, Any]:
        return {
            "variant": self.context.variant,
            "branch": branch,
            "seed": self.context.seed,
            "round": round_,
        }

    def _report(self, outcome: RoundOutcome, segment: Segment, step: Step) -> None:
        """Say what went wrong, or that nothing happened."""
        where = self._who(segment.owner, step.round)
        for client, reason in outcome.failures.items():
            self.directory.log("client_failed", client=client, reason=reason, **where)
            self.progress.note(f"{segment.owner} round {step.round}: client {client} failed: {reason}")
        for client in outcome.exhausted:
            self.directory.log("budget_spent", client=client, **where)
        if outcome.kind == "empty":
            why = outcome.aborted or "nobody contributed"
            self.directory.log("empty_round", reason=why, **where)
            self.progress.note(f"{segment.owner} round {step.round}: {why}; the adapter stays as it was")

    def _account(
        self, federation: Federation, outcome: RoundOutcome, segment: Segment, step: Step, rows: Rows
    ) -> None:
        """Cost rows for every branch that shares the round, and what concerns the whole model."""
        numbers = {
            "update_norm": outcome.update_norm,
            "cohort_size": float(len(outcome.contributors)),
            "failures": float(len(outcome.failures)),
        }
        for branch in segment.branches:
            who = self._who(branch, step.round)
            cost = {
                "kind": outcome.kind,
                "request": outcome.request,
                "targets": int(outcome.target),
                "client_steps": outcome.taken.steps,
                "tokens": outcome.taken.tokens,
                "bytes_down": outcome.taken.bytes_down,
                "bytes_up": outcome.taken.bytes_up,
                "clients": outcome.taken.clients,
                "failures": len(outcome.failures),
                "stored_bytes": federation.stored_bytes(),
            }
            rows.tables["costs"].append({**who, **cost})
        event = self.context.life.label(step.round)
        epsilons = {f"client:{client}": value for client, value in self.context.epsilon(federation).items()}
        for name in self._shown_as(segment, step.round):
            who = {**self._who(name, step.round), "event": event}
            for metric, value in numbers.items():
                rows.tables["metrics"].append({**who, "subject": "model", "metric": metric, "value": value})
            for subject, value in epsilons.items():
                rows.tables["metrics"].append(
                    {**who, "subject": subject, "metric": "epsilon", "value": value}
                )

    # -------------------------------------------------------------------------- probing

    def _shown_as(self, segment: Segment, round_: int) -> list[str]:
        """The names under which a round of this segment appears in the metric tables.

        ``retrain`` is spliced: before the first request the life itself, then the branch of the
        requests granted so far.
        """
        names = [branch for branch in segment.branches if not branch.startswith("retrain#")]
        granted = sum(request.round <= round_ for request in self.context.life.requests)
        reference = retrain_name(granted) if granted else "keep"
        if self.context.life.requests and reference in segment.branches:
            names.append("retrain")
        return names

    def _probe(self, federation: Federation, segment: Segment, round_: int, rows: Rows) -> None:
        """Measure the adapter, if any branch of the segment is due."""
        due = [branch for branch in segment.branches if round_ in self.context.probe_rounds[branch]]
        if not due:
            return
        config = self.context.scenario.probes
        detailed = round_ in self.milestones
        generate = config.generate == "always" or (config.generate == "events" and detailed)
        self.context.model.load(federation.adapter)
        try:
            with self.context.model.merged() as module:
                found = measure(
                    CausalPredictor(
                        model=module,
                        pad_id=self.context.model.pad_id,
                        eos_id=int(self.context.model.tokenizer.eos_token_id),
                    ),
                    self.context.model.tokenizer,
                    self.context.probes,
                    config=config,
                    detail="event" if detailed else "round",
                    generate=generate,
                )
        except DivergedError as error:
            self.directory.log("probe_failed", reason=str(error), **self._who(segment.owner, round_))
            self.progress.note(f"{segment.owner} round {round_}: not measured: {error}")
            return
        self._keep_rows(found, segment, round_, rows)

    def _keep_rows(self, found: Measurement, segment: Segment, round_: int, rows: Rows) -> None:
        event = self.context.life.label(round_)
        for name in self._shown_as(segment, round_):
            who = {**self._who(name, round_), "event": event}
            rows.tables["metrics"].extend({**who, **row} for row in found.metrics)
            rows.tables["items"].extend({**who, **row} for row in found.items)


def _remove(path: Path) -> None:
    """Delete a checkpoint that a later one replaces, and its round's folder when that is empty."""
    shutil.rmtree(path)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


def assemble(runners: Sequence[LifeRunner], directory: RunDirectory) -> None:
    """Write the run's tables from the rows of all segments."""
    tables: dict[str, list[Row]] = {name: [] for name in SCHEMAS}
    for runner in runners:
        for rows in runner.rows():
            for name, part in rows.tables.items():
                tables[name].extend(part)
    for name, collected in tables.items():
        collected.sort(key=lambda row: (row["variant"], row["seed"], row["branch"], row["round"]))
        directory.write_rows(name, collected)
