"""What ``fedsim list`` and ``fedsim validate`` print."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedsim.assembly.build import load_and_check, make_context, rounds_over_seeds
from fedsim.assembly.estimate import effort_sentence
from fedsim.assembly.memory_plan import memory_sentence, plan_of
from fedsim.assembly.token_facts import token_sentences
from fedsim.audits.registry import AUDITS
from fedsim.data.config import AuthorsData, HfData, JsonlData, MuseData, TofuData
from fedsim.evidence.differencing import differencing_rows, differencing_sentences
from fedsim.evidence.sight import view_sentences
from fedsim.federation.strategies.registry import STRATEGIES
from fedsim.living.context import LifeContext
from fedsim.measuring.probes import absent_sentences
from fedsim.metrics.registry import METRICS
from fedsim.model.arithmetic import slow_sentence
from fedsim.model.starting import rounding_sentence
from fedsim.scenario.file import LoadedScenario, ScenarioError, load_scenario
from fedsim.scenario.variants import Variant
from fedsim.unlearning.registry import METHODS
from privacy import summaries


def describe(loaded: LoadedScenario) -> list[str]:
    """What a scenario would do, after checking it with its data and its base model."""
    simulation = load_and_check(loaded)
    lines = []
    for variant in simulation.loaded.variants:
        dtype = variant.scenario.model.dtype
        context = make_context(simulation, variant, variant.scenario.seeds[0])
        dimension = sum(p.numel() for p in context.model.parameters().values())
        requests = len(context.life.requests)
        lines.append(
            f"{loaded.source.file}: {variant.scenario.name} [{variant.name}] is valid: "
            f"{context.life.horizon} rounds, {requests} forget request{'s' if requests != 1 else ''}, "
            f"{_to_run(variant, context)}, {dimension:,} trained parameters, "
            f"base in {dtype}, device {', '.join(simulation.devices)}"
        )
        lines.extend(f"  {event.round:>5}  {event.text}" for event in context.life.events)
        lines.extend(filled("data", context.holdings.sentences()))
        lines.extend(filled("data", absent_sentences(context.probes)))
        lines.extend(filled("warning", context.holdings.repeated()))
        pairs, longest = context.engine.runtime.pairs, variant.scenario.model.max_tokens
        lines.extend(filled("tokens", token_sentences(pairs, context.model, longest, context.holdings.names)))
        lost = sum(probe.left_out for _, _, probe in context.probes.named())
        if lost:
            said = f"{lost} wrong answers are the right one once cut at model.max_tokens={longest}; left out."
            lines.extend(filled("tokens", [said]))
        rounding = rounding_sentence(context.model.init, dtype)
        lines.extend(filled("model", [rounding] if rounding else []))
        plan = plan_of(simulation, context, variant)
        lines.extend(filled("memory", [memory_sentence(plan, context, variant)]))
        lines.extend(filled("effort", [effort_sentence(context, seeds=len(variant.scenario.seeds))]))
        slow = slow_sentence(dtype, context.model.device)
        lines.extend(filled("effort", [slow] if slow else []))
        lines.extend(filled("privacy", view_sentences(context)))
        rows = differencing_rows(context)
        lines.extend(filled("warning", differencing_sentences(rows)))
    return lines


def _to_run(variant: Variant, context: LifeContext) -> str:
    seeds = len(variant.scenario.seeds)
    if seeds == 1:
        return f"{context.rounds()} rounds to run over all branches"
    return f"{rounds_over_seeds(variant, context.model)} rounds to run over all branches and {seeds} seeds"


def filled(title: str, sentences: Iterable[str]) -> Iterator[str]:
    """Sentences under a title, in lines that fit a terminal."""
    for sentence in sentences:
        yield textwrap.fill(sentence, 100, initial_indent=f"  {title}: ", subsequent_indent=" " * 11)


def catalogue() -> dict[str, list[tuple[str, str]]]:
    """All that scenarios can name, with a line on each."""
    scenarios = []
    for path in sorted(Path("scenarios").glob("*.yaml")):
        try:
            scenarios.append((str(path), load_scenario(path).scenario.description.strip().split("\n")[0]))
        except ScenarioError as error:
            scenarios.append((str(path), f"(not valid: {str(error).splitlines()[0]})"))
    sources = {
        "authors": AuthorsData,
        "tofu": TofuData,
        "muse": MuseData,
        "jsonl": JsonlData,
        "hf": HfData,
    }
    return {
        "Scenarios": scenarios,
        "Methods": [(name, method.summary) for name, method in METHODS.items()],
        "Privacy stages": list(summaries().items()),
        "Strategies": [(name, cls.summary) for name, cls in STRATEGIES.items()],
        "Audits": [(name, audit.summary) for name, audit in AUDITS.items()],
        "Metrics": [(name, metric.summary) for name, metric in METRICS.items()],
        "Data sources": [
            (name, (cls.__doc__ or "").strip().splitlines()[0]) for name, cls in sources.items()
        ],
    }
