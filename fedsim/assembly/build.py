"""Composition root: configuration in, objects out; the only module that knows concrete classes.

``load_and_check`` looks at everything that can be wrong (data, base model, life, privacy pipeline, what
methods need against what the pipeline shows) before any run directory is touched.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial

from fedsim.assembly.checks import (
    blamed_on,
    check_anybody,
    check_audits,
    check_events,
    check_headline,
    check_holdout,
    check_methods,
    check_one_life,
    check_public,
    check_strategy,
)
from fedsim.assembly.engine_check import check_engine
from fedsim.assembly.memory_plan import check_base_fits, check_memory
from fedsim.assembly.pipeline import make_pipeline
from fedsim.assembly.rehearsal import rehearse
from fedsim.assembly.simulation import CheckedScenario, Connect, in_process
from fedsim.data.chunks import chunked
from fedsim.data.loading import depends_on_seed, load_corpus
from fedsim.data.records import Corpus
from fedsim.federation.attempt import Engine
from fedsim.federation.planner import Planner
from fedsim.federation.runtime import ClientRuntime
from fedsim.federation.trials import check_per_sample
from fedsim.federation.worst_cases import most_steps, retains_on_public
from fedsim.life.branches import lines_of, unroll
from fedsim.life.holdings import Holdings
from fedsim.life.reading import read_life
from fedsim.life.roster import Participation
from fedsim.life.schedule import answers, probe_rounds, replay_from
from fedsim.life.script import Life
from fedsim.life.steps import Branch, Line, composed
from fedsim.life.tree import build_tree
from fedsim.living.context import LifeContext
from fedsim.measuring.probes import ProbeSet, build_probes, unprobed
from fedsim.model.adapter import AdapterModel
from fedsim.model.arithmetic import resolved
from fedsim.model.plain import cut_text, encode_record
from fedsim.model.refusing import encode_refusal
from fedsim.scenario.file import LoadedScenario
from fedsim.scenario.scenario import Scenario
from fedsim.scenario.variants import Variant
from fedsim.training.cohorts import UNLIMITED, CohortLimit, tokens_per_step
from fedsim.training.devices import resolve_devices
from fedsim.training.executors import make_executor
from fedsim.training.objectives import LocalWork
from fedsim.training.sequential import SequentialExecutor
from fedsim.unlearning.protocol import Role
from fedsim.unlearning.registry import METHODS


def local_work(settings: str, role: Role, index: int) -> LocalWork:
    """What a role computes in a round of a method that travelled as JSON."""
    data = json.loads(settings)
    return METHODS[data["method"]].model_validate(data).local(role, index)


def _record_ids(corpus: Corpus) -> dict[int, tuple[str, ...]]:
    return {client: tuple(record.record_id for record in held) for client, held in corpus.clients.items()}


def _life(variant: Variant, corpus: Corpus, seed: int) -> Life:
    scenario, records = variant.scenario, _record_ids(corpus)
    return read_life(
        scenario.timeline, scenario.compare, records, seed=seed, source=variant.source, names=corpus.names
    )


def _unrolled(scenario: Scenario, life: Life, corpus: Corpus, seed: int) -> tuple[Branch, ...]:
    participation = Participation(seed=seed, rule=scenario.federation.participation)
    return unroll(life, _record_ids(corpus), participation, scenario.compare)


def rounds_over_seeds(variant: Variant, model: AdapterModel) -> int:
    """Rounds to run for all seeds of a variant; which rounds branches share depends on the seed."""
    scenario, rounds = variant.scenario, 0
    cut = partial(cut_text, model.tokenizer, fmt=model.fmt)
    corpus = chunked(load_corpus(scenario.data, seed=scenario.seeds[0]), cut)
    for seed in scenario.seeds:
        if depends_on_seed(scenario.data):
            corpus = chunked(load_corpus(scenario.data, seed=seed), cut)
        life = _life(variant, corpus, seed)
        tree = build_tree(_unrolled(scenario, life, corpus, seed))
        rounds += sum(len(segment.steps) for segment, _ in tree.walk())
    return rounds


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a life's server and its clients both stand on."""

    corpus: Corpus
    life: Life
    branches: tuple[Branch, ...]
    model: AdapterModel
    runtime: ClientRuntime


