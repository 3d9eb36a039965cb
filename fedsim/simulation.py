"""Runs a life: all branches side by side, round by round, with checkpoints from which a killed run goes on.

What branches have in common runs once, as a segment of their tree. Segments that are at the same round train
together as far as that fills a cohort. Every few rounds all of them are saved; a resumed run goes back to the
last round at which that was done, so it forms the same cohorts and ends with the same bytes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flwr.serverapp.strategy import FedAvg

from fedsim.attempt import Engine
from fedsim.checkpoints import SCHEMAS, Checkpoints, Rows
from fedsim.data.holdings import Holdings
from fedsim.federation import Federation
from fedsim.life import Life
from fedsim.measure import Measurement, ProbeSet, measure
from fedsim.model import AdapterModel
from fedsim.predictor import predictor_of
from fedsim.probe import DivergedError
from fedsim.progress import Progress
from fedsim.results import Row, RunDirectory, folder_name
from fedsim.rounds import RoundOutcome, run_rounds
from fedsim.scenario import Scenario
from fedsim.timeline import Branch, Segment, Step, milestones, retrain_name
from privacy import Ledger, Unit

EPSILON_OF: Mapping[Unit, str] = {"example": "epsilon", "client": "client_epsilon"}
"""Names of the metrics that say what was spent, by what it protects."""


@dataclass(frozen=True, kw_only=True)
class LifeContext:
    """One variant and seed, ready to run: everything but the state."""

    variant: str
    seed: int
    scenario: Scenario
    life: Life
    branches: tuple[Branch, ...]
    tree: Segment
    probe_rounds: Mapping[str, frozenset[int]]
    replay_from: Mapping[int, int]
    engine: Engine
    model: AdapterModel
    probes: ProbeSet
    make_strategy: Callable[[], FedAvg]
    together: int
    """Clients of several branches that train together: branches are joined until so many are there for each
    core, or in all if on GPUs."""
    holdings: Holdings
    epsilon: Callable[[Ledger], Mapping[str, Mapping[Unit, float]]]
    """Epsilon spent by each client so far, by what it protects; empty without a DP stage."""

    def rounds(self) -> int:
        """Rounds over all segments of the tree."""
        return sum(len(segment.steps) for segment, _ in self.tree.walk())


@dataclass(kw_only=True)
class Lane:
    """A segment that is being lived: its state, and the rows it has given so far."""

    segment: Segment
    federation: Federation
    rows: Rows
    measured: tuple[object, Measurement] | None = None
    """The last measurement, and what it was of: as long as the adapter stays, so does what it knows."""

    def step(self, round_: int) -> Step:
        return self.segment.steps[round_ - self.segment.start - 1]


class LifeRunner:
    """Runs one life of a run directory to its end, from wherever it stands."""

    def __init__(self, context: LifeContext, directory: RunDirectory, progress: Progress) -> None:
        self.context, self.directory, self.progress = context, directory, progress
        self.every = context.scenario.execution.checkpoint_every
        self.segments = [segment for segment, _ in context.tree.walk()]
        self.checkpoints = Checkpoints(
            root=directory.path / "checkpoints" / folder_name(context.variant) / str(context.seed),
            model=context.model,
            make_strategy=context.make_strategy,
        )
        self.milestones = milestones(context.life, context.scenario.compare)
        longest = max(probe.ids_ST.shape[1] for _, _, probe in context.probes.named())
        self.shares_prefixes = longest <= context.model.packs_up_to

    def run(self) -> None:
        """Live every round that is not on disk."""
        adapter = self.context.model.fresh(self.context.seed)
        reached = self._reached()
        self.checkpoints.keep_only(self._begun(reached) if reached is not None else ())
        if reached is None:
            federation = Federation(strategy=self.context.make_strategy(), adapter=adapter)
            root = Lane(segment=self.context.tree, federation=federation, rows=Rows())
            self._probe(root, 0)
            lanes = self._parted([root], 0)
        else:
            lanes = self._resumed(reached)
        for round_ in itertools.count((reached or 0) + 1):
            if not lanes:
                break
            for group in self._groups(lanes, round_):
                self._rounds(group, round_)
            lanes = self._saved(lanes, round_)

    def rows(self) -> Iterator[Rows]:
        """The rows of every segment of a finished life, parents first."""
        for segment in self.segments:
            yield self.checkpoints.rows(segment, segment.end)

    def final_federation(self, branch: str) -> Federation:
        """The state at the end of a branch."""
        leaf = next(segment for segment in reversed(self.segments) if branch in segment.branches)
        return self.checkpoints.federation(leaf, leaf.end)

    # ------------------------------------------------------------- lanes and their checkpoints

    def _reached(self) -> int | None:
        """The last round after which all that had begun is on disk, whole; None before the first.

        Checkpoints that are not as they were written are named, and the round before them is taken.
        """
        last = max(segment.end for segment in self.segments)
        told: set[str] = set()
        for round_ in range(last, -1, -1):
            begun = self._begun(round_)
            if (round_ % self.every and round_ != last) or not begun:
                continue
            if not all(self.checkpoints.exists(*place) for place in begun):
                continue
            faults = [fault for place in begun if (fault := self.checkpoints.damage(*place)) is not None]
            if not faults:
                self._say_where_it_goes_on(told, round_)
                return round_
            told.update(faults)
        self._say_where_it_goes_on(told, None)
        return None

    def _begun(self, round_: int) -> list[tuple[Segment, int]]:
        """Segments that had begun by a round, and the round at which each then stood."""
        return [(s, min(s.end, round_)) for s in self.segments if s.start < round_ or s.end <= round_]

    def _say_where_it_goes_on(self, faults: Collection[str], round_: int | None) -> None:
        for fault in sorted(faults):
            where = f"round {round_}" if round_ is not None else "the beginning: no checkpoint is whole"
            self.directory.log("checkpoint_damaged", reason=fault, goes_on_from=round_)
            self.progress.note(f"{fault}; going on from {where}")

    def _resumed(self, round_: int) -> list[Lane]:
        """The lanes that go on after a round, from disk; what is done counts as progress."""
        lanes = []
        for segment, parent in self.context.tree.walk():
            for step in segment.steps[: max(round_ - segment.start, 0)]:
                self.progress.round(segment.owner, step.round, 0)
            if segment.start < round_ < segment.end:
                federation = self.checkpoints.federation(segment, round_)
                rows = self.checkpoints.rows(segment, round_)
                lanes.append(Lane(segment=segment, federation=federation, rows=rows))
            elif segment.start == round_ < segment.end and parent is not None:
                federation = self.checkpoints.federation(parent, parent.end)
                lanes.append(Lane(segment=segment, federation=federation, rows=Rows()))
        return lanes

    def _saved(self, lanes: Sequence[Lane], round_: int) -> list[Lane]:
        """Save what ends here, and all the rest when it is time to; give the lanes that go on."""
        if round_ % self.every == 0:
            for lane in lanes:
                if lane.segment.end > round_:
                    self.checkpoints.save(lane.segment, round_, lane.federation, lane.rows)
        going = self._parted(lanes, round_)
        if round_ % self.every == 0 or not going:
            self._tidy(round_)
        return going

    def _parted(self, lanes: Sequence[Lane], round_: int) -> list[Lane]:
        """Save lanes whose segment ends with this round, begin those that follow; give all that go on."""
        going: list[Lane] = []
        for lane in lanes:
            segment = lane.segment
            if segment.end > round_:
                going.append(lane)
                continue
            self.checkpoints.save(segment, round_, lane.federation, lane.rows)
            self.directory.log(
                "segment",
                variant=self.context.variant,
                seed=self.context.seed,
                branches=list(segment.branches),
                first=segment.start + 1,
                last=segment.end,
            )
            forks = (lane.federation.fork(self.context.make_strategy()) for _ in segment.children)
            children = [
                Lane(segment=child, federation=fork, rows=Rows())
                for child, fork in zip(segment.children, forks, strict=True)
            ]
            going.extend(self._parted(children, round_))
        return going

    def _tidy(self, round_: int) -> None:
        """Delete the checkpoints inside segments that those of this round replace."""
        for segment in self.segments:
            for earlier in range(segment.start + 1, min(segment.end, round_)):
                if earlier % self.every == 0:
                    self.checkpoints.remove(segment, earlier)

    # --------------------------------------------------------------------------- rounds

    def _groups(self, lanes: Sequence[Lane], round_: int) -> Iterator[list[Lane]]:
        """Lanes that train together: neighbours, until their clients fill the cohorts that train at once."""
        workers = torch.get_num_threads() if self.context.model.device == "cpu" else 1
        group: list[Lane] = []
        clients = 0
        for lane in lanes:
            size = len(lane.step(round_).cohort)
            if group and clients + size > workers * self.context.together:
                yield group
                group, clients = [], 0
            group.append(lane)
            clients += size
        if group:
            yield group

    def _rounds(self, group: Sequence[Lane], round_: int) -> None:
        """Live one round of each lane of a group; joint time is shared out by trainings."""
        started = time.perf_counter()
        rounds = [(lane.federation, lane.step(round_), lane.segment.owner) for lane in group]
        outcomes = run_rounds(rounds, self.context.engine)
        seconds = time.perf_counter() - started
        trainings = sum(outcome.taken.clients for outcome in outcomes)
        for lane, outcome in zip(group, outcomes, strict=True):
            share = outcome.taken.clients / trainings if trainings else 1 / len(group)
            self._report(outcome, lane.segment, round_)
            self._account(outcome, lane, round_)
            trained = time.perf_counter()
            self._probe(lane, round_)
            spent = {"round": seconds * share, "probe": time.perf_counter() - trained}
            who = self._who(lane.segment.owner, round_)
            for phase, value in spent.items():
                lane.rows.tables["timings"].append({**who, "phase": phase, "seconds": value})
            self.progress.round(lane.segment.owner, round_, len(outcome.contributors))

    def _who(self, branch: str, round_: int) -> dict[str, Any]:
        return {
            "variant": self.context.variant,
            "branch": branch,
            "seed": self.context.seed,
            "round": round_,
        }

    def _report(self, outcome: RoundOutcome, segment: Segment, round_: int) -> None:
        """Say what went wrong, or that nothing happened."""
        where, names = self._who(segment.owner, round_), self.context.holdings.names
        for client, reason in outcome.failures.items():
            self.directory.log(
                "client_failed", client=client, name=names.name(client), reason=reason, **where
            )
            self.progress.note(f"{segment.owner} round {round_}: {names.text(client)} failed: {reason}")
        for reason in outcome.repeated:
            self.directory.log("round_repeated", reason=reason, **where)
            self.progress.note(f"{segment.owner} round {round_}: repeated: {reason}")
        if outcome.heaviest is not None:
            times = outcome.heaviest.times
            self.directory.log(
                "update_outweighs",
                client=outcome.heaviest.client,
                name=names.name(outcome.heaviest.client),
                times=times if math.isfinite(times) else None,
                **where,
            )
        for client in outcome.exhausted:
            self.directory.log("budget_spent", client=client, name=names.name(client), **where)
        if outcome.kind == "empty":
            why = outcome.aborted or "nobody contributed"
            self.directory.log("empty_round", reason=why, **where)
            self.progress.note(f"{segment.owner} round {round_}: {why}; the adapter stays as it was")

    def _account(self, outcome: RoundOutcome, lane: Lane, round_: int) -> None:
        """Cost rows for every branch that shares the round, and what concerns the whole model."""
        segment, federation, rows = lane.segment, lane.federation, lane.rows
        numbers = {
            "update_norm": outcome.update_norm,
            "cohort_size": float(len(outcome.contributors)),
            "failures": float(len(outcome.failures)),
        }
        for branch in segment.branches:
            who = self._who(branch, round_)
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
        event = self.context.life.label(round_)
        spent = self.context.epsilon(federation.ledger)
        for name in self._shown_as(segment, round_):
            who = {**self._who(name, round_), "event": event}
            for metric, value in numbers.items():
                rows.tables["metrics"].append({**who, "subject": "model", "metric": metric, "value": value})
            for client in sorted(spent, key=int):
                for unit, value in spent[client].items():
                    row = {"subject": f"client:{client}", "metric": EPSILON_OF[unit], "value": value}
                    rows.tables["metrics"].append({**who, **row})

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

    def _probe(self, lane: Lane, round_: int) -> None:
        """Measure the adapter, if any branch of the segment is due."""
        segment = lane.segment
        due = [branch for branch in segment.branches if round_ in self.context.probe_rounds[branch]]
        if not due:
            return
        config = self.context.scenario.probes
        detailed = round_ in self.milestones
        generate = config.generate == "always" or (config.generate == "events" and detailed)
        key = (lane.federation.version, detailed, generate)
        try:
            if lane.measured is None or lane.measured[0] != key:
                lane.measured = key, self._measure(lane.federation, detailed=detailed, generate=generate)
        except DivergedError as error:
            self.directory.log("probe_failed", reason=str(error), **self._who(segment.owner, round_))
            self.progress.note(f"{segment.owner} round {round_}: not measured: {error}")
            return
        self._keep_rows(lane.measured[1], segment, round_, lane.rows)

    def _measure(self, federation: Federation, *, detailed: bool, generate: bool) -> Measurement:
        self.context.model.load(federation.adapter)
        with self.context.model.measuring() as module:
            return measure(
                predictor_of(self.context.model, module, shares_prefixes=self.shares_prefixes),
                self.context.model.tokenizer,
                self.context.probes,
                config=self.context.scenario.probes,
                detail="event" if detailed else "round",
                generate=generate,
            )

    def _keep_rows(self, found: Measurement, segment: Segment, round_: int, rows: Rows) -> None:
        event = self.context.life.label(round_)
        for name in self._shown_as(segment, round_):
            who = {**self._who(name, round_), "event": event}
            rows.tables["metrics"].extend({**who, **row} for row in found.metrics)
            rows.tables["items"].extend({**who, **row} for row in found.items)


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
