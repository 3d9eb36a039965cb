"""A run from its scenario to its tables: claims the run directory, goes through every life, concludes.

A run that was killed goes on in its own directory, with the choices it wrote down when it began.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fedsim.app.conclusions import conclude
from fedsim.assembly.build import load_and_check, make_context
from fedsim.assembly.checks import blamed_on
from fedsim.assembly.estimate import measured_threads
from fedsim.assembly.memory_plan import memory_sentence, plan_of
from fedsim.assembly.simulation import CheckedScenario, Connect, in_process
from fedsim.living.context import LifeContext
from fedsim.living.runner import LifeRunner, assemble
from fedsim.scenario.file import LoadedScenario, ScenarioError, anchored, dump_scenario, load_scenario
from fedsim.scenario.scenario import Scenario
from fedsim.storage.directory import RunDirectory
from fedsim.storage.manifest import seal
from fedsim.storage.progress import Progress
from fedsim.storage.provenance import provenance
from fedsim.storage.whole import whole_file
from fedsim.storage.writer import only_writer
from fedsim.training.cohorts import CohortLimit
from fedsim.training.devices import resolve_devices
from fedsim.training.sequential import SequentialExecutor
from fedsim.training.tuning import keep_freed_memory

RESULTS = (
    *("metrics.parquet", "items.parquet", "answers.parquet", "trajectories.parquet", "costs.parquet"),
    *("life.json", "data.json", "ledger.json", "privacy.json", "audits.json", "verdict.json"),
)
"""What a finished run's manifest vouches for."""


def prepare(loaded: LoadedScenario, directory: RunDirectory) -> CheckedScenario:
    """Check a scenario as a whole and claim its run directory.

    Raises:
        ScenarioError: something cannot be used, or the directory holds another run; nothing is changed.
    """
    simulation = load_and_check(loaded)
    _claim(simulation.loaded, directory)
    return _as_before(simulation, directory)


def reopen(directory: RunDirectory, connect: Connect = in_process) -> CheckedScenario:
    """The simulation of an existing run directory, from its own resolved scenario."""
    file = directory.file("scenario.yaml")
    if not file.exists():
        raise ScenarioError(
            f"{directory.path}: no run here (scenario.yaml is missing); start one with fedsim run"
        )
    loaded = load_scenario(file)
    _refuse_edited(loaded, directory)
    return _as_before(load_and_check(loaded, connect), directory)


def _refuse_edited(loaded: LoadedScenario, directory: RunDirectory) -> None:
    """Refuse a scenario.yaml that is not the one by which the run has lived so far."""
    if not directory.file("scenario.json").exists():
        return
    changed = _differing(directory.json("scenario"), loaded.scenario.model_dump(mode="json"))
    if changed:
        raise ScenarioError(
            f"{directory.file('scenario.yaml')}: was changed since the run began, at {_named(changed)}; put "
            "back what was there, or run the changed scenario with another --out"
        )


def _differing(before: Any, now: Any, place: str = "") -> list[str]:
    """Dotted keys at which two plain values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(set(before) | set(now))
        places = [(key, f"{place}.{key}" if place else str(key)) for key in keys]
        return [one for key, at in places for one in _differing(before.get(key), now.get(key), at)]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [one for index, (old, new) in pairs for one in _differing(old, new, f"{place}[{index}]")]
    return [] if before == now else [place]


def _named(keys: list[str]) -> str:
    """A few keys by name, the others by number."""
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return ", ".join(keys[:5]) + more


def _as_before(simulation: CheckedScenario, directory: RunDirectory) -> CheckedScenario:
    """With the choices that were written down when the run began, if it did."""
    if not directory.file("provenance.json").exists():
        return simulation
    resolved = directory.json("provenance")["resolved"]
    if set(resolved) != {"devices", "threads", "cohort"}:
        raise ScenarioError(
            f"{directory.path}: was begun by another version of fedsim, which made other choices; nothing "
            "was changed. Choose another directory with --out"
        )
    with blamed_on(simulation.loaded.source, "execution", "device"):
        devices = tuple(name for device in resolved["devices"] for name in resolve_devices(device))
    return replace(
        simulation,
        devices=devices,
        threads=resolved["threads"],
        limits={name: CohortLimit(**limit) for name, limit in resolved["cohort"].items()},
    )


def _claim(loaded: LoadedScenario, directory: RunDirectory) -> None:
    """Take an empty directory, or go on with the same scenario; refuse anything else."""
    scenario = anchored(loaded.scenario)
    text = dump_scenario(scenario)
    file = directory.file("scenario.yaml")
    if file.exists():
        if file.read_text() != text:
            what = _what(scenario, file)
            raise ScenarioError(
                f"{directory.path}: holds a run of another scenario or other settings{what}; "
                "nothing was changed. Choose another directory with --out, or delete this one"
            )
    elif directory.path.exists() and any(not p.name.startswith(".") for p in directory.path.iterdir()):
        raise ScenarioError(
            f"{directory.path}: exists and is not a run directory; nothing was changed. "
            "Choose another with --out"
        )
    else:
        try:
            with whole_file(file) as temporary:
                temporary.write_text(text)
        except OSError as error:
            raise ScenarioError(
                f"{directory.path}: cannot be written ({error.strerror}); choose another directory with --out"
            ) from error
        directory.write_json("scenario", scenario.model_dump(mode="json"))


def _what(scenario: Scenario, file: Path) -> str:
    """Which settings of a run's own scenario differ, as far as it can be read."""
    try:
        own = load_scenario(file).scenario.model_dump(mode="json")
    except ValueError:
        return ""
    changed = _differing(own, scenario.model_dump(mode="json"))
    return f" (different: {_named(changed)})" if changed else ""


