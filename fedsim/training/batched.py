"""The executor that trains clients side by side, in cohorts; whoever cannot, trains alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from fedsim.model.adapter import AdapterModel
from fedsim.training.cohort import Cohort
from fedsim.training.cohorts import CohortLimit, plan_cohorts
from fedsim.training.jobs import TrainJob, TrainResult
from fedsim.training.sequential import SequentialExecutor
from fedsim.training.stacked import StackedLora
from privacy import Ledger

log = logging.getLogger(__name__)


class BatchedExecutor:
    """Trains jobs in cohorts of clients that can go side by side.

    Cohorts depend on the jobs alone, so equal jobs give equal bytes. Should a cohort fail, its halves are
    tried apart and in the end each client alone: a fault stays with the client that has it.

    Raises:
        NotStackableError: the model's clients must train one at a time.
    """

    def __init__(self, model: AdapterModel, limit: CohortLimit) -> None:
        self.model, self.limit = model, limit
        self._lora = StackedLora(model)
        self._alone = SequentialExecutor(model=model)

    def train_clients(self, jobs: Sequence[TrainJob]) -> list[TrainResult]:
        results = self.train_planned(jobs, plan_cohorts(jobs, self.limit))
        return [results[index] for index in range(len(jobs))]

    def train_planned(
        self, jobs: Sequence[TrainJob], cohorts: Iterable[Sequence[int]]
    ) -> dict[int, TrainResult]:
        """Train cohorts of jobs, named by position, one after another; results by position."""
        results: dict[int, TrainResult] = {}
        for cohort in cohorts:
            results |= dict(zip(cohort, self.train_cohort([jobs[index] for index in cohort]), strict=True))
        return results

    def train_cohort(self, jobs: Sequence[TrainJob]) -> list[TrainResult]:
        """Train jobs of one cohort; one at a time where ``_goes_alone`` says so."""
        if _goes_alone(jobs[0]):
            return self._alone.train_clients(jobs)
        trial = [replace(job, ledger=None if job.ledger is None else job.ledger.fork()) for job in jobs]
        results = self._tried(trial)
        if results is None and len(jobs) == 1:
            return self._alone.train_clients(jobs)
        if results is None:
            middle = len(jobs) // 2
            return self.train_cohort(jobs[:middle]) + self.train_cohort(jobs[middle:])
        for job, tried in zip(jobs, trial, strict=True):
            if job.ledger is not None and tried.ledger is not None:
                _write_down(job.ledger, tried.ledger)
        return results

    def _tried(self, jobs: Sequence[TrainJob]) -> list[TrainResult] | None:
        """The results of a joint training, or None if it failed; what it held is free again afterwards."""
        try:
            return Cohort(self._lora, jobs).train()
        except Exception as error:
            if len(jobs) > 1:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                log.warning("a cohort of %d clients failed (%s); its halves train apart", len(jobs), reason)
            return None


def _write_down(ledger: Ledger, later: Ledger) -> None:
    """Add to a ledger the releases that its fork has made since."""
    ledger.extend(later.since(frozenset(ledger.releases())))


def _goes_alone(job: TrainJob) -> bool:
    """Whether such work is done one client at a time: SPSA, importances, two losses, hidden states.

    Private work with two answers is refused there.
    """
    spsa, needs = job.local.optimizer == "spsa", job.objective.needs
    refused = job.rule is not None and needs.answers == "both"
    return spsa or job.importance or job.retained is not None or needs.layer is not None or refused
