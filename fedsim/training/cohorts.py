"""Which clients train together: cohorts from the sizes of jobs alone.

>>> CohortLimit(clients=8, tokens=100).fits(clients=5, tokens_each=20)
True
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.model.text import Pair
from fedsim.training.jobs import TrainJob

UNLIMITED = 2**62


@dataclass(frozen=True, kw_only=True)
class CohortLimit:
    """How many clients train at once: at most ``clients``, with at most ``tokens`` in a joint step."""

    clients: int
    tokens: int

    def fits(self, *, clients: int, tokens_each: int) -> bool:
        """Whether so many clients go together, each with so many tokens in a step."""
        return clients <= self.clients and clients * tokens_each <= self.tokens

    def room(self, tokens_each: int) -> int:
        """Clients that go together when each has so many tokens in a step; one at least."""
        return max(1, min(self.clients, self.tokens // max(tokens_each, 1)))


def tokens_per_step(pairs: Sequence[Pair], batch_size: int) -> int:
    """Most tokens that are computed at once, of so many of these records, padding included."""
    longest = max((len(pair.input_ids) for pair in pairs), default=0)
    return min(batch_size, len(pairs)) * longest


def _tokens(job: TrainJob) -> int:
    """Tokens of one step of a job: most of them, or the average where steps are drawn at random."""
    size, texts = job.local.at_once, job.texts
    if job.rule is not None and job.task is not None:
        size = math.ceil(job.rule.expected_batch(job.task))
    return tokens_per_step([pair for pairs in texts for pair in pairs], len(texts) * size)


@dataclass(frozen=True, kw_only=True)
class _Size:
    """What a job is to a cohort, by position ``index``."""

    index: int
    steps: int
    tokens: int

    @classmethod
    def of(cls, index: int, job: TrainJob) -> _Size:
        return cls(index=index, steps=job.steps, tokens=_tokens(job))


def plan_cohorts(jobs: Sequence[TrainJob], limit: CohortLimit) -> list[list[int]]:
    """Which jobs train together, by position; within a cohort, those with most steps first.

    Jobs go together when they share optimiser settings and privacy rule. Like sizes go together, and the
    last cohort of a kind is about as large as the others.
    """
    kinds: dict[tuple[object, ...], list[_Size]] = {}
    for index, job in enumerate(jobs):
        kind = None if job.drift is None else job.drift.kind
        key = (job.local, kind, id(job.rule), job.importance, job.retained is None, job.objective.needs)
        kinds.setdefault(key, []).append(_Size.of(index, job))
    cohorts: list[list[int]] = []
    for members in kinds.values():
        rest = sorted(members, key=lambda size: (-size.steps, -size.tokens))
        while rest:
            fitting = _fitting(rest, limit)
            taken = -(-len(rest) // -(-len(rest) // fitting))
            cohorts.append([size.index for size in rest[:taken]])
            rest = rest[taken:]
    return cohorts


def _fitting(sizes: Sequence[_Size], limit: CohortLimit) -> int:
    """How many of the first jobs fit together; one at least."""
    tokens = 0
    for count, size in enumerate(sizes, start=1):
        tokens = max(tokens, size.tokens)
        if count > 1 and not limit.fits(clients=count, tokens_each=tokens):
            return count - 1
    return len(sizes)
