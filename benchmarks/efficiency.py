"""Federated efficiency: tokens per second of whole rounds over those of plain centralised training.

Centralised is the same model with PEFT's own layers, the model's own loss, AdamW, and padded batches shuffled
from the same records, at whichever batch size and number of threads is fastest; gradients are not clipped
there, which clients do. A round and an epoch have the same tokens, padding not counted, so the ratio is one
of seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.harness import (
    Options,
    Report,
    Variant,
    interleave,
    lowest,
    ratio,
    seconds,
    with_threads,
)
from benchmarks.world import SEED, Rounds, Work, batched
from fedsim.model.adapter import AdapterModel
from fedsim.model.forward import forward
from fedsim.model.text import Batch, collate
from fedsim.rng import torch_stream
from fedsim.training.tuning import keep_freed_memory

GOAL = 0.9
BATCH_SIZES = (8, 16, 32, 64, 128, 256)


@dataclass(kw_only=True)
class Centralised:
    """Epochs over pooled records, the optimiser going on from one to the next."""

    model: AdapterModel
    records: Batch
    optimizer: torch.optim.Optimizer
    batch_size: int
    epoch: int = 0

    @classmethod
    def of(cls, model: AdapterModel, records: Batch, *, lr: float, batch_size: int) -> Centralised:
        model.fresh(SEED)
        optimizer = torch.optim.AdamW(model.parameters().values(), lr=lr, weight_decay=0.0)
        return cls(model=model, records=records, optimizer=optimizer, batch_size=batch_size)

    def train(self) -> None:
        """One epoch."""
        module, device = self.model.module, self.model.device
        module.train()
        for rows in self._batches():
            batch = self.records.take(rows).to(device)
            columns = torch.arange(batch.input_ids_BT.shape[1], device=device)
            loss = module(
                input_ids=batch.input_ids_BT,
                attention_mask=(columns < batch.lengths_B[:, None]).long(),
                labels=batch.labels_BT,
                use_cache=False,
            ).loss
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        module.eval()

    def _batches(self) -> Iterator[torch.Tensor]:
        """Rows of the records, shuffled anew."""
        self.epoch += 1
        generator = torch_stream(SEED, "centralised", self.epoch)
        yield from torch.split(
            torch.randperm(len(self.records.lengths_B), generator=generator), self.batch_size
        )

    def timed(self) -> float:
        return seconds(self.train)


def pool(federation: Rounds, model: AdapterModel) -> Batch:
    """All records of all clients."""
    held = federation.engine.runtime.pairs.values()
    return collate([pair for pairs in held for pair in pairs], pad_id=model.pad_id)


def loss_of(model: AdapterModel, records: Batch) -> float:
    """Nats per answer token, averaged over records."""
    with torch.no_grad():
        parts = [
            forward(model.module, records.take(rows).to(model.device)).mean_nll
            for rows in torch.split(torch.arange(len(records.lengths_B)), 64)
        ]
    return float(torch.cat(parts).mean())


def run(options: Options) -> Report:
    keep_freed_memory()
    work = Work(clients=options.size(100, 6), records=options.size(20, 4))
    model = work.model()
    federation = Rounds.of(work, model, batched)
    records = pool(federation, model)
    tokens = int(records.lengths_B.sum())
    facts: dict[str, float | str] = {"tokens of a round": tokens, "loss before": loss_of(model, records)}
    if federation.next().taken.tokens != tokens:
        raise RuntimeError("a round's tokens are not those of the pooled records")
    sizes = (8, 16) if options.small else BATCH_SIZES
    central = {
        f"centralised, batches of {size}": Centralised.of(work.model(), records, lr=work.lr, batch_size=size)
        for size in sizes
    }
    timed = {"federated": federation.timed, **{name: one.timed for name, one in central.items()}}
    samples = interleave(
        [
            Variant(name=f"{name}, threads={threads}", measure=with_threads(threads, measure))
            for name, measure in timed.items()
            for threads in options.threads
        ],
        options.repeat,
    )
    best = {kind: lowest(samples, kind) for kind in ("federated", "centralised")}
    for name in best.values():
        facts[f"tokens per s, {name}"] = tokens / statistics.median(samples[name])
    model.load(federation.federation.adapter)
    facts["loss after, federated"] = loss_of(model, records)
    trained = central[best["centralised"].rsplit(",", 1)[0]]
    facts["loss after, centralised"] = loss_of(trained.model, records)
    return Report(
        name="efficiency",
        title="Federated efficiency",
        unit="s per pass over all records",
        settings={"clients": work.clients, "records": work.records, "batch_size": work.batch_size},
        samples=samples,
        ratios=[
            ratio(
                f"federated efficiency: {best['centralised']} over {best['federated']}",
                samples[best["centralised"]],
                samples[best["federated"]],
                at_least=GOAL,
            )
        ],
        facts=facts,
    )
