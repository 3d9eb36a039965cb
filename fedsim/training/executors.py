"""Which executor trains: cohorts where the model allows it, over all devices or cores there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat

import torch

from fedsim.model.adapter import AdapterModel
from fedsim.training.batched import BatchedExecutor
from fedsim.training.cohorts import CohortLimit, plan_cohorts
from fedsim.training.jobs import Executor, TrainJob, TrainResult
from fedsim.training.sequential import SequentialExecutor
from fedsim.training.stacked import why_not_stackable
from fedsim.training.tuning import cores

WHY_SPSA_ALONE = "spsa moves each client's parameters a direction of its own, twice a step"


def make_executor(
    models: Sequence[AdapterModel], limit: CohortLimit, *, optimizer: str = "adamw"
) -> Executor:
    """An executor over replicas of one model, each on its own device.

    A model that cannot be batched, SPSA, or a limit of one client, trains one client at a time on the first
    device.
    """
    if limit.clients == 1:
        return SequentialExecutor(model=models[0])
    reason = WHY_SPSA_ALONE if optimizer == "spsa" else why_not_stackable(models[0])
    if reason is not None:
        return SequentialExecutor(model=models[0], why_alone=reason)
    if len(models) > 1:
        return DevicesExecutor(models, limit)
    return CoresExecutor(models[0], limit) if models[0].device == "cpu" else BatchedExecutor(models[0], limit)


class DevicesExecutor:
    """Cohorts for replicas of one model on several devices, which train side by side."""

    def __init__(self, models: Sequence[AdapterModel], limit: CohortLimit) -> None:
        self.models, self.limit = models, limit
        self._executors = [BatchedExecutor(model, limit) for model in models]

    def train_clients(self, jobs: Sequence[TrainJob]) -> list[TrainResult]:
        for replica in self.models[1:]:
            replica.adopt_untrained(self.models[0])
        cohorts = _cohorts_for(len(self.models), jobs, self.limit)
        # Dealt out, not taken as devices get free: they may differ, and a cohort's bytes must not.
        shares = [iter(cohorts[number :: len(self.models)]) for number in range(len(self.models))]
        return _side_by_side(self._executors, jobs, shares)


class CoresExecutor:
    """Cohorts for as many workers as torch has threads, over one base.

    Workers with a thread each do not wait for each other as threads that share a product do. Where there are
    fewer cohorts than threads, workers have several.
    """

    def __init__(self, model: AdapterModel, limit: CohortLimit) -> None:
        self.model, self.limit = model, limit
        self._executors = [BatchedExecutor(model, limit)]

    def train_clients(self, jobs: Sequence[TrainJob]) -> list[TrainResult]:
        threads = torch.get_num_threads()
        most = min(threads, cores())
        cohorts = _cohorts_for(most, jobs, self.limit)
        workers = max(1, min(most, len(cohorts)))
        for replica in self.model.replicas(workers)[len(self._executors) :]:
            self._executors.append(BatchedExecutor(replica, self.limit))
        torch.set_num_threads(threads // workers)  # what threads that are started now begin with
        try:
            return _side_by_side(self._executors[:workers], jobs, [iter(cohorts)] * workers)
        finally:
            torch.set_num_threads(threads)


def _cohorts_for(workers: int, jobs: Sequence[TrainJob], limit: CohortLimit) -> list[list[int]]:
    """Cohorts of jobs, one a worker at least if there are enough jobs; those that take longest come first."""
    each = -(-len(jobs) // workers)
    return plan_cohorts(jobs, replace(limit, clients=max(1, min(limit.clients, each))))


def _side_by_side(
    executors: Sequence[BatchedExecutor],
    jobs: Sequence[TrainJob],
    sources: Sequence[Iterator[list[int]]],
) -> list[TrainResult]:
    """Train cohorts in a thread for each executor, which takes them from its source; results by job.

    One alone needs no other thread.
    """
    if len(executors) == 1:
        results = executors[0].train_planned(jobs, sources[0])
        return [results[index] for index in range(len(jobs))]
    with ThreadPoolExecutor(len(executors)) as pool:
        parts = list(pool.map(BatchedExecutor.train_planned, executors, repeat(jobs), sources))
    results = {index: result for part in parts for index, result in part.items()}
    return [results[index] for index in range(len(jobs))]
