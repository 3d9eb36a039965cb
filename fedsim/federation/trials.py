"""Jobs and parties that no life knows of: to time an executor with, and to see whether private work works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedsim.federation.orders import WorkOrder
from fedsim.federation.runtime import ClientRuntime, local_task
from fedsim.model.vectors import Arrays
from fedsim.rng import stream
from fedsim.training.config import LocalConfig
from fedsim.training.jobs import Retained, TrainJob
from fedsim.training.objectives import LocalWork, MeanNll
from privacy import ClientContext, ClientParty, Ledger, Pipeline


def trial_jobs(
    runtime: ClientRuntime,
    adapter: Arrays,
    local: LocalConfig,
    *,
    clients: int,
    private: bool,
    work: LocalWork | None = None,
) -> list[TrainJob]:
    """Jobs that no life knows of: passes of the first clients over one batch each, ordinary or of other work.

    What losses compare with is the adapter itself.
    """
    work = work or LocalWork(MeanNll())
    jobs = []
    size = local.batch_size
    for client in sorted(runtime.records)[:clients]:
        order = WorkOrder(round=0, seed=0, branch="trial", version=0, local=local, planned_steps=1)
        nominal = min(size, len(runtime.records[client]))
        refusals = runtime.refusals(client, range(nominal), order.seed, work.objective)
        job = TrainJob.of_texts(
            runtime.texts(client, size),
            adapter=adapter,
            local=local,
            seed=0,
            client=client,
            rule=runtime.pipeline.local_rule() if private else None,
            task=local_task(client, order, nominal_records=nominal) if private else None,
        )
        job = replace(job, objective=work.objective, importance=work.importance)
        if work.retain is not None:
            retained = Retained(term=work.retain, pairs=job.pairs, record_ids=job.record_ids)
            job = replace(job, retained=retained)
        jobs.append(replace(job, reference=adapter, refusals=refusals))
    return jobs


def trial_parties(
    pipeline: Pipeline, names: Sequence[str], ledger: Ledger, *, seed: int, purpose: str
) -> dict[str, ClientParty]:
    """Clients' ends of a round 0 that no life has; ``purpose`` is its branch, and keys what they draw."""
    return {
        name: pipeline.client(
            ClientContext(
                client=name,
                round_id=0,
                branch=purpose,
                generator=stream(seed, purpose, "stage", name),
                secret=stream(seed, purpose, "mask", name).bytes(32),
                ledger=ledger,
            )
        )
        for name in names
    }


def check_per_sample(runtime: ClientRuntime, adapter: Arrays) -> None:
    """Train on one record if a privacy stage owns local training; ValueError when it cannot.

    Not every layer gives per-sample gradients (DoRA and adapted embeddings do not), and each client would
    fail alike.
    """
    if runtime.pipeline.local_rule() is None:
        return
    jobs = trial_jobs(runtime, adapter, LocalConfig(batch_size=1), clients=1, private=True)
    error = runtime.executor.train_clients(jobs)[0].error
    if error is not None:
        raise ValueError(f"example_dp cannot take per-sample gradients of this model ({error})")
