"""Composition root: configuration in, objects out; the only module that knows concrete classes.

``prepare`` checks everything that can be wrong (data, base model, life, privacy pipeline, what methods
need against what the pipeline shows) before the run directory is touched.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedsim.client import ClientRuntime, make_client_app
from fedsim.data.authors import load_authors
from fedsim.data.jsonl import load_jsonl
from fedsim.data.partition import dirichlet, iid
from fedsim.data.records import Corpus
from fedsim.data.tofu import load_tofu
from fedsim.evidence import (
    LifeTables,
    forget_quality_rows,
    informative_rows,
    trajectories,
    trust_rows,
    verdict_rows,
)
from fedsim.federation import STRATEGIES, Federation, make_strategy
from fedsim.grid import InProcessGrid
from fedsim.life import Life, read_life
from fedsim.measure import build_probes
from fedsim.model import AdapterModel, load_model
from fedsim.orders import Planner
from fedsim.progress import Progress
from fedsim.provenance import provenance
from fedsim.results import RunDirectory, whole_file
from fedsim.rounds import Engine
from fedsim.scenario import AuthorsData, DataChoice, JsonlData, Scenario, TofuData
from fedsim.scenario_file import (
    LoadedScenario,
    ScenarioError,
    Source,
    Variant,
    dump_scenario,
    load_scenario,
)
from fedsim.simulation import LifeContext, LifeRunner, assemble
from fedsim.text import TextFormat, encode_pair
from fedsim.timeline import Branch, Participation, build_tree, probe_rounds, replay_from, unroll
from fedsim.training import SequentialExecutor, planned_steps
from fedsim.unlearning.protocol import MethodConfig, Objective, Role
from fedsim.unlearning.registry import METHODS
from privacy import Nominal, Pipeline, build_pipeline, honest_server, require, summaries

PARAMETERS_PER_THREAD = 4_000_000
"""A smaller base gains nothing from another thread; a rule, not a measurement, so that reruns agree."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A checked scenario with everything loaded that does not depend on the seed."""

    loaded: LoadedScenario
    device: str
    threads: int


# ----------------------------------------------------------------------------------- pieces


def load_corpus(data: DataChoice, *, seed: int) -> Corpus:
    """The records of a scenario; ValueError says which file, line or value cannot be used."""
    if isinstance(data, TofuData):
        return load_tofu(path=data.path, hub=data.hub)
    if isinstance(data, JsonlData):
        return load_jsonl(
            data.path,
            client_column=data.client_column,
            question_column=data.question_column,
            answer_column=data.answer_column,
            holdout=data.holdout,
            public=data.public,
        )
    assert isinstance(data, AuthorsData)
    corpus = load_authors(
        clients=data.clients,
        authors_per_client=data.authors_per_client,
        holdout_authors=data.holdout_authors,
        public_authors=data.public_authors,
    )
    if data.partition == "by-author":
        return corpus
    every = [record for held in corpus.clients.values() for record in held]
    if data.partition == "iid":
        return replace(corpus, clients=iid(every, clients=data.clients, seed=seed))
    parts = dirichlet(every, clients=data.clients, alpha=data.dirichlet_alpha, seed=seed)
    return replace(corpus, clients=parts)


def make_pipeline(scenario: Scenario, corpus: Corpus, *, dimension: int | None, session: str) -> Pipeline:
    """The privacy pipeline, checked against the worst cases of this scenario."""
    most = max(len(held) for held in corpus.clients.values())
    uniform = scenario.federation.weighting == "uniform"
    nominal = Nominal(
        max_cohort=len(corpus.clients),
        max_weight=1.0 if uniform else float(most),
        dimension=dimension,
        session=session,
    )
    return build_pipeline(scenario.privacy, nominal=nominal, weighting=scenario.federation.weighting)


def resolve_device(device: str) -> str:
    """``auto`` becomes the first GPU, or the CPU."""
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ScenarioError(f"execution.device={device!r}: no GPU is visible here; use auto or cpu")
    try:
        torch.device(device)
    except RuntimeError:
        raise ScenarioError(
            f"execution.device={device!r} is not a device; use auto, cpu, cuda or cuda:0"
        ) from None
    return device


