"""The plan of memory of one life: its model, its clients' steps, and the device they are on."""

from __future__ import annotations

from fedsim.assembly.simulation import CheckedScenario
from fedsim.config import ConfigError
from fedsim.federation.worst_cases import most_texts
from fedsim.living.context import LifeContext
from fedsim.model.config import ModelConfig
from fedsim.model.quantising import base_bytes
from fedsim.model.skeleton import shape_of, skeleton_of
from fedsim.scenario.scenario import Scenario
from fedsim.scenario.variants import Variant
from fedsim.training.cohorts import CohortLimit, tokens_per_step
from fedsim.training.kept import by_sizes
from fedsim.training.memory import SAFE, USABLE, Plan, Sizes, gigabytes, workers_on
from fedsim.training.sequential import SequentialExecutor
from fedsim.training.tuning import device_memory


def plan_of(
    simulation: CheckedScenario, context: LifeContext, variant: Variant, sizes: Sizes | None = None
) -> Plan:
    """What the first device is to hold while the clients of a life train."""
    local, runtime = variant.scenario.federation.local, context.engine.runtime
    tokens = max(tokens_per_step(pairs, local.at_once) for pairs in runtime.pairs.values())
    alone = isinstance(runtime.executor, SequentialExecutor)
    device = simulation.devices[0]
    return planned(
        variant.scenario,
        sizes or Sizes.of(context.model),
        CohortLimit(clients=1, tokens=1) if alone else simulation.limit(variant.name, context.model),
        memory=device_memory(device),
        context=context,
        tokens_each=tokens,
        workers=1 if alone else workers_on(device),
    )


def planned(
    scenario: Scenario,
    sizes: Sizes,
    limit: CohortLimit,
    *,
    memory: int,
    context: LifeContext,
    tokens_each: int,
    workers: int = 1,
) -> Plan:
    """A plan for a life's most clients a round over all branches, in cohorts by a limit.

    ``tokens_each`` are those of a client's own answers in a part of a step; losses that compare two answers
    take twice as many.
    """
    local, asked = scenario.federation.local, scenario.execution.cohort
    clients = context.most_at_once
    workers = max(1, min(workers, clients))
    tokens_each *= most_texts(context.methods, context.life)
    return Plan(
        sizes=sizes,
        memory=memory,
        clients=max(1, min(limit.room(tokens_each), -(-clients // workers))),
        tokens_each=tokens_each,
        records=local.at_once,
        workers=workers,
        asked=None if asked == "auto" else asked,
        in_parts=context.engine.runtime.pipeline.local_rule() is None,
    )


def check_memory(simulation: CheckedScenario, context: LifeContext, variant: Variant) -> None:
    """Refuse a life that the first device cannot hold; nothing is counted where it holds far more."""
    rough = Sizes.of(context.model, kept=by_sizes(context.model))
    if not plan_of(simulation, context, variant, rough).fits_times(SAFE):
        check_plan(plan_of(simulation, context, variant), variant)


def check_plan(plan: Plan, variant: Variant) -> None:
    """Refuse a plan that does not fit, with the nearest that does."""
    refused = plan.why_not()
    if refused is not None:
        message, key = refused
        raise variant.source.error(key, message)


def memory_sentence(plan: Plan, context: LifeContext, variant: Variant) -> str:
    """The plan in words, with what the adapters of everybody else take on the host."""
    sends = len(variant.scenario.federation.strategy.sends)
    vectors = context.largest_cohort * (1 + sends) + sends * len(context.engine.runtime.pairs)
    host = 4 * plan.sizes.dimension * vectors
    return f"{plan.sentence()}; updates of a round on the host {gigabytes(host)}."


def check_base_fits(config: ModelConfig, device: str) -> None:
    """Refuse a base whose weights alone do not fit on a GPU, before they are loaded.

    Raises:
        ConfigError: it does not fit; names the nearest that does.
    """
    shape = shape_of(config) if device.startswith("cuda") else None
    if shape is None:
        return
    module, memory = skeleton_of(shape, config).module, device_memory(device)
    needed = base_bytes(module, config.quantize)
    if needed <= USABLE * memory:
        return
    coarse = config.quantize is None and base_bytes(module, "4bit") <= USABLE * memory
    raise ConfigError(
        f"its weights take {gigabytes(needed)}, and {device} has {gigabytes(memory)}; use "
        + ("model.quantize: 4bit, or a smaller base" if coarse else "a smaller base"),
        "base",
    )
