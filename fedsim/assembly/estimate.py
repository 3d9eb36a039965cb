"""What a run will take: counted from its life, and timed by one joint step on this machine.

Only training is estimated, which is most of a run. Other work on the machine makes both the trial and the run
slower, not always alike.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import replace

import torch

from fedsim.federation.trials import trial_jobs
from fedsim.living.context import LifeContext
from fedsim.training.config import LocalConfig
from fedsim.training.jobs import TrainJob
from fedsim.training.tuning import fastest_threads

TRIAL_CLIENTS = 16
"""Most clients whose joint training is timed."""
PATIENCE = 4.0
"""Seconds that a trial may take, going by one step; large bases are tried with fewer clients and passes."""


def measured_threads(context: LifeContext) -> int:
    """The fastest number of threads for a joint step of this life's clients; one beside a GPU."""
    if context.model.device != "cpu":
        return 1
    jobs = _short(context, _trial(context, context.federation.local))
    return fastest_threads(lambda: context.engine.runtime.executor.train_clients(jobs))


def effort_sentence(context: LifeContext, *, seeds: int) -> str:
    """How often clients train over all branches and seeds, how long that takes here, and in what memory."""
    trainings, steps = _work(context)
    jobs = _timed_trial(context)
    tried = sum(job.steps for job in jobs)
    if context.model.device == "cpu":
        fastest_threads(lambda: context.engine.runtime.executor.train_clients(jobs), trials=1)
    started = time.perf_counter()
    context.engine.runtime.executor.train_clients(jobs)
    seconds = (time.perf_counter() - started) / tried * steps * seeds
    return (
        f"{trainings * seeds:,} local trainings with {steps * seeds:,} steps, about {_rounded(seconds)} on "
        f"this machine, by {_number(tried, 'timed step')} of {_number(len(jobs), 'client')}; probes, figures "
        f"and the report come on top. {_memory(context)}"
    )


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _work(context: LifeContext) -> tuple[int, int]:
    """Trainings and optimiser steps over all branches; rounds that branches share count once."""
    pairs, local = context.engine.runtime.pairs, context.federation.local
    cohorts = [step.cohort for segment, _ in context.tree.walk() for step in segment.steps]
    taking_part = [one for cohort in cohorts for one in cohort]
    steps = [local.planned_steps(len(pairs[one.client]) - len(one.without)) for one in taking_part]
    return len(steps), sum(steps)


def _trial(context: LifeContext, local: LocalConfig, *, private: bool = False) -> list[TrainJob]:
    """A few clients' passes over one batch each, as they train together."""
    adapter = context.model.fresh(context.seed)
    runtime = context.engine.runtime
    return trial_jobs(runtime, adapter, local, clients=TRIAL_CLIENTS, private=private)


def _timed_trial(context: LifeContext) -> list[TrainJob]:
    """The same with the run's own privacy, and few passes: one step is all that a trial's budget has."""
    local = context.federation.local
    private = context.engine.runtime.pipeline.local_rule() is not None
    few = local.model_copy(update={"epochs": 1 if private else min(local.epochs, 3)})
    return _short(context, _trial(context, few, private=private))


def _short(context: LifeContext, jobs: list[TrainJob]) -> list[TrainJob]:
    """A trial's jobs, or as many of their clients and passes as fit into the patience for it."""
    once = context.federation.local.model_copy(update={"epochs": 1})
    plain = _trial(context, once)[:1]  # a private one may have the budget of a single trial
    started = time.perf_counter()
    context.engine.runtime.executor.train_clients(plain)
    fitting = max(int(PATIENCE / (time.perf_counter() - started)), 1)
    if sum(job.steps for job in jobs) <= fitting:
        return jobs
    return [replace(job, local=once) if job.rule is None else job for job in jobs[:fitting]]


def _rounded(seconds: float) -> str:
    """A time in words, no more exact than one trial can be.

    >>> _rounded(4.0), _rounded(59.0), _rounded(100.0), _rounded(9000.0)
    ('10 s', '60 s', '2 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _memory(context: LifeContext) -> str:
    """The most memory that this process took so far, its trial step included."""
    if context.model.device == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024
        return f"Memory so far: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB."
    taken = torch.cuda.max_memory_allocated(torch.device(context.model.device))
    return f"Memory of the GPU so far: {taken / 1e9:.1f} GB."
