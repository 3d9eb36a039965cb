"""Which executor trains: cohorts where the model allows it, over all devices there are."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fedsim.cohort import BatchedExecutor, CohortLimit, plan_cohorts
from fedsim.model import AdapterModel
from fedsim.stacked import why_not_stackable
from fedsim.training import Executor, SequentialExecutor, TrainJob, TrainResult


def make_executor(models: Sequence[AdapterModel], limit: CohortLimit) -> Executor:
    """An executor over replicas of one model, each on its own device.

    A model that cannot be batched, or a limit of one client, trains one client at a time on the first device.
    """
    if limit.clients == 1 or why_not_stackable(models[0]) is not None:
        return SequentialExecutor(model=models[0])
    if len(models) == 1:
        return BatchedExecutor(models[0], limit)
    return SplitExecutor(models, limit)


class SplitExecutor:
    """Deals whole cohorts to replicas of one model on several devices, which train side by side."""

    def __init__(self, models: Sequence[AdapterModel], limit: CohortLimit) -> None:
        self.models, self.limit = models, limit
        self._executors = [BatchedExecutor(model, limit) for model in models]

    def train_clients(self, jobs: Sequence[TrainJob]) -> list[TrainResult]:
        for replica in self.models[1:]:
            replica.adopt_untrained(self.models[0])
        shares: list[list[int]] = [[] for _ in self._executors]
        for number, cohort in enumerate(plan_cohorts(jobs, self.limit)):
            shares[number % len(shares)].extend(cohort)
        with ThreadPoolExecutor(len(shares)) as pool:
            parts = pool.map(
                lambda executor, share: executor.train_clients([jobs[index] for index in share]),
                self._executors,
                shares,
            )
        results: dict[int, TrainResult] = {}
        for share, part in zip(shares, parts, strict=True):
            results |= dict(zip(share, part, strict=True))
        return [results[index] for index in range(len(jobs))]
