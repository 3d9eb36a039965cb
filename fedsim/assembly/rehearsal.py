"""What a run will do, tried once before it begins, on the records that make most trouble.

A probe, a padded generation, a step on the longest record, a private step on two records, a round of the
privacy stages, and a step of each method's losses. A run that passes can still fail by what only a life
brings; it does not fail by its base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from fedsim.assembly.checks import blamed_on
from fedsim.assembly.token_facts import check_tokens
from fedsim.federation.beside import joined
from fedsim.federation.trials import trial_jobs, trial_parties
from fedsim.federation.worst_cases import planned_work
from fedsim.living.context import LifeContext
from fedsim.measuring.probe import build_probe
from fedsim.measuring.scoring import DivergedError, score_probe
from fedsim.model.predictor import predictor_of
from fedsim.model.text import Pair
from fedsim.model.vectors import Arrays
from fedsim.rng import stream
from fedsim.scenario.file import KeyPath, Source
from fedsim.scenario.variants import Variant
from fedsim.training.jobs import TrainJob
from fedsim.training.objectives import LocalWork
from fedsim.unlearning.protocol import MethodConfig
from privacy import Ledger, Pipeline, RoundAborted, RoundContext, Update, l2_norm
from privacy.rehearsal import rehearse as play

GENERATED = 4
"""Tokens generated in a rehearsal."""
FEWEST = 3
"""Clients of a rehearsed round, where the privacy stages do not ask for more."""


def rehearse(context: LifeContext, variant: Variant) -> None:
    """Try what this life will do; the model is left with fresh parameters.

    Raises:
        ScenarioError: something cannot work on this base; the place is the key that asked for it.
    """
    model, runtime = context.model, context.engine.runtime
    scenario, source = variant.scenario, variant.source
    with blamed_on(source, "model"):
        probed = [pair for _, _, probe in context.probes.named() for pair in probe.pairs_I]
        probed += _refusals(context, scenario.compare)
        check_tokens(runtime.records, runtime.pairs, probed, model, scenario.model.max_tokens)
    adapter = model.fresh(context.seed)
    with _tried(source, ("model",), "a probe of the longest and the shortest record"):
        _probe(context)
    update = None
    for job in _jobs(context, adapter, private=False):
        what = f"a step on {len(job.pairs)} records, the longest with it,"
        update = _train(context, job, source, ("model",), what)
    if runtime.pipeline.local_rule() is not None:
        for job in _jobs(context, adapter, private=True):
            update = _train(context, job, source, ("privacy",), f"a private step on {len(job.pairs)} records")
    if update is not None:
        update = joined(update, {}, scenario.federation.strategy.sends)
        _check_length(scenario.federation.max_update_norm, runtime.pipeline, update, source)
    if runtime.pipeline.stages and update is not None:
        with _tried(source, ("privacy",), "a round of the privacy stages"):
            _pass_through_stages(context, update)
    for place, method in enumerate(scenario.compare):
        for role, work in planned_work(method, context.life):
            for job in _jobs(context, adapter, private=False, work=work):
                _train(context, job, source, ("compare", place), f"a step of the {role}'s loss")
    model.fresh(context.seed)


def _refusals(context: LifeContext, methods: Sequence[MethodConfig]) -> list[Pair]:
    """Every refusal that losses of these methods may be shown."""
    runtime = context.engine.runtime
    works = [work for method in methods for _, work in planned_work(method, context.life)]
    return [
        pair
        for work in works
        for client, held in runtime.records.items()
        for pair in runtime.refusals(client, range(len(held)), context.seed, work.objective)
    ]


def _probe(context: LifeContext) -> None:
    """Score the longest and the shortest of the clients' records, with a generation if the run has any."""
    model, runtime = context.model, context.engine.runtime
    held = [
        (len(pair.input_ids), record)
        for client, pairs in runtime.pairs.items()
        for pair, record in zip(pairs, runtime.records[client], strict=True)
    ]
    ordered = sorted(held, key=lambda one: one[0])
    records = list({record.record_id: record for _, record in (ordered[0], ordered[-1])}.values())
    probe = build_probe(model.tokenizer, "rehearsal", records, model.fmt)
    generate = context.probing.generate != "never" or context.probing.shown > 0
    with model.measuring() as module:
        predictor = predictor_of(model, module, shares_prefixes=probe.ids_ST.shape[1] <= model.packs_up_to)
        score_probe(predictor, model.tokenizer, probe, generate=generate, max_new_tokens=GENERATED)