def make_objective(settings: str, role: Role) -> Objective:
    """The local loss of a role under a method that travelled as JSON."""
    data = json.loads(settings)
    return METHODS[data["method"]].model_validate(data).objective(role)


def _record_ids(corpus: Corpus) -> dict[int, tuple[str, ...]]:
    return {client: tuple(record.record_id for record in held) for client, held in corpus.clients.items()}


def _unrolled(scenario: Scenario, life: Life, corpus: Corpus, seed: int) -> tuple[Branch, ...]:
    participation = Participation(seed=seed, rule=scenario.federation.participation)
    return unroll(life, _record_ids(corpus), participation, scenario.compare)


def _check_methods(scenario: Scenario, life: Life, pipeline: Pipeline, source: Source) -> None:
    """Refuse methods that need more than the pipeline lets a server see or add up."""
    for index, method in enumerate(scenario.compare):
        try:
            require(pipeline, method.needs, method=method.branch)
        except ValueError as error:
            raise source.error(("compare", index), str(error)) from None
        if method.unlearning_rounds and life.requests:
            plan = method.plan(life.requests[0], 0)
            if plan.helper is None and pipeline.min_cohort > 1:
                raise source.error(
                    ("compare", index),
                    f"{method.branch} sends the forgetting client's update alone, and a masked round with "
                    f"one contributor reveals it (min_cohort={pipeline.min_cohort}); set alpha > 0 so that the "
                    "others take part",
                )


def _planned_steps(branches: tuple[Branch, ...], scenario: Scenario, corpus: Corpus) -> dict[int, int]:
    """The most local steps each client takes in any branch by ordinary rounds: what noise is calibrated for.

    Unlearning rounds of the forgetting client draw on the same budget.
    """
    local = scenario.federation.local
    steps_of = {client: planned_steps(len(held), local) for client, held in corpus.clients.items()}
    most: dict[int, int] = {}
    for branch in branches:
        taken = Counter(participant.client for step in branch.steps for participant in step.cohort)
        for client, rounds in taken.items():
            most[client] = max(most.get(client, 0), rounds * steps_of[client])
    return most


# ---------------------------------------------------------------------------------- contexts


def make_context(simulation: Simulation, variant: Variant, seed: int) -> LifeContext:
    """Everything one variant and seed needs; loads data and base model."""
    scenario, source = variant.scenario, simulation.loaded.source
    corpus = load_corpus(scenario.data, seed=seed)
    life = read_life(scenario, _record_ids(corpus), seed=seed, source=source)
    model = load_model(scenario.model, seed=seed, device=simulation.device)
    fmt = TextFormat(prompt=scenario.model.prompt, max_tokens=scenario.model.max_tokens)
    branches = _unrolled(scenario, life, corpus, seed)
    dimension = sum(parameter.numel() for parameter in model.parameters().values())
    pipeline = make_pipeline(scenario, corpus, dimension=dimension, session=f"{scenario.name}/{seed}")
    _check_methods(scenario, life, pipeline, source)
    engine = _engine(scenario, corpus, life, model, fmt, branches, pipeline, seed)
    tree = build_tree(branches)
    return LifeContext(
        variant=variant.name,
        seed=seed,
        scenario=scenario,
        life=life,
        tree=tree,
        probe_rounds=probe_rounds(branches, life, scenario.probes.every),
        replay_from=replay_from(branches, life),
        engine=engine,
        model=model,
        initial=model.arrays(),
        probes=build_probes(model.tokenizer, corpus, life, scenario.probes, fmt, seed=seed),
        make_strategy=lambda: make_strategy(scenario.federation.strategy),
        epsilon=_epsilon(scenario),
    )