def execute(simulation: CheckedScenario, directory: RunDirectory, progress: Progress) -> None:
    """Run every life to its end on the scenario's engine; a finished run is left as it is.

    Raises:
        ScenarioError: another process is writing this run, or it cannot be resumed.
    """
    if directory.file("verdict.json").exists():
        progress.note(f"{directory.path} holds this run, finished; delete the folder to run it again")
        return
    with only_writer(directory.path):
        _execute(simulation, directory, progress)


def _execute(simulation: CheckedScenario, directory: RunDirectory, progress: Progress) -> None:
    engine = simulation.loaded.scenario.execution.engine
    if engine == "ray":
        from fedsim.engines.simulation import run_on_ray

        run_on_ray(simulation, lambda connected: live(connected, directory, progress))
    elif engine == "deployment":
        if simulation.private and _begun(directory):
            raise ScenarioError(
                f"{directory.path}: a deployment with differential privacy cannot be resumed: noise drawn "
                "after the last checkpoint may already have been released without being in any ledger. "
                "Nothing was changed; start anew with --out"
            )
        from fedsim.engines.deployment import run_deployed

        run_deployed(simulation, directory, progress)
    else:
        live(simulation, directory, progress)


def _refuse_other_data(directory: RunDirectory, lives: Sequence[dict[str, Any]]) -> None:
    """Refuse to go on with records or a base other than those that the run has lived with so far."""
    if not _begun(directory) or not directory.file("data.json").exists():
        return
    before = {
        (life["variant"], life["seed"]): life.get("digests") for life in directory.json("data")["lives"]
    }
    for life in lives:
        known = before.get((life["variant"], life["seed"]))
        changed = [name for name in life["digests"] if known and known.get(name) != life["digests"][name]]
        if changed:
            raise ScenarioError(
                f"{directory.path}: {' and '.join(changed)} changed since the run began; put back what was "
                "there, or run the scenario with another --out"
            )


def _begun(directory: RunDirectory) -> bool:
    return any(event["kind"] == "started" for event in directory.events())


def live(simulation: CheckedScenario, directory: RunDirectory, progress: Progress) -> None:
    """Run every life to its end, with clients where the simulation reaches them, and write the tables."""
    keep_freed_memory()
    contexts = [
        make_context(simulation, variant, seed)
        for variant in simulation.loaded.variants
        for seed in variant.scenario.seeds
    ]
    threads = simulation.threads or measured_threads(contexts[0])
    torch.set_num_threads(threads)
    scenario = simulation.loaded.scenario
    if not directory.file("provenance.json").exists():
        limits = {c.variant: asdict(simulation.limit(c.variant, c.model)) for c in contexts}
        resolved = {"devices": simulation.devices, "threads": threads, "cohort": limits}
        directory.write_json("provenance", provenance(seeds=scenario.seeds, resolved=resolved))
    lives = [
        {
            "variant": c.variant,
            "seed": c.seed,
            **c.holdings.row(),
            "digests": {"the data": c.holdings.digest, "the base": c.model.digest},
        }
        for c in contexts
    ]
    _refuse_other_data(directory, lives)
    directory.write_json("data", {"lives": lives})
    resumed = _begun(directory)
    directory.log("resumed" if resumed else "started", time=_now())
    _say_what_is_not_batched(contexts, progress)
    _say_what_it_takes(simulation, contexts, progress)
    progress.start(sum(context.rounds() for context in contexts))
    runners = [LifeRunner(context, directory, progress) for context in contexts]
    for runner in runners:
        runner.run()
    assemble(runners, directory)
    conclude(scenario, simulation.loaded.variants, runners, directory, progress)
    seal(directory.path, RESULTS)
    directory.log("finished", time=_now())


def nobody_contributed(directory: RunDirectory) -> bool:
    """Whether all rounds of a finished run were empty, so that it says nothing of training."""
    kinds = directory.table("costs").column("kind").to_pylist()
    return bool(kinds) and all(kind == "empty" for kind in kinds)


def _say_what_is_not_batched(contexts: Sequence[LifeContext], progress: Progress) -> None:
    """Clients that train one at a time although they were to train together, and why; once a variant."""
    reasons = {}
    for context in contexts:
        executor = context.engine.runtime.executor
        if isinstance(executor, SequentialExecutor) and executor.why_alone is not None:
            reasons[context.variant] = executor.why_alone
    several = len({context.variant for context in contexts}) > 1
    for variant, reason in reasons.items():
        progress.note(f"{f'{variant}: ' if several else ''}clients train one at a time: {reason}")


def _say_what_it_takes(
    simulation: CheckedScenario, contexts: Sequence[LifeContext], progress: Progress
) -> None:
    """The plan of memory, on a GPU; once a variant."""
    if not simulation.devices[0].startswith("cuda"):
        return
    first = {context.variant: context for context in reversed(contexts)}
    for variant in simulation.loaded.variants:
        context = first[variant.name]
        said = memory_sentence(plan_of(simulation, context, variant), context, variant)
        progress.note(f"memory: {said}")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
