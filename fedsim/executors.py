"""Which executor trains: cohorts where the model allows it, over all devices or cores there are."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat

import torch

from fedsim.cohort import BatchedExecutor
from fedsim.model import AdapterModel
from fedsim.planning import CohortLimit, plan_cohorts
from fedsim.stacked import why_not_stackable
from fedsim.training import Executor, SequentialExecutor, TrainJob, TrainResult


def make_executor(models: Sequence[AdapterModel], limit: CohortLimit) -> Executor:
    """An executor over replicas of one model, each on its own device.

    A model that cannot be batched, or a limit of one client, trains one client at a time on the first device.
    """
    if limit.clients == 1:
        return SequentialExecutor(model=models[0])
    reason = why_not_stackable(models[0])
    if reason is not None:
        return SequentialExecutor(model=models[0], why_alone=reason)
    if len(models) > 1:
        return DevicesExecutor(models, limit)
    return CoresExecutor(models[0], limit) if models[0].device == "cpu" else BatchedExecutor(models[0], limit)


class DevicesExecutor:
    """Cohorts for replicas of one model on several devices, which train side by side."""

    def __init__(self, models: Sequence[AdapterModel], limit: CohortLimit) -> None:
        self.models = models
        self._executors = [BatchedExecutor(model, limit) for model in models]

    def train_clients(self, jobs: Sequence[TrainJob]) -> list[TrainResult]:
        for replica in self.models[1:]:
            replica.adopt_untrained(self.models[0])
        return _side_by_side(self._executors, jobs)


class CoresExecutor:
    """Cohorts for as many workers as torch has threads, one thread each, over one base.

    Workers do not wait for each other as threads that share a product do. Replicas are made when needed.
    """

    def __init__(self, model: AdapterModel, limit: CohortLimit) -> None:
        self._executors = [BatchedExecutor(model, limit)]

    def train_clients(self, jobs: Sequence[TrainJob]) -> list[TrainResult]:
        first, threads = self._executors[0], torch.get_num_threads()
        while len(self._executors) < threads:
            self._executors.append(BatchedExecutor(first.model.replica(), first.limit))
        torch.set_num_threads(1)  # what threads begin with that are started now
        try:
            return _side_by_side(self._executors[:threads], jobs)
        finally:
            torch.set_num_threads(threads)


def _side_by_side(executors: Sequence[BatchedExecutor], jobs: Sequence[TrainJob]) -> list[TrainResult]:
    """Split jobs into cohorts, at least one an executor if there are enough, and train them in turn."""
    if len(executors) == 1:
        return executors[0].train_clients(jobs)
    limit = executors[0].limit
    each = -(-len(jobs) // len(executors))
    limit = replace(limit, clients=max(1, min(limit.clients, each)))
    shares: list[list[list[int]]] = [[] for _ in executors]
    for number, cohort in enumerate(plan_cohorts(jobs, limit)):
        shares[number % len(shares)].append(cohort)
    with ThreadPoolExecutor(len(shares)) as pool:
        parts = list(pool.map(BatchedExecutor.train_planned, executors, repeat(jobs), shares))
    results = {index: result for part in parts for index, result in part.items()}
    return [results[index] for index in range(len(jobs))]
