"""What a scenario asks for against what its data hold and its privacy pipeline allows.

Each check raises `ScenarioError` with the place of what cannot be done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fedsim.audits.protocol import CheckedLife
from fedsim.config import ConfigError
from fedsim.data.config import HfData, JsonlData
from fedsim.data.overlap import Overlap, holdout_error
from fedsim.data.records import Corpus
from fedsim.federation.reports import require_told
from fedsim.federation.runtime import ClientRuntime
from fedsim.federation.strategies.registry import STRATEGIES
from fedsim.federation.worst_cases import planned_rounds, planned_work
from fedsim.life.branches import lines_of
from fedsim.life.config import FixedCohort
from fedsim.life.script import Life
from fedsim.life.steps import Branch
from fedsim.measuring.probes import ProbeSet, absent_metrics
from fedsim.metrics.registry import DEFAULT_HEADLINE
from fedsim.model.adapter import AdapterModel
from fedsim.scenario.file import ScenarioError, Source
from fedsim.scenario.scenario import Scenario
from fedsim.training.jobs import TWO_ANSWERS, TWO_LOSSES
from fedsim.unlearning.protocol import MethodConfig, RoundPlan
from fedsim.unlearning.request import Request
from privacy import Pipeline, require, require_individuals


@contextmanager
def blamed_on(source: Source, *key: str | int) -> Iterator[None]:
    """What cannot be used is reported with the place of the key that asked for it, or of one below it."""
    try:
        yield
    except ScenarioError:
        raise
    except (ValueError, OSError) as error:
        below = error.key if isinstance(error, ConfigError) else ()
        raise source.error((*key, *below), str(error)) from error


def check_audits(
    scenario: Scenario, life: Life, runtime: ClientRuntime, model: AdapterModel, source: Source
) -> None:
    """Refuse audits that would fail once the life is over."""
    checked = CheckedLife(life=life, runtime=runtime, model=model)
    for index, audit in enumerate(scenario.audits):
        with blamed_on(source, "audits", index):
            audit.check(checked)


def check_events(scenario: Scenario, source: Source) -> None:
    """Refuse events that change nothing under this scenario's local training."""
    for index, event in enumerate(scenario.timeline):
        with blamed_on(source, "timeline", index):
            event.given().check(scenario.federation.local)


def check_anybody(branches: Sequence[Branch], source: Source) -> None:
    """Refuse a life in whose rounds nobody ever takes part, though somebody is there."""
    kept = branches[0]
    if kept.steps and any(kept.rosters) and not any(step.cohort for step in kept.steps):
        raise source.error(
            ("federation", "participation"),
            f"nobody is drawn in any of {len(kept.steps)} rounds with the first seed, so nothing is trained; "
            "raise it",
        )


def _check_parts_of_steps(scenario: Scenario, pipeline: Pipeline, source: Source) -> None:
    """Refuse to compute steps in parts where example-level DP clips and noises them whole."""
    if scenario.federation.local.micro_batch is not None and pipeline.local_rule() is not None:
        raise source.error(
            ("federation", "local", "micro_batch"),
            "example_dp computes a step as a whole, so it has no parts; leave it out, and lower batch_size "
            "where memory is short",
        )


def check_methods(
    scenario: Scenario, life: Life, branches: Sequence[Branch], runtime: ClientRuntime, source: Source
) -> None:
    """Refuse training and methods that the pipeline does not allow, or the data, in any of their rounds."""
    pipeline = runtime.pipeline
    _check_parts_of_steps(scenario, pipeline, source)
    strategy = scenario.federation.strategy
    for index, method in enumerate(scenario.compare):
        with blamed_on(source, "compare", index):
            planned = list(planned_rounds(method, life))
            each = any(plan.combine == "each" for _, _, plan in planned)
            require(pipeline, method.needs, method=method.branch)
            if each or any(map(method.stores, range(1, life.horizon + 1))):
                require_individuals(pipeline, method=method.branch)
            if each and not strategy.averages:
                raise ValueError(
                    f"{method.branch} moves by a mean of its own, and {strategy.name} by something else; use "
                    f"{', '.join(name for name, one in STRATEGIES.items() if one.averages)}"
                )
            _check_parts(scenario, method, life, branches, pipeline)
            for request, step, plan in planned:
                _check_round(method, step, plan, pipeline)
                _check_retained(method, request, step, plan, runtime)
            if scenario.federation.local.optimizer == "spsa":
                _check_one_loss(method, life)


def _check_parts(
    scenario: Scenario, method: MethodConfig, life: Life, branches: Sequence[Branch], pipeline: Pipeline
) -> None:
    """ValueError for a method that trains in parts of which one is too small to train."""
    lines = lines_of(method, life)
    if lines and method.guards:
        raise ValueError(f"{method.branch} trains in parts and guards its model; a method may do one of both")
    if not all(lines.values()):
        members = len(life.members())
        raise ValueError(
            f"{method.branch} deals {members} clients to {len(lines)} parts, so that some stay empty; use "
            f"{members} parts at most"
        )
    for line, clients in lines.items():
        most = _largest_cohort(scenario, [one for one in branches if one.name == line.keep])
        reason = scenario.federation.strategy.too_few(most)
        if pipeline.min_cohort > most:
            reason = f"a masked round needs min_cohort={pipeline.min_cohort}"
        if reason is not None:
            raise ValueError(
                f"{method.branch} has a part of {len(clients)} clients, {most} in its largest cohort, and "
                f"{reason}; use fewer parts"
            )