def _load_parts(simulation: CheckedScenario, variant: Variant, seed: int) -> _Parts:
    """Load data and base model, and put together what clients need."""
    scenario, source = variant.scenario, variant.source
    with blamed_on(source, "data"):
        corpus = load_corpus(scenario.data, seed=seed)
    with blamed_on(source, "model"):
        public = [record for held in corpus.public.values() for record in held]
        models = simulation.replicas(scenario.model, public)
    model, fmt = models[0], models[0].fmt
    with blamed_on(source, "data"):
        corpus = chunked(corpus, partial(cut_text, model.tokenizer, fmt=fmt))
    life = _life(variant, corpus, seed)
    branches = _unrolled(scenario, life, corpus, seed)
    dimension = sum(parameter.numel() for parameter in model.parameters().values())
    dimension *= 1 + len(scenario.federation.strategy.sends)
    with blamed_on(source, "privacy"):
        session = f"{scenario.name}/{variant.name}/{seed}"
        sized = partial(make_pipeline, scenario, corpus, life, branches, dimension=dimension, session=session)
        pipeline = sized()
    if scenario.federation.max_update_norm is not None:
        with blamed_on(source, "federation", "max_update_norm"):
            pipeline = sized(max_update_norm=scenario.federation.max_update_norm)
    with blamed_on(source, "data"):
        pairs = {
            client: tuple(encode_record(model.tokenizer, record, fmt) for record in held)
            for client, held in corpus.clients.items()
        }
    retains = retains_on_public(scenario.compare, life)
    kept = unprobed(corpus, scenario.probes, seed) if retains else []
    runtime = ClientRuntime(
        executor=make_executor(
            models, simulation.limit(variant.name, model), optimizer=scenario.federation.local.optimizer
        ),
        records=corpus.clients,
        pairs=pairs,
        pipeline=pipeline,
        local_work=local_work,
        refuse=partial(encode_refusal, model.tokenizer, fmt),
        public={record.record_id: encode_record(model.tokenizer, record, fmt) for record in kept},
        algorithm=scenario.federation.strategy,
        keyed_secrets=scenario.execution.engine != "deployment",
    )
    return _Parts(corpus=corpus, life=life, branches=branches, model=model, runtime=runtime)


def make_runtime(simulation: CheckedScenario, variant: Variant, seed: int) -> ClientRuntime:
    """What the clients of one variant and seed share, for a process that only plays clients.

    The server sends what is trained; the rest of an adapter is put in place as the server has it.
    """
    parts = _load_parts(simulation, variant, seed)
    parts.model.fresh(seed)
    return parts.runtime


def make_context(simulation: CheckedScenario, variant: Variant, seed: int) -> LifeContext:
    """Everything one variant and seed needs; loads data and base model."""
    scenario = variant.scenario
    parts = _load_parts(simulation, variant, seed)
    corpus, life, model, runtime = parts.corpus, parts.life, parts.model, parts.runtime
    branches = parts.branches
    holdings = Holdings.of(corpus, life)
    check_holdout(scenario, holdings.overlap, variant.source)
    if seed == scenario.seeds[0]:
        check_anybody(branches, variant.source)
    check_events(scenario, variant.source)
    check_strategy(scenario, branches, runtime.pipeline, variant.source)
    check_methods(scenario, life, branches, runtime, variant.source)
    check_audits(scenario, life, runtime, model, variant.source)
    tree = build_tree(branches)
    lines = {m.branch: own for m in scenario.compare if (own := lines_of(m, life))}
    return LifeContext(
        variant=variant.name,
        seed=seed,
        federation=scenario.federation,
        methods=tuple(scenario.compare),
        probing=scenario.probes,
        privacy=tuple(scenario.privacy),
        checkpoint_every=scenario.execution.checkpoint_every,
        life=life,
        branches=branches,
        composed=tuple(one for method, own in lines.items() for one in composed(method, own)),
        tree=tree,
        probe_rounds=probe_rounds(branches, life, scenario.compare, scenario.probes.every),
        replay_from={
            line: replay_from(branches, life, line)
            for line in (Line(), *(line for own in lines.values() for line in own))
        },
        engine=Engine(
            grid=simulation.connect(runtime, variant.name, seed),
            runtime=runtime,
            planner=_planner(scenario, corpus, life, branches, seed),
        ),
        model=model,
        probes=_probes(parts, variant, seed),
        clients_per_batch=len(simulation.devices)
        * _fill_a_cohort(runtime, scenario, simulation.limit(variant.name, model)),
        holdings=holdings,
        epsilon=runtime.pipeline.spent,
    )


