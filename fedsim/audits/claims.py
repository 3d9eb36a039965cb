"""Plays canaries against a run's privacy claims.

Canary records and canary clients play against its noise, its own loss against its clipping.

Each game has noise of its own, keyed apart from the training's, and a ledger of its own, from which the claim
comes. An audited epsilon above the claimed one means that the noise is not what the ledger says. Not to find
a breach says little where the number that so many canaries could certify at best is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

import numpy as np

from fedsim.audits.kinds.canaries import CanaryAudit
from fedsim.audits.protocol import Row
from fedsim.audits.rules import bare
from fedsim.living.context import LifeContext
from fedsim.living.tasks import life_tasks
from fedsim.model.adapter import isolated_torch_rng
from fedsim.model.text import Pair
from fedsim.rng import stream, torch_stream, uniform
from fedsim.training.jobs import TrainJob
from fedsim.training.sequential import SampleLosses, SequentialExecutor
from privacy import Draw, ExampleDpRule, LocalTask, build_pipeline
from privacy.audit import AuditResult, LossGame, client_game, example_game

MASKED_CLIENTS, MASKED_ROUNDS = 200, 3
"""Most canary clients and rounds under masks, where each pair of neighbours computes."""
BACKGROUND = 8
"""Short records beside the long one in the game about the loss."""


def canary_rows(context: LifeContext, config: CanaryAudit, note: Callable[[str], None]) -> Iterator[Row]:
    """One row a game; none without a stage that claims anything, or where canaries cannot say anything."""
    pipeline = context.engine.runtime.pipeline
    rule = pipeline.local_rule()
    tasks = life_tasks(context)
    if isinstance(rule, ExampleDpRule) and tasks:
        busiest = max(tasks, key=lambda task: (task.planned_steps, -int(task.client)))
        life = _trainings(busiest)
        told = example_game(
            rule,
            life,
            generator=stream(context.seed, "audit", "records"),
            canaries=config.records,
            confidence=config.confidence,
        )
        yield _row(context, "canary records", "example_dp", told)
        yield _row(context, "long record", "example_dp", *_loss_game(context, config, rule, life[0]))
    for fact in pipeline.facts:
        if fact.charges == "client":
            try:
                yield _row(context, "canary clients", fact.name, _client_game(context, config))
            except ValueError as error:
                note(f"{context.variant}: {fact.name} was not audited: {error}")


def _row(
    context: LifeContext, game: str, stage: str, told: AuditResult, sensitivity: float | None = None
) -> Row:
    fields = asdict(told)
    return {
        "variant": context.variant,
        "seed": context.seed,
        "game": game,
        "stage": stage,
        "sensitivity": sensitivity,
        **{name: value.item() if isinstance(value, np.generic) else value for name, value in fields.items()},
    }


def _trainings(task: LocalTask) -> list[LocalTask]:
    """The trainings of a client's whole life, one a round."""
    rounds = max(task.planned_steps // max(task.steps, 1), 1)
    return [replace(task, round_id=round_, branch="audit") for round_ in range(1, rounds + 1)]


def _client_game(context: LifeContext, config: CanaryAudit) -> AuditResult:
    """Canary clients through the stages behind local training.

    Capped and fixed cohorts are played as independent draws at their rate: what is tried is the noise.
    """
    own = context.engine.runtime.pipeline
    masked = own.reveals == "sum"
    canaries = min(config.clients, MASKED_CLIENTS) if masked else config.clients
    rounds = min(context.life.horizon, MASKED_ROUNDS) if masked else context.life.horizon
    draw = max(own.nominal.draws, key=lambda one: one.population, default=Draw())
    rate = draw.size / draw.population if draw.kind == "without_replacement" else draw.rate
    stages = [stage for stage in context.privacy if stage.stage != "example_dp"]
    pipeline = build_pipeline(
        stages,
        nominal=replace(
            own.nominal, dimension=canaries, max_cohort=canaries, max_weight=1.0, metrics=(), draws=(draw,)
        ),
    )

    def cohorts(round_id: int, present: Sequence[str]) -> list[str]:
        return [name for name in present if uniform(context.seed, "audit", "draw", round_id, name) < rate]

    return client_game(
        pipeline,
        cohorts,
        rounds=rounds,
        delta=next(f.delta for f in own.facts if f.charges == "client" and f.delta is not None),
        draw=draw,
        generator=stream(context.seed, "audit", "clients"),
        canaries=canaries,
        confidence=config.confidence,
        bound="accuracy" if draw.kind in ("none", "poisson") else "one_run",
    )


def _loss_game(
    context: LifeContext, config: CanaryAudit, rule: ExampleDpRule, task: LocalTask
) -> tuple[AuditResult, float]:
    """The run's model and loss with a few short records and one long one, which is in by a fair coin."""
    model = context.model
    everybody = [pair for pairs in context.engine.runtime.pairs.values() for pair in pairs]
    by_length = sorted(everybody, key=lambda pair: (len(pair.input_ids), pair.input_ids))
    scene = [*by_length[:BACKGROUND], by_length[-1]]
    model.load(model.fresh(context.seed))
    with isolated_torch_rng(torch_stream(context.seed, "audit", "dropout")), model.training():
        game = LossGame(
            bare(context, rule, int(task.client)),
            model.module,
            SampleLosses(SequentialExecutor(model=model), _job(context, scene)),
            np.arange(len(scene) - 1),
            canary=len(scene) - 1,
        )
        told = game.play(
            generator=stream(context.seed, "audit", "loss"),
            games=config.games,
            confidence=config.confidence,
        )
        return told, game.sensitivity


def _job(context: LifeContext, scene: Sequence[Pair]) -> TrainJob:
    """The scene as one client's records, for the loss by which clients train one at a time."""
    return TrainJob.of_texts(
        {str(position): pair for position, pair in enumerate(scene)},
        adapter=context.model.arrays(),
        local=context.engine.planner.local,
        seed=context.seed,
    )