def _largest_cohort(scenario: Scenario, branches: Sequence[Branch]) -> int:
    """The most clients that can be sampled for a round of these branches."""
    rule = scenario.federation.participation
    most = max((len(roster) for branch in branches for roster in branch.rosters), default=0)
    return min(most, rule.cohort) if isinstance(rule, FixedCohort) else most


def _check_round(method: MethodConfig, step: int, plan: RoundPlan, pipeline: Pipeline) -> None:
    """ValueError for a round of a method that the pipeline cannot keep private."""
    work = plan.work()
    asked = [method.local(role, step) for role in work]
    if any(one.importance for one in asked) and pipeline.stages:
        names = " and ".join(stage.facts.name for stage in pipeline.stages)
        raise ValueError(
            f"{method.branch} asks for importances, squared gradients, which {names} would shorten, noise or "
            "leave unaccounted like updates; leave one of the two out"
        )
    if pipeline.min_cohort > 1 and "helper" not in work and work:
        raise ValueError(
            f"{method.branch} sends the forgetting client's update alone, and a masked round with one "
            f"contributor reveals it (min_cohort={pipeline.min_cohort}); choose a method whose rounds others "
            "help in, as one with alpha > 0"
        )
    if any(one.tells for one in asked):
        require_told(pipeline, method=method.branch)
    if pipeline.local_rule() is None:
        return
    if any(one.objective.needs.answers == "both" for one in asked):
        raise ValueError(f"{method.branch} cannot be had with example_dp: {TWO_ANSWERS}; leave one out")
    if any(one.retain is not None for one in asked):
        raise ValueError(
            f"{method.branch} cannot be had with example_dp: {TWO_LOSSES}; use retain_on: helpers"
        )


def _check_one_loss(method: MethodConfig, life: Life) -> None:
    """ValueError for a retain term beside the forget loss where training takes no gradients."""
    if any(work.retain is not None for _, work in planned_work(method, life)):
        raise ValueError(
            f"{method.branch} adds two gradients a step, and spsa takes none; use retain_on: helpers, or "
            "adamw or sgd"
        )


def _check_retained(
    method: MethodConfig, request: Request, step: int, plan: RoundPlan, runtime: ClientRuntime
) -> None:
    """ValueError for a retain term on records that nobody has."""
    for term in (method.local(role, step).retain for role in plan.work()):
        if term is None:
            continue
        if term.records == "public" and not runtime.public:
            raise ValueError(
                f"{method.branch} retains on public records that no probe asks about, and there are none; "
                "add some, lower probes.max_public, or use retain_on: helpers"
            )
        held = {record.record_id for record in runtime.records[request.client]}
        if term.records == "own" and held <= set(request.record_ids):
            raise ValueError(
                f"{method.branch} retains on what client {request.client} does not ask to forget, and its "
                f"request {request.number} is for all of it; use retain_on: helpers or public"
            )


def check_strategy(
    scenario: Scenario, branches: Sequence[Branch], pipeline: Pipeline, source: Source
) -> None:
    """Refuse a strategy that combines updates one by one where it cannot have them, or never enough."""
    config = scenario.federation.strategy
    if config.sends and scenario.execution.engine == "deployment":
        raise source.error(
            ("federation", "strategy"),
            f"{config.name} has clients remember vectors from round to round, which a deployment does not "
            "keep yet; use engine: in-process or ray",
        )
    if not config.one_by_one:
        return
    with blamed_on(source, "federation", "strategy"):
        require_individuals(pipeline, method=config.name)
        reason = config.too_few(_largest_cohort(scenario, [one for one in branches if not one.part]))
        if reason is not None:
            raise ValueError(
                f"{reason} in the largest cohort; set its parameters for fewer, or let more take part"
            )


def check_holdout(scenario: Scenario, overlap: Overlap, source: Source) -> None:
    """Refuse a holdout with records that clients of the life train on."""
    reason = holdout_error(overlap)
    if reason is not None:
        key = ("data", "holdout") if isinstance(scenario.data, JsonlData | HfData) else ("data",)
        raise source.error(key, reason)


def check_public(scenario: Scenario, corpus: Corpus, source: Source) -> None:
    """Refuse sizes of public probes that there are not."""
    sizes, there = scenario.probes.max_public, [*corpus.public, *corpus.asked]
    unknown = sorted(sizes.keys() - set(there)) if isinstance(sizes, dict) else []
    if unknown:
        reason = (
            f"there are no public records of this name; those of the data are {', '.join(there) or 'none'}"
        )
        raise source.error(("probes", "max_public", unknown[0]), reason)


def check_headline(scenario: Scenario, probes: ProbeSet, source: Source) -> None:
    """Refuse a headline that no record to be forgotten can have."""
    headline, absent = scenario.probes.headline, absent_metrics(probes)
    if headline in absent:
        raise source.error(
            ("probes", "headline"),
            f"{headline} needs {absent[headline]}, and no record to be forgotten has any; add them to the "
            f"data, or use {DEFAULT_HEADLINE}",
        )


def check_one_life(lives: int, source: Source) -> None:
    """Refuse a deployment with differential privacy that lives more than once.

    A simulation repeats the same noise. Deployed clients draw new noise in every branch, seed and variant,
    each of which is another release of the same data, while a ledger knows its own branch alone.
    """
    if lives > 1:
        raise source.error(
            ("execution", "engine"),
            f"a deployment draws new noise in each of {lives} branches, seeds and variants, and no single "
            "epsilon covers them; leave one of each (a life without forget, compare: [keep]), or use "
            "in-process or ray",
        )
