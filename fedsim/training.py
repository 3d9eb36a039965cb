"""Local training: jobs in, results out.

``train_clients(jobs) -> results`` is the one way clients are trained; this executor takes them one at
a time over the shared model. Every draw is keyed by seed, round, client and record id, so a client's
result depends on its job alone. A client's fault is its own result, never an exception of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.forward import Pass, evaluating, forward
from fedsim.model import AdapterModel, Arrays, from_vector, isolated_torch_rng, to_vector
from fedsim.rng import ordering, secret_stream, secret_torch_stream, torch_stream, uniforms
from fedsim.scenario import LocalConfig
from fedsim.spsa import Address, Update, descend
from fedsim.text import Batch, Pair, collate
from fedsim.unlearning.protocol import Objective
from privacy import Ledger, LocalRule, LocalTask

NO_GRADIENTS = "example_dp clips gradients, and optimizer: spsa takes none; choose adamw or sgd"


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One client's work in one round.

    ``adapter`` is where it starts; ``reference`` the adapter that losses compare with, if the objective
    needs one. ``proximal_mu`` is FedProx's weight. ``rule`` and ``task`` are set when a privacy stage
    owns the local loss and sampler; the releases it makes are written into ``ledger``. Its noise and its
    sampling are keyed if ``simulated``, else they are the operating system's.
    """

    client: int
    round: int
    seed: int
    adapter: Arrays
    pairs: tuple[Pair, ...]
    record_ids: tuple[str, ...]
    local: LocalConfig
    objective: Objective
    reference: Arrays | None = None
    proximal_mu: float = 0.0
    rule: LocalRule | None = None
    task: LocalTask | None = None
    ledger: Ledger | None = None
    simulated: bool = True


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training gave: the update (d,), fp32, and what it took. ``error`` says why there is none.

    ``codes`` are the bytes that replay to the update, if it was made of them."""

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


@dataclass(frozen=True, kw_only=True)
class SequentialExecutor:
    """One client at a time; the reference for every faster executor.

    ``why_alone`` says why clients that were to train together cannot.
    """

    model: AdapterModel
    why_alone: str | None = None

    def train_clients(self, jobs: Sequence[TrainJob]) -> list[TrainResult]:
        return [self._guarded(job) for job in jobs]

    def _guarded(self, job: TrainJob) -> TrainResult:
        try:
            return _one_byte(self, job) if job.local.optimizer == "spsa" else self._train(job)
        except Exception as error:
            return result_of(job, error=f"{type(error).__name__}: {error}")

    def _train(self, job: TrainJob) -> TrainResult:
        model = self.model
        model.load(job.adapter)
        start = {name: value.detach().clone() for name, value in model.parameters().items()}
        optimizer = make_optimizer(job.local, list(model.parameters().values()))
        try:
            dropout = torch_stream(job.seed, "dropout", job.round, job.client)
            with isolated_torch_rng(dropout), model.training():
                steps = _private_steps(self, job) if job.rule is not None else _plain_steps(self, job)
                losses, tokens = [], 0
                for loss, used in steps:
                    if job.proximal_mu > 0:
                        _add_proximal(model, start, job.proximal_mu)
                    if job.local.max_grad_norm is not None and job.rule is None:
                        torch.nn.utils.clip_grad_norm_(
                            list(model.parameters().values()), job.local.max_grad_norm
                        )
                    optimizer.step()
                    losses.append(loss)
                    tokens += used
        finally:
            model.module.zero_grad(set_to_none=True)
        update = to_vector(model.arrays(), model.names) - to_vector(job.adapter, model.names)
        return result_of(job, update=update, losses=losses, tokens=tokens)

    def reference_pass(self, job: TrainJob, batch: Batch) -> Pass | None:
        """The batch under the reference adapter, without gradients or dropout.

        The model is left as it was.
        """
        if not job.objective.needs_reference:
            return None
        assert job.reference is not None, "the objective needs a reference adapter"
        parameters = self.model.parameters()
        current = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.model.load(job.reference)
        try:
            with torch.no_grad(), evaluating(self.model.module):
                return forward(self.model.module, batch)
        finally:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(current[name])


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


def make_optimizer(
    local: LocalConfig, parameters: Sequence[torch.nn.Parameter], *, fused: bool = False
) -> torch.optim.Optimizer:
    """A fresh optimiser for one round; element-wise, so that stacked clients do not touch each other.

    SPSA has none: it takes no gradients.
    """
    if local.optimizer == "spsa":
        raise ValueError("optimizer='spsa' takes no gradients; train with a SequentialExecutor")
    if local.optimizer == "sgd":
        return torch.optim.SGD(
            list(parameters),
            lr=local.lr,
            momentum=local.momentum,
            weight_decay=local.weight_decay,
            fused=fused,
        )
    return torch.optim.AdamW(list(parameters), lr=local.lr, weight_decay=local.weight_decay, fused=fused)


def planned_steps(examples: int, local: LocalConfig) -> int:
    """Optimiser steps of one local training."""
    return local.epochs * -(-examples // local.batch_size)


def shuffled_batches(job: TrainJob) -> list[NDArray[np.int64]]:
    """Positions of the records in each step: shuffled without replacement, anew in each epoch."""
    size = job.local.batch_size
    batches = []
    for epoch in range(job.local.epochs):
        order = ordering(job.seed, "batch", job.round, job.client, epoch, ids=job.record_ids)
        batches += [np.array(order[first : first + size]) for first in range(0, len(order), size)]
    return batches


def private_draws(job: TrainJob, step: int) -> NDArray[np.float64]:
    """One draw from [0, 1) for each record, by which a privacy stage samples a step's batch."""
    if not job.simulated:
        return secret_stream().random(len(job.record_ids))
    return uniforms(job.seed, "batch", job.round, job.client, step, ids=job.record_ids)


