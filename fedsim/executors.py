"""Which executor trains: cohorts where the model allows it, over all devices there are."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat

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
    if len(models) == 1:
        return BatchedExecutor(models[0], limit)
    return SplitExecutor(models, limit)


class SplitExecutor:
    """Splits clients into cohorts for replicas of one model on several devices, which train side by side."""

    def __init__(self, models: Sequence[AdapterModel], limit: CohortLimit) -> None:
        self.models, self.limit = models, limit
        self._executors = [BatchedExecutor(model, limit) for model in models]

    def train_clients(self, jobs: Sequence[TrainJob]) -> list[TrainResult]:
        for replica in self.models[1:]:
            replica.adopt_untrained(self.models[0])
        each = -(-len(jobs) // len(self.models))
        limit = replace(self.limit, clients=max(1, min(self.limit.clients, each)))
        shares: list[list[list[int]]] = [[] for _ in self._executors]
        for number, cohort in enumerate(plan_cohorts(jobs, limit)):
            shares[number % len(shares)].append(cohort)
        with ThreadPoolExecutor(len(shares)) as pool:
            parts = list(pool.map(BatchedExecutor.train_planned, self._executors, repeat(jobs), shares))
        results = {index: result for part in parts for index, result in part.items()}
        return [results[index] for index in range(len(jobs))]
