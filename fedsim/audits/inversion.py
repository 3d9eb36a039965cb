"""Attacks clients' updates as the server gets them: with no privacy, and behind each stage.

Of a masked round the server sees the sum; the other attacked clients are in it first, since peers whose
records the model knows by heart send next to nothing, and would hide nobody.

A victim takes one step on a few of its records from the run's last model; what it sends passes a pipeline,
the server's end of which does all that a curious server can: it decodes, undoes what is public, and reads
what it can by `fedsim.audits.gradient_inversion`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fedsim.audits.completion import complete, match_next, secrets_told
from fedsim.audits.gradient_inversion import invert, score
from fedsim.audits.kinds.gradient_inversion import OWN, InversionAudit
from fedsim.audits.protocol import FinishedLife, Row
from fedsim.audits.rules import bare
from fedsim.federation.orders import WorkOrder
from fedsim.federation.runtime import local_task
from fedsim.federation.trials import trial_parties
from fedsim.living.context import LifeContext
from fedsim.model.vectors import Arrays
from fedsim.training.config import LocalConfig
from fedsim.training.jobs import TrainJob
from fedsim.training.sequential import SequentialExecutor
from privacy import ExampleDpRule, Ledger, Pipeline, RoundContext, StageConfig, Update, build_pipeline
from privacy.rehearsal import rehearse


def inversion_rows(life: FinishedLife, config: InversionAudit) -> Iterator[Row]:
    """One row a victim and pipeline: how much of its records the attack recovered."""
    context, adapter = life.context, life.adapter("keep")
    own = context.engine.runtime.pipeline
    pipelines = {OWN: own} | {name: in_place_of(own, stages) for name, stages in config.under.items()}
    held = [client for client, pairs in sorted(context.engine.runtime.pairs.items()) if pairs]
    victims = config.victims(context.holdings.names, held)
    for name, pipeline in pipelines.items():
        for victim in victims:
            alike = [client for client in victims if client != victim]
            others = [*alike, *(client for client in held if client != victim and client not in alike)]
            count = max(pipeline.min_cohort, config.cohort) - 1 if pipeline.reveals == "sum" else 0
            cohort = [victim, *others[:count]]
            seen = _seen(context, config, pipeline, cohort, adapter)
            read = _read(life, config, adapter, seen, victim)
            yield life.row(pipeline=name, client=victim, cohort=len(cohort), **read)


def in_place_of(own: Pipeline, stages: Sequence[StageConfig]) -> Pipeline:
    """A pipeline for the life that ``own`` was made for; `PipelineError` says what does not fit."""
    return build_pipeline(stages, nominal=replace(own.nominal, max_weight=1.0))


def _read(
    life: FinishedLife, config: InversionAudit, adapter: Arrays, seen: Update, victim: int
) -> dict[str, float]:
    """What the attack recovers from a vector, against the victim's records."""
    model = life.context.model
    pairs = life.context.engine.runtime.pairs[victim][: config.records]
    recovered = invert(model, adapter, seen)
    found = score(recovered, [pair.input_ids[:-1] for pair in pairs])
    secrets = [pair.input_ids[pair.answer_start : pair.answer_end] for pair in pairs]
    best = [list(ids) for ids in recovered.sequences[: config.records]]
    told = {"told": 0.0}
    if best:
        with life.predictor(adapter) as predictor:
            longest = max(len(secret) for secret in secrets)
            completed = list(complete(predictor, best, max_new_tokens=longest))
        matched = [(*prefix, match_next(model, adapter, seen, prefix)[0]) for prefix in best]
        told = secrets_told([*completed, *matched], secrets)
    return {**found, "told": told["told"]}


def _seen(
    context: LifeContext,
    config: InversionAudit,
    pipeline: Pipeline,
    cohort: Sequence[int],
    adapter: Arrays,
) -> Update:
    """What a curious server can make of what these clients send: an update, or the sum of several."""
    names = [str(client) for client in cohort]
    ledger = Ledger()
    at_server = RoundContext(round_id=0, branch="audit", cohort=tuple(names), ledger=ledger)
    server = pipeline.open_round(at_server, normalise=False)
    parties = trial_parties(pipeline, names, ledger, seed=context.seed, purpose="audit")
    updates = {name: _update(context, config, pipeline, int(name), adapter) for name in names}
    _, answers = rehearse(server, parties, updates)
    total = server.channel.total(answers)
    value, at = total.update, replace(server.context, contributors=total.contributors)
    open_stages = [stage for stage in pipeline.stages if not stage.facts.central]
    for stage in open_stages:
        value, _ = stage.sum(value, at)
    for stage in reversed(open_stages):
        value, _ = stage.server(value, at)
    return value.astype(np.float32)


def _update(
    context: LifeContext, config: InversionAudit, pipeline: Pipeline, client: int, adapter: Arrays
) -> Update:
    """One step of plain SGD on a client's first records, with the pipeline's own way to train."""
    runtime = context.engine.runtime
    local = LocalConfig(
        epochs=1, batch_size=config.records, lr=config.lr, optimizer="sgd", max_grad_norm=None
    )
    rule, task = pipeline.local_rule(), None
    if isinstance(rule, ExampleDpRule):
        rule = bare(context, rule, client)
        order = WorkOrder(round=0, seed=0, branch="audit", version=0, local=local)
        task = local_task(client, order, nominal_records=config.records)
    job = TrainJob.of_texts(
        runtime.texts(client, config.records),
        adapter=adapter,
        local=local,
        seed=context.seed,
        client=client,
        rule=rule,
        task=task,
    )
    (result,) = SequentialExecutor(model=context.model).train_clients([job])
    if result.error is not None:
        raise ValueError(f"the step to attack failed: {result.error}")
    return result.update