def _engine(
    scenario: Scenario,
    corpus: Corpus,
    life: Life,
    model: AdapterModel,
    fmt: TextFormat,
    branches: tuple[Branch, ...],
    pipeline: Pipeline,
    seed: int,
) -> Engine:
    pairs = {
        client: tuple(encode_pair(model.tokenizer, r.question, r.answer, fmt, fact=r.fact) for r in held)
        for client, held in corpus.clients.items()
    }
    runtime = ClientRuntime(
        executor=SequentialExecutor(model=model),
        records=corpus.clients,
        pairs=pairs,
        pipeline=pipeline,
        objective=make_objective,
    )
    strategy = scenario.federation.strategy
    planner = Planner(
        seed=seed,
        local=scenario.federation.local,
        methods={method.branch: method for method in scenario.compare},
        requests={request.number: request for request in life.requests},
        proximal_mu=strategy.proximal_mu if strategy.name == "fedprox" else 0.0,
        planned_steps=_planned_steps(branches, scenario, corpus),
    )
    return Engine(grid=InProcessGrid(make_client_app(runtime)), runtime=runtime, planner=planner)


def _epsilon(scenario: Scenario) -> Callable[[Federation], Mapping[int, float]]:
    """How to read each client's spent epsilon (per record, at the stage's delta) off a federation."""
    deltas = [stage.delta for stage in scenario.privacy if stage.stage == "example_dp"]
    if not deltas:
        return lambda federation: {}

    def spent(federation: Federation) -> dict[int, float]:
        clients = sorted({int(release.client) for release in federation.ledger.releases()})
        ledger = federation.ledger
        return {c: ledger.epsilon(str(c), unit="example", delta=deltas[0]) for c in clients}

    return spent


# ------------------------------------------------------------------------------ entry points


def prepare(loaded: LoadedScenario, directory: RunDirectory) -> Simulation:
    """Check a scenario as a whole and claim its run directory.

    Raises:
        ScenarioError: something cannot be used, or the directory holds another run; nothing is changed.
    """
    simulation = _checked(loaded)
    _claim(loaded, directory)
    return simulation


def reopen(directory: RunDirectory) -> Simulation:
    """The simulation of an existing run directory, from its own resolved scenario."""
    file = directory.file("scenario.yaml")
    if not file.exists():
        raise ScenarioError(
            f"{directory.path}: no run here (scenario.yaml is missing); start one with fedsim run"
        )
    loaded = load_scenario(file)
    simulation = _checked(loaded)
    resolved = directory.json("provenance")["resolved"]
    return replace(simulation, device=resolved["device"], threads=resolved["threads"])


