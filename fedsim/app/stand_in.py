"""What ``fedsim validate --stand-in`` prints: a life checked without its base and data, and their plan."""

from __future__ import annotations

from fedsim.app.catalogue import filled
from fedsim.assembly.build import load_and_check, make_context
from fedsim.assembly.memory_plan import check_plan
from fedsim.assembly.stand_in import BASE, bytes_of, plan_for, stood_in
from fedsim.scenario.file import LoadedScenario


def describe_stand_in(loaded: LoadedScenario, memory: str) -> list[str]:
    """What a scenario would do, and whether a GPU of so much memory holds it.

    Raises:
        ScenarioError: something cannot be used, or the plan does not fit.
    """
    size = bytes_of(memory)
    simulation = load_and_check(stood_in(loaded))
    lines = []
    contexts = {v.name: make_context(simulation, v, v.scenario.seeds[0]) for v in simulation.loaded.variants}
    first = next(iter(contexts.values()))
    for variant in loaded.variants:
        context = contexts.get(variant.name, first)
        plan = plan_for(variant, context, size)
        check_plan(plan, variant)
        lines.append(
            f"{loaded.source.file}: {variant.scenario.name} [{variant.name}] is valid with stand-ins: "
            f"{context.life.horizon} rounds, {context.rounds()} to run over all branches, "
            f"{plan.sizes.dimension:,} trained parameters"
        )
        lines.extend(f"  {event.round:>5}  {event.text}" for event in context.life.events)
        checks = variant.scenario.model.base, BASE, variant.scenario.data.source
        said = (
            "Checked with the base {1} for {0} and embedded authors for data of source {2}: not checked are "
            "the base itself, its tokenizer and chat template, the data, and whatever runs on a GPU alone."
        )
        lines.extend(filled("stand-in", [said.format(*checks)]))
        lines.extend(filled("memory", [f"{plan.sentence()}, with every text as long as may be."]))
    return lines
