"""Example-level DP: local training by DP-SGD, so that no single record shows in what a client sends.

Abadi et al., "Deep Learning with Differential Privacy" (2016). Each step draws a Poisson batch, clips
each record's gradient to ``clip_norm``, adds the clipped gradients up, adds Gaussian noise of standard
deviation ``noise_multiplier * clip_norm``, and divides by the public expected batch size.

>>> import numpy as np, torch
>>> from privacy.ledger import Ledger
>>> rule = ExampleDpRule(ExampleDpConfig(noise_multiplier=1.0, delta=1e-5, clip_norm=1.0, batch_size=2))
>>> task = LocalTask(client="a", round_id=1, branch="main", attempt=0, nominal_records=4, steps=1,
...                  planned_steps=10)
>>> ledger, model = Ledger(), torch.nn.Linear(2, 1)
>>> session = rule.open(task, ledger)
>>> batch = session.batch(np.array([0.9, 0.9, 0.9, 0.9]))     # nobody is drawn: a noise-only step
>>> gradients, metrics = session.gradients(model, batch, lambda m, rows: m(rows), torch.Generator())
>>> sorted(gradients), ledger.releases()[0].noise_multiplier, metrics["batch_size"]
(['bias', 'weight'], 1.0, 0.0)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from privacy.accounting import Mechanism, epsilon
from privacy.contexts import ClientContext, Nominal
from privacy.dp_sgd import DenseGradients, clip_and_sum, draw_noise
from privacy.errors import BudgetExceededError
from privacy.ledger import Ledger, Release
from privacy.local import LocalRule, LocalSession, LocalTask, Metrics, PerSampleLoss, SampleGradients
from privacy.noise import Budget
from privacy.per_sample import per_sample_gradients, trainable
from privacy.stage import Facts, Stage

if TYPE_CHECKING:
    import torch


class ExampleDpConfig(Budget):
    """Clips and noises each record's gradient inside local training (DP-SGD)."""

    stage: Literal["example_dp"] = "example_dp"
    clip_norm: float = Field(gt=0, description="L2 norm of one record's gradient")
    batch_size: int | None = Field(default=None, ge=1, description="expected size; default: local training's")
    sample_rate: float | None = Field(default=None, gt=0, le=1, description="in place of batch_size")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.batch_size is not None and self.sample_rate is not None:
            raise ValueError(
                f"batch_size={self.batch_size} and sample_rate={self.sample_rate}: give at most one"
            )
        return self