def _checked(loaded: LoadedScenario) -> Simulation:
    """Load and check everything once, for every variant's first seed."""
    execution = loaded.scenario.execution
    simulation = Simulation(loaded=loaded, device=resolve_device(execution.device), threads=1)
    contexts = [make_context(simulation, variant, variant.scenario.seeds[0]) for variant in loaded.variants]
    if execution.threads != "auto":
        return replace(simulation, threads=execution.threads)
    size = max(sum(p.numel() for p in context.model.module.parameters()) for context in contexts)
    threads = min(os.cpu_count() or 1, max(1, size // PARAMETERS_PER_THREAD))
    return replace(simulation, threads=threads)


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
    elif directory.path.exists() and any(directory.path.iterdir()):
        raise ScenarioError(
            f"{directory.path}: exists and is not a run directory; nothing was changed. "
            "Choose another with --out"
        )
    else:
        with whole_file(file) as temporary:
            temporary.write_text(text)


def execute(simulation: Simulation, directory: RunDirectory, progress: Progress) -> None:
    """Run every life to its end and write the tables; a finished run is left as it is."""
    if directory.file("verdict.json").exists():
        progress.note(f"{directory.path} holds this run, finished; delete the folder to run it again")
        return
    torch.set_num_threads(simulation.threads)
    resolved = {"device": simulation.device, "threads": simulation.threads}
    scenario = simulation.loaded.scenario
    if not directory.file("provenance.json").exists():
        directory.write_json("provenance", provenance(seeds=scenario.seeds, resolved=resolved))
    directory.log("started", time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    contexts = [
        make_context(simulation, variant, seed)
        for variant in simulation.loaded.variants
        for seed in variant.scenario.seeds
    ]
    progress.start(sum(context.rounds() for context in contexts))
    runners = [LifeRunner(context, directory, progress) for context in contexts]
    for runner in runners:
        runner.run()
    assemble(runners, directory)
    _conclude(simulation, contexts, runners, directory)
    directory.log("finished", time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def _conclude(
    simulation: Simulation,
    contexts: list[LifeContext],
    runners: list[LifeRunner],
    directory: RunDirectory,
) -> None:
    """Write what follows from the tables: life, ledgers, trajectories, and the verdict last."""
    scenario = simulation.loaded.scenario
    branches = ["keep", "leave", "retrain", *(m.branch for m in scenario.compare if m.unlearning_rounds)]
    directory.write_json("life", _life_json(simulation, contexts[0].life))
    directory.write_json("ledger", _ledger_json(contexts, runners, branches))
    raw = {name: directory.table(name).to_pylist() for name in ("metrics", "items", "costs")}
    lives = [(LifeTables.of(c.variant, c.seed, raw, c.replay_from), c.life) for c in contexts]
    derived = [row for tables, life in lives for row in trajectories(tables, life, branches)]
    directory.write_rows("trajectories", derived)
    quality = [row for tables, life in lives for row in forget_quality_rows(tables, life, branches)]
    directory.write_rows(
        "metrics", [*(r for r in raw["metrics"] if r["metric"] != "forget_quality_p"), *quality]
    )
    methods: dict[str, MethodConfig] = {method.branch: method for method in scenario.compare}
    config = scenario.probes
    verdict = {
        "informative": [row for tables, life in lives for row in informative_rows(tables, life, config)],
        "trust": trust_rows(lives),
        "rows": [
            row for tables, life in lives for row in verdict_rows(tables, life, config, branches, methods)
        ],
        "privacy": _privacy_sentences(contexts[0]),
    }
    directory.write_json("verdict", verdict)


def _life_json(simulation: Simulation, life: Life) -> dict[str, Any]:
    """The life as figures need it; see ``plots``."""
    scenario = simulation.loaded.scenario
    fixed = [("keep", "Keep", "ignored"), ("leave", "Leave", "natural"), ("retrain", "Retrain", "exact")]
    branches: list[dict[str, Any]] = [
        {"name": name, "method": name, "title": title, "class": kind, "unlearning": []}
        for name, title, kind in fixed
    ]
    for method in scenario.compare:
        if method.unlearning_rounds == 0:
            continue
        spans, busy = [], 0
        for request in life.requests:
            first = max(busy, request.round) + 1
            busy = first + method.unlearning_rounds - 1
            spans.append({"request": request.number, "first": first, "last": busy})
        title = method.title if method.label is None else f"{method.title} ({method.label})"
        branches.append(
            {
                "name": method.branch,
                "method": method.method,
                "title": title,
                "class": method.verdict,
                "unlearning": spans,
            }
        )
    return {
        "name": scenario.name,
        "description": scenario.description,
        "horizon": life.horizon,
        "seeds": list(scenario.seeds),
        "headline": scenario.probes.headline,
        "tolerance": scenario.probes.tolerance,
        "variants": [
            {"name": variant.name, "overrides": dict(variant.overrides)}
            for variant in simulation.loaded.variants
        ],
        "events": [
            {
                "round": event.round,
                "kind": event.kind,
                "clients": list(event.clients),
                "client": event.client,
                "request": event.request,
                "text": event.text,
            }
            for event in life.events
        ],
        "requests": [
            {
                "request": request.number,
                "round": request.round,
                "client": request.client,
                "scope": request.scope,
                "records": len(request.record_ids),
                "text": next(e.text for e in life.events if e.request == request.number),
            }
            for request in life.requests
        ],
        "branches": branches,
    }


def _ledger_json(
    contexts: list[LifeContext], runners: list[LifeRunner], branches: list[str]
) -> dict[str, Any]:
    """Every branch's ledger at the end of its life."""
    entries = []
    for context, runner in zip(contexts, runners, strict=True):
        for branch in branches:
            name = f"retrain#{len(context.life.requests)}" if branch == "retrain" else branch
            if branch == "retrain" and not context.life.requests:
                continue
            ledger = json.loads(runner.final_federation(name).ledger.to_json())
            entries.append(
                {
                    "variant": context.variant,
                    "seed": context.seed,
                    "branch": branch,
                    "releases": ledger["releases"],
                }
            )
    return {"entries": entries}


def _privacy_sentences(context: LifeContext) -> list[str]:
    """What the server sees of this pipeline, in words."""
    pipeline = context.engine.runtime.pipeline
    if not pipeline.stages:
        return ["No privacy stage: the server sees every client's update."]
    view = honest_server(pipeline)
    return [f"The server sees {thing}." for thing in view.sees]


# ------------------------------------------------------------------------ validate and list


def describe(loaded: LoadedScenario) -> list[str]:
    """What a scenario would do, after checking it with its data and its base model."""
    simulation = _checked(loaded)
    lines = []
    for variant in loaded.variants:
        context = make_context(simulation, variant, variant.scenario.seeds[0])
        dimension = sum(value.size for value in context.initial.values())
        requests = len(context.life.requests)
        lines.append(
            f"{loaded.source.file}: {variant.scenario.name} [{variant.name}] is valid: "
            f"{context.life.horizon} rounds, {requests} forget request{'s' if requests != 1 else ''}, "
            f"{context.rounds()} rounds to run over all branches, {dimension:,} trained parameters, "
            f"device {simulation.device}"
        )
        lines.extend(f"  {event.round:>5}  {event.text}" for event in context.life.events)
        lines.extend(f"  privacy: {sentence}" for sentence in _privacy_sentences(context))
    return lines


def catalogue() -> dict[str, list[tuple[str, str]]]:
    """All that scenarios can name, with a line on each."""
    scenarios = []
    for path in sorted(Path("scenarios").glob("*.yaml")):
        try:
            scenarios.append((str(path), load_scenario(path).scenario.description.strip().split("\n")[0]))
        except ScenarioError as error:
            scenarios.append((str(path), f"(not valid: {str(error).splitlines()[0]})"))
    sources = {"authors": AuthorsData, "tofu": TofuData, "jsonl": JsonlData}
    return {
        "Scenarios": scenarios,
        "Methods": [(name, method.summary) for name, method in METHODS.items()],
        "Privacy stages": list(summaries().items()),
        "Strategies": [
            (name, (cls.__doc__ or "").strip().splitlines()[0]) for name, cls in STRATEGIES.items()
        ],
        "Metrics": METRIC_SUMMARIES,
        "Data sources": [
            (name, (cls.__doc__ or "").strip().splitlines()[0]) for name, cls in sources.items()
        ],
    }


METRIC_SUMMARIES = [
    ("fact_probability", "geometric mean per token over the tokens that carry the fact"),
    ("probability", "geometric mean per token over the answer"),
    ("nll", "nats per answer token"),
    ("paraphrase_probability", "probability of the answer to the paraphrased question"),
    ("truth_ratio", "wrong answers against the paraphrase; forget: min(R, 1/R), retain: max(0, 1 - R)"),
    ("choice_probability", "the right answer's share among right and wrong ones"),
    ("exact_memorisation", "share of answer tokens that are the argmax"),
    ("extraction_strength", "how much of the answer follows from its beginning"),
    ("rouge_l_recall", "ROUGE-L recall of the greedy answer"),
    ("min_k", "mean log-probability of the least likely tokens"),
    ("membership_auc", "loss attack, forgotten records against holdout"),
    ("forget_quality_p", "Kolmogorov-Smirnov p-value of truth ratios against retrain"),
    ("model_utility", "harmonic mean over retain and public sets"),
]
