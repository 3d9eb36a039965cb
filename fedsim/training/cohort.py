"""Trains many clients at once over one frozen base; equal to one at a time up to rounding.

The clients of a cohort go through their local steps side by side. Nothing ties them together: the loss is
the sum of the clients' own means, each has its own factors, optimiser state, gradient norm and noise. Clients
stand in order of their steps, longest first, so that whoever has finished is cut off the end of the stack
and neither moves nor is computed. Legend: K clients still training, R rows of a step, D trained
parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fedsim.model.forward import Pass, forward
from fedsim.model.packing import Packing, Padded
from fedsim.model.text import Batch
from fedsim.model.vectors import Arrays, to_vector
from fedsim.training.asked import Asked, Positions
from fedsim.training.dropout import Masks, streams
from fedsim.training.jobs import (
    TrainJob,
    TrainResult,
    noise_generator,
    parts_of,
    private_draws,
    result_of,
    shuffled_batches,
)
from fedsim.training.notes import Notes
from fedsim.training.optimizers import make_optimizer, step_at
from fedsim.training.sample_gradients import LayeredGradients
from fedsim.training.stacked import StackedLora
from privacy import DenseGradients, LocalSession, SampleGradients

PAYS = 0.85
"""Share of the places that sharing what texts begin with must leave at most."""


class Cohort:
    """One joint training. Jobs come with most steps first and share optimiser settings and privacy rule."""

    def __init__(self, lora: StackedLora, jobs: Sequence[TrainJob]) -> None:
        self.lora, self.jobs, self.model = lora, jobs, lora.model
        self.asked = Asked(jobs, pad_id=self.model.pad_id)
        self.packs = self.asked.longest <= self.model.packs_up_to
        self.start_KD = self._stack([job.adapter for job in jobs])
        self.references_KD: torch.Tensor | None = None
        if jobs[0].objective.needs.reference:
            self.references_KD = self._stack([_reference(job) for job in jobs])
        drifts = [job.drift for job in jobs if job.drift is not None]
        self.drift = drifts[0].beside(drifts[1:]) if drifts else None
        self.vectors_KD = torch.nn.Parameter(self.start_KD.clone())
        self.optimizer = make_optimizer(jobs[0].local, [self.vectors_KD], fused=True)
        self.sessions: list[LocalSession] = [_open(job) for job in jobs if job.rule is not None]
        self.batches = [] if self.sessions else [shuffled_batches(job) for job in jobs]
        self.rates = [job.local.rates(job.steps) for job in jobs]
        passes = 1 if self.references_KD is None else 2
        self.notes = Notes(self.asked, clients=len(jobs), passes=passes)

    def train(self) -> list[TrainResult]:
        """Take all steps of all jobs."""
        trained_KD = torch.empty_like(self.start_KD)
        with self.model.training():
            for step in itertools.count():
                clients = sum(job.steps > step for job in self.jobs)
                trained_KD[clients : len(self.vectors_KD)] = self.vectors_KD.detach()[clients:]
                self._keep(clients)
                if not clients:
                    break
                self.vectors_KD.grad = self._private(step) if self.sessions else self._plain(step)
                rates_K = np.array([rates[step] for rates in self.rates[:clients]])
                step_at(self.optimizer, self.vectors_KD, rates_K)
        updates = (trained_KD - self.start_KD).cpu().numpy()
        gathered = zip(self.jobs, updates, self.notes.losses(), self.notes.tokens_K, strict=True)
        return [
            result_of(job, update=update.copy(), losses=losses, tokens=int(tokens))
            for job, update, losses, tokens in gathered
        ]

    def _keep(self, clients: int) -> None:
        """Go on with the first clients only: their parameters, moments and nothing else."""
        if clients == len(self.vectors_KD):
            return
        self.vectors_KD.grad = None
        self.vectors_KD.data = self.vectors_KD.data[:clients]
        state = self.optimizer.state[self.vectors_KD]
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() == 2:
                state[name] = value[:clients]

    # ----------------------------------------------------------------------- gradients (K, D)

    def _plain(self, step: int) -> torch.Tensor:
        """Gradients of the clients' own mean losses, with FedProx's pull, each clipped to its norm."""
        clients, local = len(self.vectors_KD), self.jobs[0].local
        positions = [self.batches[client][step] for client in range(clients)]
        parts_KP = [parts_of(chosen, local) for chosen in positions]
        none = np.zeros(0, dtype=np.int64)
        gradient_KD = torch.zeros_like(self.vectors_KD)
        seen = []
        for part_K in itertools.zip_longest(*parts_KP, fillvalue=none):
            losses_R = self._add_gradients(gradient_KD, step, part_K, [len(chosen) for chosen in positions])
            seen.append((losses_R, [len(chosen) for chosen in part_K]))
        self.notes.add(positions, seen)
        gradient_KD = self._with_drift(gradient_KD)
        if local.max_grad_norm is not None:
            norms_K = torch.linalg.vector_norm(gradient_KD, dim=1)
            gradient_KD *= (local.max_grad_norm / (norms_K + 1e-6)).clamp(max=1.0)[:, None]
        return gradient_KD

    def _add_gradients(
        self, gradient_KD: torch.Tensor, step: int, positions: Sequence[Positions], of: Sequence[int]
    ) -> torch.Tensor:
        """Add the gradients of part of a step, of ``of`` records a client; the part's losses (R,)."""
        counts = [len(chosen) for chosen in positions]
        batch, layout = self._lay_out(positions)
        clients = np.flatnonzero(counts)[layout.order]
        leaves = self.lora.leaves(self.vectors_KD.detach()[clients])
        losses_R = self._losses(leaves, (batch, layout), positions, step)
        share_R = [1 / whole for whole, count in zip(of, counts, strict=True) for _ in range(count)]
        shares_R = torch.tensor(share_R, dtype=losses_R.dtype).to(losses_R.device)
        gradients = torch.autograd.grad((losses_R * shares_R).sum(), list(leaves.values()))
        gradient_KD[clients] += torch.cat([part.flatten(1) for part in gradients], dim=1)
        return losses_R.detach()

    def _private(self, step: int) -> torch.Tensor:
        """Private gradients, by the privacy rule from those of single records."""
        jobs, sessions = self.jobs[: len(self.vectors_KD)], self.sessions[: len(self.vectors_KD)]
        drawn = zip(jobs, sessions, strict=True)
        positions = [session.batch(private_draws(job, step)) for job, session in drawn]
        counts = [len(chosen) for chosen in positions]
        gradients: SampleGradients
        if any(counts):
            batch, layout = self._lay_out(positions)
            clients = np.flatnonzero(counts)[layout.order]
            gradients = LayeredGradients(
                names=self.model.names, layout=layout, clients=clients, total=len(jobs)
            )
            leaves = self.lora.leaves(self.vectors_KD.detach()[clients])
            losses_R = self._losses(leaves, (batch, layout), positions, step, gradients)
            torch.autograd.backward(losses_R.sum())
            self.notes.add(positions, [(losses_R.detach(), counts)])
        else:
            gradients = DenseGradients(self.vectors_KD.new_zeros(0, self.lora.dimension), counts)
            self.notes.add(positions, [(self.vectors_KD.new_zeros(0), counts)])
        assert jobs[0].rule is not None
        generators = [noise_generator(job, step, self.model.device) for job in jobs]
        return self._with_drift(jobs[0].rule.privatise(sessions, gradients, counts, generators))

    def _with_drift(self, gradient_KD: torch.Tensor) -> torch.Tensor:
        """Add what the federated algorithm adds to each step."""
        if self.drift is not None:
            gradient_KD += self.drift.gradient(self.vectors_KD.detach(), self.start_KD[: len(gradient_KD)])
        return gradient_KD

    # --------------------------------------------------------------------------- losses (R,)

    def _lay_out(self, positions: Sequence[Positions]) -> tuple[Batch, Packing | Padded]:
        """The texts of a step, client by client, and how those of clients that have any will lie."""
        batch, texts = self.asked.texts(positions)
        counts = [count for count in texts if count]
        layout: Packing | Padded
        if self.packs:
            layout = self._packed(batch, counts)
        else:
            layout = Padded.of(counts, batch.input_ids_BT.shape[1] - 1)
        return batch.to(self.model.device), layout

    def _packed(self, batch: Batch, counts: Sequence[int]) -> Packing:
        """Texts in one row; what a client's texts begin with alike is computed once, where that pays.

        Gradients of single records and masks of their own need each text apart.
        """
        device, lengths_B = self.model.device, batch.lengths_B - 1
        apart = Packing.of(lengths_B, counts, device)
        if self.sessions or self.lora.drops:
            return apart
        shared = Packing.of(lengths_B, counts, device, ids_BT=batch.input_ids_BT)
        return shared if len(shared.source_P) <= PAYS * len(apart.source_P) else apart

    def _losses(
        self,
        leaves: Mapping[str, torch.Tensor],
        laid_out: tuple[Batch, Packing | Padded],
        positions: Sequence[Positions],
        step: int,
        samples: LayeredGradients | None = None,
    ) -> torch.Tensor:
        """Each client's own loss of each of its records, under factors in the order of the layout."""
        batch, layout = laid_out
        packing = layout if isinstance(layout, Packing) else None
        masks = self._masks(positions, step, batch, layout) if self.lora.drops else None
        with self.lora.applied(leaves, layout.blocks, samples, masks) as module:
            current = forward(module, batch, packing)
        reference = None
        if self.references_KD is not None:
            present = np.flatnonzero([len(chosen) for chosen in positions])[layout.order]
            frozen = self.lora.factors(self.references_KD[present])
            with torch.no_grad(), self.lora.applied(frozen, layout.blocks) as module:
                reference = self.asked.by_record(forward(module, batch, packing), positions)
        return self._judged(self.asked.by_record(current, positions), reference, positions)

    def _masks(
        self, positions: Sequence[Positions], step: int, batch: Batch, layout: Packing | Padded
    ) -> Masks:
        asked = zip(self.jobs, positions, strict=False)
        generators = [one for job, own in asked for one in streams(job, step, own, self.model.device)]
        return Masks(generators, batch.lengths_B - 1, layout, repeats=self.model.checkpoints)

    def _judged(self, current: Pass, reference: Pass | None, positions: Sequence[Positions]) -> torch.Tensor:
        """Apply each client's objective to its rows; neighbours with equal objectives at once."""
        if all(job.objective == self.jobs[0].objective for job in self.jobs[: len(positions)]):
            return self.jobs[0].objective(current, reference)
        parts, begin = [], 0
        sized = zip(self.jobs, map(len, positions), strict=False)
        for objective, group in itertools.groupby(sized, key=lambda item: item[0].objective):
            end = begin + sum(count for _, count in group)
            compared = None if reference is None else reference.samples(begin, end)
            parts.append(objective(current.samples(begin, end), compared))
            begin = end
        return torch.cat(parts)

    def _stack(self, adapters: Sequence[Arrays]) -> torch.Tensor:
        """Adapters as vectors (K, D) on the device; one that several clients share is read once."""
        shared = {id(arrays): arrays for arrays in adapters}
        vectors = {key: torch.from_numpy(to_vector(arrays)) for key, arrays in shared.items()}
        stacked = torch.stack([vectors[id(arrays)] for arrays in adapters])
        return stacked.to(self.model.device, self.lora.dtype)


def _reference(job: TrainJob) -> Arrays:
    assert job.reference is not None, "the objective needs a reference adapter"
    return job.reference


def _open(job: TrainJob) -> LocalSession:
    assert job.rule is not None
    assert job.task is not None
    assert job.ledger is not None
    return job.rule.open(job.task, job.ledger)
