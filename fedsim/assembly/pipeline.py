"""The privacy pipeline of a life, sized for the worst that the life may ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from fedsim.data.records import Corpus
from fedsim.federation.reports import TOLD, may_be_told
from fedsim.federation.worst_cases import draws_of, has_losses_told, most_invitations, planned_weights
from fedsim.life.script import Life
from fedsim.life.steps import Branch
from fedsim.scenario.scenario import Scenario
from fedsim.training.jobs import NO_GRADIENTS
from privacy import Nominal, Pipeline, build_pipeline


def make_pipeline(
    scenario: Scenario,
    corpus: Corpus,
    life: Life,
    branches: Sequence[Branch],
    *,
    dimension: int | None,
    session: str,
    max_update_norm: float | None = None,
) -> Pipeline:
    """The privacy pipeline, checked against the worst cases of this scenario."""
    uniform = scenario.federation.weighting == "uniform"
    most = 1 if uniform else max(len(held) for held in corpus.clients.values())
    nominal = Nominal(
        max_cohort=len(corpus.clients),
        max_weight=max([float(most), *map(abs, planned_weights(scenario.compare, life))]),
        dimension=dimension,
        session=session,
        rounds=life.horizon,
        draws=draws_of(scenario.federation.participation, branches),
        cohort_known=scenario.execution.engine == "deployment",
        invitations=most_invitations(scenario.compare, life),
        max_update_norm=max_update_norm,
    )
    build = partial(build_pipeline, scenario.privacy, weighting=scenario.federation.weighting)
    pipeline = build(nominal=nominal)
    if has_losses_told(scenario.compare, life) and may_be_told(pipeline):
        pipeline = build(nominal=replace(nominal, metrics=(TOLD,)))
    if scenario.federation.local.optimizer == "spsa" and pipeline.local_rule() is not None:
        raise ValueError(NO_GRADIENTS)
    return pipeline