def _probes(parts: _Parts, variant: Variant, seed: int) -> ProbeSet:
    """What is asked, and whether the headline can be had of it."""
    config, model = variant.scenario.probes, parts.model
    check_public(variant.scenario, parts.corpus, variant.source)
    with blamed_on(variant.source, "data"):
        probes = build_probes(model.tokenizer, parts.corpus, parts.life, config, model.fmt, seed=seed)
    check_headline(variant.scenario, probes, variant.source)
    return probes


def _planner(
    scenario: Scenario, corpus: Corpus, life: Life, branches: tuple[Branch, ...], seed: int
) -> Planner:
    return Planner(
        seed=seed,
        rounds=life.horizon,
        local=scenario.federation.local,
        methods={method.branch: method for method in scenario.compare},
        requests={
            (method.branch, answer.request.number): answer.request
            for method in scenario.compare
            for answer in answers(life, method)
        },
        planned_steps=most_steps(branches, scenario.federation.local, scenario.compare, life, corpus),
        rosters={branch.name: branch.rosters for branch in branches},
        participation=scenario.federation.participation,
    )


def _fill_a_cohort(runtime: ClientRuntime, scenario: Scenario, limit: CohortLimit) -> int:
    """Clients that fill a cohort, by the one with most tokens in a step; no bound where others train."""
    if scenario.execution.engine != "in-process":
        return UNLIMITED
    if isinstance(runtime.executor, SequentialExecutor):
        return 1
    local = scenario.federation.local
    size = local.at_once
    return limit.room(max(tokens_per_step(pairs, size) for pairs in runtime.pairs.values()))


def _with_types(loaded: LoadedScenario, device: str) -> LoadedScenario:
    """A scenario whose bases have named number types, as a run writes them down."""

    def named(scenario: Scenario) -> Scenario:
        dtype = resolved(scenario.model.dtype, device)
        return scenario.model_copy(update={"model": scenario.model.model_copy(update={"dtype": dtype})})

    variants = tuple(replace(variant, scenario=named(variant.scenario)) for variant in loaded.variants)
    return replace(loaded, scenario=named(loaded.scenario), variants=variants)


def load_and_check(loaded: LoadedScenario, connect: Connect = in_process) -> CheckedScenario:
    """Load and check everything once, for every variant's first seed."""
    execution = loaded.scenario.execution
    with blamed_on(loaded.source, "execution", "device"):
        devices = resolve_devices(execution.device)
    loaded = _with_types(loaded, devices[0])
    simulation = CheckedScenario(loaded=loaded, devices=devices, connect=connect)
    with blamed_on(loaded.source, "execution", "engine"):
        check_engine(execution, devices[0])
    for variant in loaded.variants:
        with blamed_on(variant.source, "model"):
            check_base_fits(variant.scenario.model, devices[0])
    contexts = [make_context(simulation, variant, variant.scenario.seeds[0]) for variant in loaded.variants]
    for variant, context in zip(loaded.variants, contexts, strict=True):
        with blamed_on(variant.source, "model", "lora"):
            check_per_sample(context.engine.runtime, context.model.arrays())
        check_memory(simulation, context, variant)
        rehearse(context, variant)
    private = any(context.engine.runtime.pipeline.protects for context in contexts)
    if private and execution.engine == "deployment":
        lives = [
            sum(not segment.children for segment, _ in context.tree.walk()) * len(variant.scenario.seeds)
            for variant, context in zip(loaded.variants, contexts, strict=True)
        ]
        check_one_life(sum(lives), loaded.source)
    threads = None if execution.threads == "auto" else execution.threads
    return replace(simulation, threads=threads, private=private)