def noise_generator(job: TrainJob, step: int, device: str) -> torch.Generator:
    """The client's noise in one step."""
    if not job.simulated:
        return secret_torch_stream(device)
    attempt = job.task.attempt if job.task is not None else 0
    return torch_stream(job.seed, "noise", job.round, job.client, attempt, step, device=device)


def _plain_steps(executor: SequentialExecutor, job: TrainJob) -> Iterator[tuple[float, int]]:
    """Ordinary steps; leaves gradients in place and yields (loss, tokens)."""
    loss_of = SampleLosses(executor, job)
    for positions in shuffled_batches(job):
        executor.model.module.zero_grad(set_to_none=True)
        torch.autograd.backward(loss_of(executor.model.module, positions).mean())
        yield loss_of.mean, loss_of.tokens


def _private_steps(executor: SequentialExecutor, job: TrainJob) -> Iterator[tuple[float, int]]:
    """Steps whose batches and gradients belong to a privacy stage; each step's noise is one release."""
    assert job.rule is not None
    assert job.task is not None
    assert job.ledger is not None
    model = executor.model
    session = job.rule.open(job.task, job.ledger)
    parameters = model.parameters()
    for step in range(job.task.steps):
        loss_of = SampleLosses(executor, job)
        generator = noise_generator(job, step, model.device)
        positions = session.batch(private_draws(job, step))
        gradients, _ = session.gradients(model.module, positions, loss_of, generator)
        for name, parameter in parameters.items():
            parameter.grad = gradients[name].to(parameter.dtype)
        yield loss_of.mean, loss_of.tokens


def _one_byte(executor: SequentialExecutor, job: TrainJob) -> TrainResult:
    """Training by SPSA: two passes a step without dropout, which would differ between them; no gradients.

    FedProx's term is part of the loss.
    """
    if job.rule is not None:
        raise ValueError(NO_GRADIENTS)
    model, loss_of = executor.model, SampleLosses(executor, job)
    start_D, batches, tokens = to_vector(job.adapter, model.names), shuffled_batches(job), 0

    def loss(update_D: Update, step: int) -> float:
        nonlocal tokens
        model.load(from_vector(start_D + update_D, job.adapter))
        found = float(loss_of(model.module, batches[step]).double().mean())
        tokens += loss_of.tokens
        return found + job.proximal_mu / 2 * float(np.square(update_D, dtype=np.float64).sum())

    with torch.no_grad(), evaluating(model.module):
        address = Address(seed=job.seed, round=job.round, client=job.client)
        descent = descend(loss, address, dimension=start_D.size, lr=job.local.lr, steps=len(batches))
        model.load(from_vector(start_D + descent.update_D, job.adapter))
    return result_of(job, update=descent.update_D, losses=descent.losses, tokens=tokens, codes=descent.codes)


@dataclass
class SampleLosses:
    """A job's loss of each record in a batch; remembers the last batch's mean and the tokens it took.

    A pass under the reference adapter is work too: its tokens count.
    """

    executor: SequentialExecutor
    job: TrainJob
    mean: float = 0.0
    tokens: int = 0

    def __call__(self, module: torch.nn.Module, positions: NDArray[np.int64]) -> torch.Tensor:
        model = self.executor.model
        batch = collate([self.job.pairs[position] for position in positions], pad_id=model.pad_id)
        batch = batch.to(model.device)
        reference = self.executor.reference_pass(self.job, batch)
        losses = self.job.objective(forward(module, batch), reference)
        self.mean = float(losses.detach().mean())
        self.tokens = int(batch.lengths_B.sum()) * (1 if reference is None else 2)
        return losses


def _add_proximal(model: AdapterModel, start: dict[str, torch.Tensor], mu: float) -> None:
    """Add the gradient of mu / 2 |w - w_start|^2 (Li et al., 2018, arXiv:1812.06127)."""
    for name, parameter in model.parameters().items():
        pull = mu * (parameter.detach() - start[name])
        parameter.grad = pull if parameter.grad is None else parameter.grad + pull