def _jobs(
    context: LifeContext, adapter: Arrays, *, private: bool, work: LocalWork | None = None
) -> list[TrainJob]:
    """One step on the longest record of all clients and another of the same client."""
    runtime = context.engine.runtime
    client = max(
        runtime.pairs,
        key=lambda number: max((len(pair.input_ids) for pair in runtime.pairs[number]), default=0),
    )
    pairs = runtime.pairs[client]
    first = max(range(len(pairs)), key=lambda index: len(pairs[index].input_ids))
    chosen = [first, *[index for index in range(len(pairs)) if index != first][:1]]
    local = context.federation.local
    part = None if local.micro_batch is None else min(local.micro_batch, 2)
    local = local.model_copy(update={"epochs": 1, "batch_size": 2, "micro_batch": part})
    only = replace(
        runtime,
        records={client: tuple(runtime.records[client][index] for index in chosen)},
        pairs={client: tuple(pairs[index] for index in chosen)},
    )
    return trial_jobs(only, adapter, local, clients=1, private=private, work=work)


def _train(context: LifeContext, job: TrainJob, source: Source, key: KeyPath, what: str) -> Update:
    result = context.engine.runtime.executor.train_clients([job])[0]
    if result.error is not None:
        raise source.error(key, f"{what} fails on this base ({result.error.splitlines()[0]})")
    return result.update


def _check_length(longest: float | None, pipeline: Pipeline, update: Update, source: Source) -> None:
    """Refuse a bound that one step's update exceeds and no stage shortens it to: every client would fail."""
    length = l2_norm(update)
    if longest is not None and not pipeline.stages and length > longest:
        raise source.error(
            ("federation", "max_update_norm"),
            f"one step on two records moves the adapter by {length:.3g} (L2 norm), beyond {longest:g}, so "
            "every client would fail in every round; raise it, or lower federation.local.lr",
        )


def _pass_through_stages(context: LifeContext, update: Update) -> None:
    """One attempt at a round in which every client of the smallest cohort sends the same update."""
    pipeline = context.engine.runtime.pipeline
    names = [str(client) for client in sorted(context.engine.runtime.pairs)]
    cohort, ledger = names[: max(pipeline.min_cohort, FEWEST)], Ledger()
    noise = stream(context.seed, "rehearsal", "server")
    here = RoundContext(
        round_id=0,
        branch="rehearsal",
        cohort=tuple(cohort),
        roster=tuple(names),
        ledger=ledger,
        generator=noise,
    )
    server = pipeline.open_round(here)
    parties = trial_parties(pipeline, cohort, ledger, seed=context.seed, purpose="rehearsal")
    _, answers = play(server, parties, dict.fromkeys(cohort, update))
    result = server.aggregate(answers)
    if result.rejected:
        raise RoundAborted(next(iter(result.rejected.values())))
    if not np.isfinite(result.update).all():
        raise RoundAborted("the combined update is not finite")


@contextmanager
def _tried(source: Source, key: KeyPath, what: str) -> Iterator[None]:
    """Whatever goes wrong within is said in one line."""
    try:
        yield
    except DivergedError as error:
        raise source.error(key, f"{what} fails on this base ({error})") from error
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        raise source.error(key, f"{what} fails on this base ({type(error).__name__}: {reason})") from error
