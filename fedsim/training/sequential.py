"""Local training, one client at a time over the shared model.

A client's fault is its own result, never an exception of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.model.adapter import AdapterModel, isolated_torch_rng
from fedsim.model.forward import Pass, evaluating, forward, forward_with_hidden
from fedsim.model.packing import Padded
from fedsim.model.text import Batch, collate
from fedsim.model.vectors import from_vector, to_vector
from fedsim.rng import torch_stream
from fedsim.training.drift import Drift
from fedsim.training.dropout import Masks, dropping, drops, streams
from fedsim.training.jobs import (
    NO_GRADIENTS,
    TWO_ANSWERS,
    TWO_LOSSES,
    TrainJob,
    TrainResult,
    noise_generator,
    parts_of,
    private_draws,
    result_of,
    shuffled_batches,
)
from fedsim.training.optimizers import make_optimizer
from fedsim.training.retaining import join, taken
from fedsim.training.spsa import Address, Update, descend


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
            if job.importance:
                return _importance(self, job)
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
                for (loss, used), rate in zip(steps, job.local.rates(job.steps), strict=True):
                    if job.drift is not None:
                        _add_drift(model, start, job.drift)
                    if job.local.max_grad_norm is not None and job.rule is None:
                        torch.nn.utils.clip_grad_norm_(
                            list(model.parameters().values()), job.local.max_grad_norm
                        )
                    optimizer.param_groups[0]["lr"] = float(rate)
                    optimizer.step()
                    losses.append(loss)
                    tokens += used
        finally:
            model.module.zero_grad(set_to_none=True)
        update = to_vector(model.arrays()) - to_vector(job.adapter)
        return result_of(job, update=update, losses=losses, tokens=tokens)

    def reference_pass(self, job: TrainJob, batch: Batch) -> Pass | None:
        """The batch under the reference adapter, without gradients or dropout.

        The model is left as it was.
        """
        if not job.objective.needs.reference:
            return None
        assert job.reference is not None, "the objective needs a reference adapter"
        parameters = self.model.parameters()
        current = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.model.load(job.reference)
        try:
            with torch.no_grad(), evaluating(self.model.module):
                return passed(self.model.module, batch, job.objective.needs.layer)
        finally:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(current[name])


def passed(module: torch.nn.Module, batch: Batch, layer: int | None) -> Pass:
    """A pass over a batch, with what leaves a block if one is named."""
    return forward(module, batch) if layer is None else forward_with_hidden(module, batch, layer)


def _plain_steps(executor: SequentialExecutor, job: TrainJob) -> Iterator[tuple[float, int]]:
    """Ordinary steps; leaves gradients in place and yields (loss, tokens)."""
    beside = job.beside()
    kept = [] if beside is None else shuffled_batches(beside)
    for step, positions in enumerate(shuffled_batches(job)):
        executor.model.module.zero_grad(set_to_none=True)
        loss, tokens = _add_gradients(executor, job, step, positions)
        if beside is not None and job.retained is not None:
            forgotten = taken(executor.model)
            tokens += _add_gradients(executor, beside, step, kept[step])[1]
            join(executor.model, forgotten, job.retained.term)
        yield loss, tokens


def _add_gradients(
    executor: SequentialExecutor, job: TrainJob, step: int, positions: NDArray[np.int64]
) -> tuple[float, int]:
    """Add the gradient of a step's mean loss; that loss and the tokens it took."""
    loss_of = SampleLosses(executor, job, step)
    loss, tokens = 0.0, 0
    for part in parts_of(positions, job.local):
        torch.autograd.backward(loss_of(executor.model.module, part).sum() / len(positions))
        loss += loss_of.mean * (len(part) / len(positions))
        tokens += loss_of.tokens
    return loss, tokens


def _private_steps(executor: SequentialExecutor, job: TrainJob) -> Iterator[tuple[float, int]]:
    """Steps whose batches and gradients belong to a privacy stage; each step's noise is one release."""
    assert job.rule is not None
    assert job.task is not None
    assert job.ledger is not None
    if len(job.texts) > 1:
        raise ValueError(TWO_ANSWERS)
    if job.retained is not None:
        raise ValueError(TWO_LOSSES)
    model = executor.model
    session = job.rule.open(job.task, job.ledger)
    parameters = model.parameters()
    for step in range(job.task.steps):
        loss_of = SampleLosses(executor, job, step)
        generator = noise_generator(job, step, model.device)
        positions = session.batch(private_draws(job, step))
        gradients, _ = session.gradients(model.module, positions, loss_of, generator)
        for name, parameter in parameters.items():
            parameter.grad = gradients[name].to(parameter.dtype)
        yield loss_of.mean, loss_of.tokens


