"""What executors of local training share: the job, its result, and how a job's batches are made.

Every draw is keyed by seed, round, client and record id, so a client's result depends on its job alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.model.text import Pair
from fedsim.model.vectors import Arrays
from fedsim.rng import ordering, secret_stream, secret_torch_stream, torch_stream, uniforms
from fedsim.training.config import LocalConfig
from fedsim.training.drift import Drift
from fedsim.training.objectives import MeanNll, Objective, RetainTerm
from privacy import Ledger, LocalRule, LocalTask

NO_GRADIENTS = "example_dp clips gradients, and optimizer: spsa takes none; choose adamw or sgd"
TWO_ANSWERS = "example_dp takes the gradient of one text a record, and this loss compares two answers"
TWO_LOSSES = "example_dp accounts for one loss a step, and this method has a retain loss beside it"


@dataclass(frozen=True, kw_only=True)
class Retained:
    """The records of a retain term, encoded, with their ids."""

    term: RetainTerm
    pairs: tuple[Pair, ...]
    record_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One client's work in one round.

    ``adapter`` is where it starts; ``reference`` the adapter that losses compare with, if the objective
    needs one; ``refusals`` are each record's other answer, likewise. With ``importance`` the result is no
    update but the mean squared gradient (``LocalWork``). ``retained`` has a second loss in the same steps.
    ``drift`` is what the federated algorithm adds to each step. ``rule`` and ``task`` are set when a privacy
    stage owns the local loss and sampler; the releases it makes are written into ``ledger``. Its noise and
    its sampling are keyed if ``keyed_secrets``, else they are the operating system's.
    """

    client: int
    round: int
    seed: int
    adapter: Arrays
    pairs: tuple[Pair, ...]
    record_ids: tuple[str, ...]
    local: LocalConfig
    objective: Objective
    importance: bool = False
    reference: Arrays | None = None
    refusals: tuple[Pair, ...] = ()
    retained: Retained | None = None
    drift: Drift | None = None
    rule: LocalRule | None = None
    task: LocalTask | None = None
    ledger: Ledger | None = None
    keyed_secrets: bool = True

    @classmethod
    def of_texts(
        cls,
        texts: Mapping[str, Pair],
        *,
        adapter: Arrays,
        local: LocalConfig,
        seed: int,
        client: int = 0,
        rule: LocalRule | None = None,
        task: LocalTask | None = None,
    ) -> TrainJob:
        """Ordinary training on texts, by record id, outside all rounds and with a ledger of its own."""
        return cls(
            client=client,
            round=0,
            seed=seed,
            adapter=adapter,
            pairs=tuple(texts.values()),
            record_ids=tuple(texts),
            local=local,
            objective=MeanNll(),
            rule=rule,
            task=task,
            ledger=Ledger(),
        )

    def beside(self) -> TrainJob | None:
        """The retain loss as a job of its own, with as many steps; None where there is none."""
        if self.retained is None:
            return None
        local = self.local.model_copy(update={"epochs": self.steps, "steps": self.steps})
        return replace(
            self,
            pairs=self.retained.pairs,
            record_ids=self.retained.record_ids,
            refusals=(),
            objective=self.retained.term.objective,
            local=local,
            retained=None,
        )

    @property
    def texts(self) -> tuple[tuple[Pair, ...], ...]:
        """What its losses are about: all own answers, all refusals, or first those and then these."""
        answers = self.objective.needs.answers
        assert answers == "own" or len(self.refusals) == len(self.pairs), "the objective needs refusals"
        if answers == "both":
            return self.pairs, self.refusals
        return (self.pairs if answers == "own" else self.refusals,)

    @property
    def steps(self) -> int:
        """Optimiser steps that it takes."""
        return self.task.steps if self.task is not None else self.local.planned_steps(len(self.pairs))


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training gave: the update (d,), fp32, and what it took. ``error`` says why there is none.

    ``codes`` are the bytes that replay to the update, if it was made of them.
    """

    client: int
    update: NDArray[np.float32] = field(repr=False)
    examples: int
    loss: float
    steps: int
    tokens: int
    error: str | None = None
    codes: bytes = field(default=b"", repr=False)


class Executor(Protocol):
    """Trains clients; the order of results is that of the jobs."""

    def train_clients(self, jobs: Sequence[TrainJob]) -> list[TrainResult]: ...


def result_of(
    job: TrainJob,
    *,
    update: NDArray[np.float32] | None = None,
    losses: Sequence[float] = (),
    tokens: int = 0,
    error: str | None = None,
    codes: bytes = b"",
) -> TrainResult:
    """What came of a job; an update that is not finite is a failure."""
    if update is not None and not np.isfinite(update).all():
        error = f"training diverged: the update is not finite after {len(losses)} steps"
    return TrainResult(
        client=job.client,
        update=np.zeros(0, dtype=np.float32) if update is None or error is not None else update,
        examples=len(job.pairs),
        loss=float(np.mean(losses)) if losses else float("nan"),
        steps=len(losses),
        tokens=tokens,
        error=error,
        codes=codes,
    )


def shuffled_batches(job: TrainJob) -> list[NDArray[np.int64]]:
    """Positions of the records in each step: shuffled without replacement, anew in each epoch."""
    size, steps = job.local.batch_size, job.local.planned_steps(len(job.pairs))
    batches: list[NDArray[np.int64]] = []
    epoch = 0
    while len(batches) < steps:
        order = ordering(job.seed, "batch", job.round, job.client, epoch, ids=job.record_ids)
        batches += [np.array(order[first : first + size]) for first in range(0, len(order), size)]
        epoch += 1
    return batches[:steps]


def parts_of(positions: NDArray[np.int64], local: LocalConfig) -> list[NDArray[np.int64]]:
    """The parts of a step that are computed one after the other."""
    size = local.at_once
    return [positions[first : first + size] for first in range(0, len(positions), size)]


def private_draws(job: TrainJob, step: int) -> NDArray[np.float64]:
    """One draw from [0, 1) for each record, by which a privacy stage samples a step's batch."""
    if not job.keyed_secrets:
        return secret_stream().random(len(job.record_ids))
    return uniforms(job.seed, "batch", job.round, job.client, step, ids=job.record_ids)


def noise_generator(job: TrainJob, step: int, device: str) -> torch.Generator:
    """The client's noise in one step."""
    if not job.keyed_secrets:
        return secret_torch_stream(device)
    attempt = job.task.attempt if job.task is not None else 0
    return torch_stream(job.seed, "noise", job.round, job.client, attempt, step, device=device)
