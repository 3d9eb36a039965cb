"""Runs a life: all branches side by side, round by round.

What branches have in common runs once, as a segment of their tree. Segments that are at the same round train
together as far as that fills a cohort. A killed run goes on from its checkpoints (see ``lanes``).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

import torch

from fedsim.federation.rounds import run_rounds
from fedsim.federation.state import Federation
from fedsim.life.schedule import milestones
from fedsim.living.checkpoints import SCHEMAS, Rows
from fedsim.living.context import LifeContext
from fedsim.living.lanes import Lane, Lanes, Measured
from fedsim.living.recorder import Recorder
from fedsim.living.views import Views
from fedsim.measuring.measure import Measurement, measure
from fedsim.measuring.scoring import DivergedError
from fedsim.model.predictor import Predictor
from fedsim.storage.directory import RunDirectory
from fedsim.storage.progress import Progress
from fedsim.storage.tables import Row


class LifeRunner:
    """Runs one life of a run directory to its end, from wherever it stands."""

    def __init__(self, context: LifeContext, directory: RunDirectory, progress: Progress) -> None:
        self.context = context
        self.recorder = Recorder(context, directory, progress)
        self.lanes = Lanes(context, directory, self.recorder)
        self.milestones = milestones(context.life, context.methods)
        self.views = Views(context)

    def run(self) -> None:
        """Live every round that is not on disk."""
        reached = self.lanes.reached()
        going = self.lanes.resumed(reached) if reached is not None else self._begun()
        for round_ in itertools.count((reached or 0) + 1):
            if not going:
                break
            for group in self._groups(going, round_):
                self._rounds(group, round_)
            self._probe_ensembles(going, round_)
            going = self.lanes.saved(going, round_)

    def rows(self) -> Iterator[Rows]:
        """The rows of every segment of a finished life, parents first."""
        return self.lanes.rows()

    def final_federation(self, branch: str) -> Federation:
        """The state at the end of a branch."""
        return self.lanes.final_federation(branch)

    def _begun(self) -> list[Lane]:
        """The lanes of a new life, measured before its first round."""
        lane = self.lanes.first()
        self._probe(lane, 0)
        self._probe_ensembles([lane], 0)
        return self.lanes.parted([lane], 0)

    def _groups(self, lanes: Sequence[Lane], round_: int) -> Iterator[list[Lane]]:
        """Lanes that train together: neighbours, until their clients fill the cohorts that train at once."""
        workers = torch.get_num_threads() if self.context.model.device == "cpu" else 1
        group: list[Lane] = []
        clients = 0
        for lane in lanes:
            size = len(lane.step(round_).cohort)
            if group and clients + size > workers * self.context.clients_per_batch:
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
            segment, rows = lane.segment, lane.rows
            share = outcome.taken.clients / trainings if trainings else 1 / len(group)
            self.recorder.faults(outcome, segment, round_)
            self.recorder.costs(outcome, segment, lane.federation, rows, round_)
            self.recorder.model_metrics(outcome, segment, lane.federation, rows, round_)
            before_probe = time.perf_counter()
            self._probe(lane, round_)
            self.recorder.seconds("round", seconds * share, segment, rows, round_)
            self.recorder.seconds("probe", time.perf_counter() - before_probe, segment, rows, round_)
            self.recorder.progress.round(segment.owner, round_, len(outcome.contributors))

    def _probe(self, lane: Lane, round_: int) -> None:
        """Measure the adapter, if any branch of the segment is due."""
        if not any(round_ in self.context.probe_rounds[branch] for branch in lane.segment.branches):
            return
        detailed, generate = self._detail(round_)
        for view, names in self.views.of(self.recorder.shown_as(lane.segment, round_)).items():
            key = (lane.federation.version, detailed, generate, self.views.granted(view, round_))
            try:
                if view not in lane.measured or lane.measured[view].of != key:
                    self.context.model.load(lane.federation.adapter)
                    with self.context.model.measuring() as module:
                        found = self._measure(self.views.predictor(module, view, round_), round_)
                    lane.measured[view] = Measured(of=key, found=found)
            except DivergedError as error:
                self.recorder.not_measured(lane.segment.owner, round_, error)
                return
            self.recorder.measured(lane.measured[view].found, names, lane.rows, round_)

    def _probe_ensembles(self, lanes: Sequence[Lane], round_: int) -> None:
        """Measure what is composed of several branches, once all have lived a round; rows go to the first."""
        if round_ not in self.context.probe_rounds["keep"]:
            return
        living = {name: lane for lane in lanes for name in lane.segment.branches}
        granted = sum(request.round <= round_ for request in self.context.life.requests)
        for ensemble in self.context.composed:
            parts = [living[name] for name in ensemble.at(granted)]
            states = [(part.federation.version, part.federation.adapter) for part in parts]
            try:
                asked = self.views.joined(ensemble, states)
                found = self._measure(asked, round_)
            except DivergedError as error:
                self.recorder.not_measured(ensemble.name, round_, error)
            else:
                self.recorder.measured(found, [ensemble.name], parts[0].rows, round_)

    def _detail(self, round_: int) -> tuple[bool, bool]:
        """Whether all items are kept after a round, and whether answers are generated."""
        detailed, when = round_ in self.milestones, self.context.probing.generate
        return detailed, when == "always" or (when == "events" and detailed)

    def _measure(self, predictor: Predictor, round_: int) -> Measurement:
        detailed, generate = self._detail(round_)
        return measure(
            predictor,
            self.context.model.tokenizer,
            self.context.probes,
            config=self.context.probing,
            detail="event" if detailed else "round",
            generate=generate,
        )


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