def _one_byte(executor: SequentialExecutor, job: TrainJob) -> TrainResult:
    """Training by SPSA: two passes a step without dropout, which would differ between them; no gradients.

    A drift's term is part of the loss.
    """
    if job.rule is not None:
        raise ValueError(NO_GRADIENTS)
    if job.retained is not None:
        raise ValueError("spsa takes one loss a step, and this method has a retain loss beside it")
    model, loss_of = executor.model, SampleLosses(executor, job)
    start_D, batches, tokens = to_vector(job.adapter), shuffled_batches(job), 0

    def loss(update_D: Update, step: int) -> float:
        nonlocal tokens
        model.load(from_vector(start_D + update_D, job.adapter))
        found = float(loss_of(model.module, batches[step]).double().mean())
        tokens += loss_of.tokens
        return found + (job.drift.penalty(update_D) if job.drift is not None else 0.0)

    with torch.no_grad(), evaluating(model.module):
        address = Address(seed=job.seed, round=job.round, client=job.client)
        descent = descend(loss, address, dimension=start_D.size, lr=job.local.lr, steps=len(batches))
        model.load(from_vector(start_D + descent.update_D, job.adapter))
    return result_of(job, update=descent.update_D, losses=descent.losses, tokens=tokens, codes=descent.codes)


def _importance(executor: SequentialExecutor, job: TrainJob) -> TrainResult:
    """The mean over the records of the objective's squared gradient, record by record, without dropout."""
    if job.rule is not None:
        raise ValueError(
            "importances are squared gradients of records, which example_dp does not account for"
        )
    model = executor.model
    model.load(job.adapter)
    loss_of = SampleLosses(executor, job)
    losses: list[float] = []
    tokens = 0
    squares = {name: torch.zeros_like(value) for name, value in model.parameters().items()}
    try:
        with evaluating(model.module):
            for position in range(len(job.pairs)):
                model.module.zero_grad(set_to_none=True)
                torch.autograd.backward(loss_of(model.module, np.array([position])).sum())
                for name, parameter in model.parameters().items():
                    if parameter.grad is not None:
                        squares[name] += parameter.grad.detach() ** 2 / len(job.pairs)
                losses.append(loss_of.mean)
                tokens += loss_of.tokens
    finally:
        model.module.zero_grad(set_to_none=True)
    found = to_vector({name: value.cpu().numpy() for name, value in squares.items()})
    return result_of(job, update=found, losses=losses, tokens=tokens)


@dataclass
class SampleLosses:
    """A job's loss of each record in a batch; remembers the last batch's mean and the tokens it took.

    A pass under the reference adapter is work too: its tokens count, and so do those of refusals.
    """

    executor: SequentialExecutor
    job: TrainJob
    step: int = 0
    mean: float = 0.0
    tokens: int = 0

    def __call__(self, module: torch.nn.Module, positions: NDArray[np.int64]) -> torch.Tensor:
        model, texts = self.executor.model, self.job.texts
        asked = [pairs[position] for pairs in texts for position in positions]
        batch = collate(asked, pad_id=model.pad_id).to(model.device)
        reference = self.executor.reference_pass(self.job, batch)
        with dropping(module, self._masks(batch, positions)):
            current = passed(module, batch, self.job.objective.needs.layer)
        if len(texts) > 1:
            current = current.with_refusals([len(positions)])
            reference = None if reference is None else reference.with_refusals([len(positions)])
        losses = self.job.objective(current, reference)
        self.mean = float(losses.detach().mean())
        self.tokens = int(batch.lengths_B.sum()) * (1 if reference is None else 2)
        return losses

    def _masks(self, batch: Batch, positions: NDArray[np.int64]) -> Masks | None:
        """What LoRA layers keep of their input in this step; None where they keep all."""
        model = self.executor.model
        if not len(positions) or not drops(model.module):
            return None
        lengths_B = batch.lengths_B - 1
        layout = Padded.of([len(lengths_B)], batch.input_ids_BT.shape[1] - 1)
        generators = streams(self.job, self.step, positions, model.device)
        return Masks(generators, lengths_B, layout, repeats=model.checkpoints)


def _add_drift(model: AdapterModel, start: dict[str, torch.Tensor], drift: Drift) -> None:
    """Add to the gradients what a federated algorithm adds to each step; the client is a stack of one."""
    parameters = dict(sorted(model.parameters().items()))  # in the order of vectors
    now_1D = torch.cat([parameter.detach().reshape(-1) for parameter in parameters.values()])[None]
    start_1D = torch.cat([start[name].reshape(-1) for name in parameters])[None]
    added_D = drift.gradient(now_1D, start_1D)[0]
    pieces = torch.split(added_D, [parameter.numel() for parameter in parameters.values()])
    for parameter, piece in zip(parameters.values(), pieces, strict=True):
        pull = piece.view_as(parameter)
        parameter.grad = pull if parameter.grad is None else parameter.grad + pull