class ExampleDpRule:
    """How a client trains under example-level DP: sampling, noise and budget, from public numbers."""

    def __init__(self, config: ExampleDpConfig) -> None:
        self.config = config

    def sampling(self, task: LocalTask) -> tuple[float, float]:
        """(Poisson rate, expected batch size). Both are constants of the client, not of the batch.

        The rate is batch size over nominal records, never one over the number of batches, which is
        wrong when the last batch is smaller.
        """
        if task.nominal_records < 1:
            raise ValueError(f"nominal_records={task.nominal_records} must be at least 1")
        if self.config.sample_rate is not None:
            return self.config.sample_rate, self.config.sample_rate * task.nominal_records
        size = self.config.batch_size if self.config.batch_size is not None else task.batch_size
        if size is None or not size > 0:
            raise ValueError(
                f"batch_size={size}: give batch_size or sample_rate, or local training's batch_size"
            )
        rate = min(1.0, size / task.nominal_records)
        return rate, rate * task.nominal_records

    def expected_batch(self, task: LocalTask) -> float:
        """Records that a step has on average."""
        return self.sampling(task)[1]

    def noise_multiplier(self, task: LocalTask) -> float:
        """As configured, or calibrated over ``planned_steps``, the client's whole life."""
        step = Mechanism(noise_multiplier=1.0, sampling_rate=self.sampling(task)[0])
        return self.config.multiplier(((step, task.planned_steps),))

    def release(self, task: LocalTask) -> Release:
        """What the whole training will be charged."""
        return Release(
            round_id=task.round_id,
            branch=task.branch,
            clients=(task.client,),
            unit="example",
            noise_multiplier=self.noise_multiplier(task),
            sampling_rate=self.sampling(task)[0],
            steps=task.steps,
            attempt=task.attempt,
            delta=self.config.delta,
        )

    def affordable(self, task: LocalTask, ledger: Ledger) -> bool:
        """Whether all steps fit ``target_epsilon``; always, if only a noise multiplier is given."""
        return self.config.allows(ledger, self.release(task))

    def open(self, task: LocalTask, ledger: Ledger) -> ExampleDpSession:
        """Start a training; `BudgetExceededError` before anything is drawn if it does not fit."""
        if not self.affordable(task, ledger):
            raise BudgetExceededError(
                f"{task.steps} steps would lift client {task.client!r} above "
                f"target_epsilon={self.config.target_epsilon}; it sits round {task.round_id} out"
            )
        return ExampleDpSession(
            release=self.release(task),
            clip_norm=self.config.clip_norm,
            expected_batch_size=self.expected_batch(task),
            ledger=ledger,
        )

    def privatise(
        self,
        sessions: Sequence[LocalSession],
        gradients: SampleGradients,
        counts: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """One step of several clients: their private gradients (K, D); see ``LocalRule``."""
        assert all(isinstance(session, ExampleDpSession) for session in sessions), "sessions of this rule"
        return privatise(cast(Sequence[ExampleDpSession], sessions), gradients, counts, generators)[0]


class ExampleDpSession:
    """One local training of at most ``release.steps`` steps, charged step by step.

    *Guarantees.* The noisy sum of one step has L2 sensitivity ``clip_norm`` to adding or removing one
    record. Each draw of noise is in the ledger, with the scale it was drawn at.

    *Edge cases.* An empty batch gives pure noise. A record with a non-finite gradient counts as zero,
    as refusing it would tell of it.
    """

    def __init__(
        self, *, release: Release, clip_norm: float, expected_batch_size: float, ledger: Ledger
    ) -> None:
        self.step_release = replace(release, steps=1)
        self.clip_norm = clip_norm
        self.expected_batch_size = expected_batch_size
        self.remaining = release.steps
        self._ledger = ledger

    def batch(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Positions of the records drawn: those whose own draw from [0, 1) is below the rate."""
        return np.flatnonzero(uniforms < self.step_release.sampling_rate).astype(np.int64)

    def gradients(
        self,
        model: torch.nn.Module,
        positions: NDArray[np.int64],
        per_sample_loss: PerSampleLoss,
        generator: torch.Generator,
    ) -> tuple[dict[str, torch.Tensor], Metrics]:
        """One step's private gradient by parameter name, and metrics that must not leave the client."""
        if not trainable(model):
            raise ValueError("model has no trainable parameters")
        return self.privatise(per_sample_gradients(model, positions, per_sample_loss), generator)

    def privatise(
        self, per_sample: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], Metrics]:
        """Clip, add up, add noise, divide, from per-sample gradients (B, *shape) by parameter name."""
        import torch

        names = sorted(per_sample)
        grads_RD = torch.cat([per_sample[name].flatten(1) for name in names], dim=1)
        counts = [len(grads_RD)]
        noisy_KD, metrics = privatise([self], DenseGradients(grads_RD, counts), counts, [generator])
        parts = torch.split(noisy_KD[0], [per_sample[name].shape[1:].numel() for name in names])
        shaped = zip(names, parts, strict=True)
        return {name: part.view(per_sample[name].shape[1:]) for name, part in shaped}, metrics[0]

    def noise(self, like_D: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The noise of the next step, (D,), charged to the client."""
        if self.remaining < 1:
            raise BudgetExceededError("all steps of this training are spent; open another")
        self.remaining -= 1
        return draw_noise(like_D, self.step_release, self.clip_norm, generator, self._ledger)


def privatise(
    sessions: Sequence[ExampleDpSession],
    gradients: SampleGradients,
    counts: Sequence[int],
    generators: Sequence[torch.Generator],
) -> tuple[torch.Tensor, list[Metrics]]:
    """One step of clients under one clip norm: their private gradients (K, D), and metrics by client.

    Each client has its own noise and its own divisor; the result is that of each session alone, up to
    rounding.
    """
    sums_KD, metrics = clip_and_sum(gradients, counts, clip_norm=sessions[0].clip_norm)
    for sum_D, session, generator in zip(sums_KD, sessions, generators, strict=True):
        sum_D.add_(session.noise(sum_D, generator)).div_(session.expected_batch_size)
    return sums_KD, metrics


class ExampleDpStage(Stage):
    """Brings the local rule; what a client sends is then post-processing."""

    def __init__(self, config: ExampleDpConfig) -> None:
        self.config = config
        self.rule = ExampleDpRule(config)

    @property
    def facts(self) -> Facts:
        return Facts(
            name="example_dp",
            place="local",
            charges="example",
            delta=self.config.delta,
            accountant=self.config.accountant,
            noised_by="client",
        )

    def local(self) -> LocalRule:
        return self.rule

    def charged(self, context: ClientContext, task: LocalTask | None) -> Sequence[Release]:
        assert task is not None, "a stage that owns local training has a task"
        return [self.rule.release(task)]

    def promise(self, nominal: Nominal, tasks: Sequence[LocalTask], *, colluders: int = 0) -> float | None:
        if self.config.target_epsilon is not None:
            return self.config.target_epsilon
        lives = {
            ((self.rule.release(task).charge(), task.planned_steps),) for task in tasks if task.planned_steps
        }
        delta, accountant = self.config.delta, self.config.accountant
        return max((epsilon(life, delta=delta, accountant=accountant) for life in lives), default=math.inf)
