"""A run from its scenario to its tables: claims the run directory, goes through every life, concludes.

A run that was killed goes on in its own directory, with the choices it wrote down when it began.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from fedsim.build import (
    Connect,
    Simulation,
    check,
    in_process,
    make_context,
    resolve_devices,
)
from fedsim.checks import blamed_on
from fedsim.conclusions import conclude
from fedsim.planning import CohortLimit
from fedsim.progress import Progress
from fedsim.provenance import provenance
from fedsim.results import RunDirectory, whole_file
from fedsim.scenario_file import LoadedScenario, ScenarioError, dump_scenario, load_scenario
from fedsim.simulation import LifeContext, LifeRunner, assemble
from fedsim.training import SequentialExecutor
from fedsim.trials import trial_jobs
from fedsim.tuning import fastest_threads, keep_freed_memory

TRIAL_CLIENTS = 16
"""Clients whose joint step is timed to choose the number of threads."""


def prepare(loaded: LoadedScenario, directory: RunDirectory) -> Simulation:
    """Check a scenario as a whole and claim its run directory.

    Raises:
        ScenarioError: something cannot be used, or the directory holds another run; nothing is changed.
    """
    simulation = check(loaded)
    _claim(loaded, directory)
    return _as_before(simulation, directory)


def reopen(directory: RunDirectory, connect: Connect = in_process) -> Simulation:
    """The simulation of an existing run directory, from its own resolved scenario."""
    file = directory.file("scenario.yaml")
    if not file.exists():
        raise ScenarioError(
            f"{directory.path}: no run here (scenario.yaml is missing); start one with fedsim run"
        )
    return _as_before(check(load_scenario(file), connect), directory)


def _as_before(simulation: Simulation, directory: RunDirectory) -> Simulation:
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
    text = dump_scenario(loaded.scenario)
    file = directory.file("scenario.yaml")
    if file.exists():
        if file.read_text() != text:
            raise ScenarioError(
                f"{directory.path}: holds a run of another scenario or other settings; nothing was "
                f"changed. Choose another directory with --out, or delete this one"
            )
    elif directory.path.exists() and any(not p.name.startswith(".") for p in directory.path.iterdir()):
        raise ScenarioError(
            f"{directory.path}: exists and is not a run directory; nothing was changed. "
            "Choose another with --out"
        )
    else:
        with whole_file(file) as temporary:
            temporary.write_text(text)


def execute(simulation: Simulation, directory: RunDirectory, progress: Progress) -> None:
    """Run every life to its end on the scenario's engine; a finished run is left as it is."""
    if directory.file("verdict.json").exists():
        progress.note(f"{directory.path} holds this run, finished; delete the folder to run it again")
        return
    engine = simulation.loaded.scenario.execution.engine
    if engine == "ray":
        from fedsim.engines.simulation import run_on_ray

        run_on_ray(simulation, lambda connected: live(connected, directory, progress))
    elif engine == "deployment":
        if simulation.private and _begun(directory):
            raise ScenarioError(
                f"{directory.path}: a deployment with differential privacy cannot be resumed: noise of "
                "rounds after the last checkpoint may be out, and in no ledger. Nothing was changed; start "
                "anew with --out"
            )
        from fedsim.engines.deployment import run_deployed

        run_deployed(simulation, directory, progress)
    else:
        live(simulation, directory, progress)


def _begun(directory: RunDirectory) -> bool:
    return any(event["kind"] == "started" for event in directory.events())


def live(simulation: Simulation, directory: RunDirectory, progress: Progress) -> None:
    """Run every life to its end, with clients where the simulation reaches them, and write the tables."""
    keep_freed_memory()
    contexts = [
        make_context(simulation, variant, seed)
        for variant in simulation.loaded.variants
        for seed in variant.scenario.seeds
    ]
    threads = simulation.threads or _measured_threads(contexts[0])
    torch.set_num_threads(threads)
    scenario = simulation.loaded.scenario
    if not directory.file("provenance.json").exists():
        limits = {c.variant: asdict(simulation.limit(c.variant, c.model)) for c in contexts}
        resolved = {"devices": simulation.devices, "threads": threads, "cohort": limits}
        directory.write_json("provenance", provenance(seeds=scenario.seeds, resolved=resolved))
    lives = [{"variant": c.variant, "seed": c.seed, **c.holdings.row()} for c in contexts]
    directory.write_json("data", {"lives": lives})
    resumed = _begun(directory)
    directory.log("resumed" if resumed else "started", time=_now())
    _say_what_is_not_batched(contexts, progress)
    progress.start(sum(context.rounds() for context in contexts))
    runners = [LifeRunner(context, directory, progress) for context in contexts]
    for runner in runners:
        runner.run()
    assemble(runners, directory)
    conclude(scenario, simulation.loaded.variants, runners, directory, progress)
    directory.log("finished", time=_now())


def nobody_contributed(directory: RunDirectory) -> bool:
    """Whether all rounds of a finished run were empty, so that it says nothing of training."""
    kinds = directory.table("costs").column("kind").to_pylist()
    return bool(kinds) and all(kind == "empty" for kind in kinds)


def _measured_threads(context: LifeContext) -> int:
    """The fastest number of threads for a joint step of this life's clients; one beside a GPU."""
    if context.model.device != "cpu":
        return 1
    runtime, local = context.engine.runtime, context.scenario.federation.local
    adapter = context.model.fresh(context.seed)
    jobs = trial_jobs(runtime, adapter, local, clients=TRIAL_CLIENTS, private=False)
    return fastest_threads(lambda: runtime.executor.train_clients(jobs))


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


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
