"""Composition root: configuration in, objects out; the only module that knows concrete classes.

``check`` looks at everything that can be wrong (data, base model, life, privacy pipeline, what methods
need against what the pipeline shows) before any run directory is touched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from fedsim.attempt import Engine
from fedsim.checks import (
    blamed_on,
    check_anybody,
    check_audits,
    check_holdout,
    check_methods,
    check_one_life,
    check_strategy,
)
from fedsim.client import ClientRuntime, make_client_app, train_together
from fedsim.data.authors import load_authors
from fedsim.data.holdings import Holdings
from fedsim.data.jsonl import load_jsonl
from fedsim.data.names import ClientNames
from fedsim.data.partition import dirichlet, iid
from fedsim.data.records import Corpus
from fedsim.data.tofu import load_tofu
from fedsim.engines.check import check_engine
from fedsim.executors import make_executor
from fedsim.federation import make_strategy
from fedsim.grid import InProcessGrid, RosterGrid
from fedsim.life import Life, read_life
from fedsim.measure import build_probes
from fedsim.model import AdapterModel, load_model
from fedsim.orders import Planner
from fedsim.planning import UNLIMITED, CohortLimit, tokens_per_step
from fedsim.rehearsal import rehearse
from fedsim.scenario import (
    AuthorsData,
    DataChoice,
    JsonlData,
    ModelConfig,
    Scenario,
    TofuData,
)
from fedsim.scenario_file import (
    LoadedScenario,
    Variant,
)
from fedsim.simulation import LifeContext
from fedsim.text import TextFormat, encode_pair
from fedsim.timeline import Branch, Participation, build_tree, probe_rounds, replay_from, unroll
from fedsim.training import NO_GRADIENTS, SequentialExecutor
from fedsim.trials import check_per_sample
from fedsim.tuning import cohort_limit
from fedsim.unlearning.protocol import Objective, Role
from fedsim.unlearning.registry import METHODS
from fedsim.worst_cases import draws_of, most_invitations, most_steps, planned_weights
from privacy import Nominal, Pipeline, build_pipeline

Connect = Callable[[ClientRuntime, str, int], RosterGrid]
"""How the clients of a life are reached: from their runtime, the variant's name and the seed to a Grid."""


def in_process(runtime: ClientRuntime, variant: str, seed: int) -> RosterGrid:
    """Clients in this process."""
    return InProcessGrid(make_client_app(runtime), train_together=partial(train_together, runtime))


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A checked scenario with everything loaded that does not depend on the seed.

    ``threads`` is None until it was measured; ``limits`` holds, by variant, what an earlier start of the same
    run has worked out. ``private`` says that some variant's releases are charged to budgets.
    """

    loaded: LoadedScenario
    devices: tuple[str, ...]
    threads: int | None = None
    limits: Mapping[str, CohortLimit] = field(default_factory=dict)
    connect: Connect = in_process
    private: bool = False
    models: dict[tuple[str, str], AdapterModel] = field(default_factory=dict, repr=False)

    def replicas(self, config: ModelConfig) -> list[AdapterModel]:
        """The model of a configuration on each device, loaded once; lives that share it run in turn."""
        keys = [(config.model_dump_json(), device) for device in self.devices]
        for key in keys:
            if key not in self.models:
                self.models[key] = load_model(config, device=key[1])
        return [self.models[key] for key in keys]

    def limit(self, variant: str, model: AdapterModel) -> CohortLimit:
        """How many clients of a variant train at once."""
        wanted = self.loaded.scenario.execution.cohort
        if variant in self.limits:
            return self.limits[variant]
        if wanted == "auto":
            return cohort_limit(model, device=self.devices[0])
        return CohortLimit(clients=wanted, tokens=UNLIMITED)


# ----------------------------------------------------------------------------------- pieces


def load_corpus(data: DataChoice, *, seed: int) -> Corpus:
    """The records of a scenario; ValueError says which file, line or value cannot be used.

    Sources without names call their clients by number.
    """
    corpus = _read_corpus(data, seed)
    if corpus.names.by_id:
        return corpus
    return replace(corpus, names=ClientNames.of(str(client) for client in corpus.clients))


def _read_corpus(data: DataChoice, seed: int) -> Corpus:
    if isinstance(data, TofuData):
        return load_tofu(path=data.path, hub=data.hub)
    if isinstance(data, JsonlData):
        return load_jsonl(
            data.path,
            client_column=data.client_column,
            question_column=data.question_column,
            answer_column=data.answer_column,
            ignore_columns=data.ignore_columns,
            holdout=data.holdout,
            public=data.public,
        )
    assert isinstance(data, AuthorsData)
    corpus = load_authors(
        clients=data.clients,
        authors_per_client=data.authors_per_client,
        facts_per_author=data.facts_per_author,
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
        max_weight=max([float(most), *planned_weights(scenario, life)]),
        dimension=dimension,
        session=session,
        rounds=life.horizon,
        draws=draws_of(scenario.federation.participation, branches),
        cohort_known=scenario.execution.engine == "deployment",
        invitations=most_invitations(scenario, life),
        max_update_norm=max_update_norm,
    )
    pipeline = build_pipeline(scenario.privacy, nominal=nominal, weighting=scenario.federation.weighting)
    if scenario.federation.local.optimizer == "spsa" and pipeline.local_rule() is not None:
        raise ValueError(NO_GRADIENTS)
    return pipeline


def resolve_devices(device: str) -> tuple[str, ...]:
    """The devices behind ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ValueError if one cannot be used."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: no GPU is visible here; use auto or cpu")
    if device == "cuda":
        return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, NotImplementedError):
        raise ValueError(f"device={device!r} is not a device here; use auto, cpu, cuda or cuda:0") from None
    return (device,)


def make_objective(settings: str, role: Role) -> Objective:
    """The local loss of a role under a method that travelled as JSON."""
    data = json.loads(settings)
    return METHODS[data["method"]].model_validate(data).objective(role)


def _record_ids(corpus: Corpus) -> dict[int, tuple[str, ...]]:
    return {client: tuple(record.record_id for record in held) for client, held in corpus.clients.items()}


def _unrolled(scenario: Scenario, life: Life, corpus: Corpus, seed: int) -> tuple[Branch, ...]:
    participation = Participation(seed=seed, rule=scenario.federation.participation)
    return unroll(life, _record_ids(corpus), participation, scenario.compare)


def rounds_over_seeds(variant: Variant) -> int:
    """Rounds to run for all seeds of a variant; which rounds branches share depends on the seed."""
    scenario, rounds = variant.scenario, 0
    dealt = isinstance(scenario.data, AuthorsData) and scenario.data.partition != "by-author"
    corpus = load_corpus(scenario.data, seed=scenario.seeds[0])
    for seed in scenario.seeds:
        if dealt:
            corpus = load_corpus(scenario.data, seed=seed)
        names = corpus.names
        life = read_life(scenario, _record_ids(corpus), seed=seed, source=variant.source, names=names)
        tree = build_tree(_unrolled(scenario, life, corpus, seed))
        rounds += sum(len(segment.steps) for segment, _ in tree.walk())
    return rounds


# ---------------------------------------------------------------------------------- contexts


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a life's server and its clients both stand on."""

    corpus: Corpus
    life: Life
    branches: tuple[Branch, ...]
    model: AdapterModel
    fmt: TextFormat
    runtime: ClientRuntime


def _load_parts(simulation: Simulation, variant: Variant, seed: int) -> _Parts:
    """Load data and base model, and put together what clients need."""
    scenario, source = variant.scenario, variant.source
    with blamed_on(source, "data"):
        corpus = load_corpus(scenario.data, seed=seed)
    life = read_life(scenario, _record_ids(corpus), seed=seed, source=source, names=corpus.names)
    branches = _unrolled(scenario, life, corpus, seed)
    with blamed_on(source, "model"):
        models = simulation.replicas(scenario.model)
    model = models[0]
    fmt = TextFormat(prompt=scenario.model.prompt, max_tokens=scenario.model.max_tokens)
    dimension = sum(parameter.numel() for parameter in model.parameters().values())
    with blamed_on(source, "privacy"):
        session = f"{scenario.name}/{variant.name}/{seed}"
        sized = partial(make_pipeline, scenario, corpus, life, branches, dimension=dimension, session=session)
        pipeline = sized()
    if scenario.federation.max_update_norm is not None:
        with blamed_on(source, "federation", "max_update_norm"):
            pipeline = sized(max_update_norm=scenario.federation.max_update_norm)
    pairs = {
        client: tuple(encode_pair(model.tokenizer, r.question, r.answer, fmt, fact=r.fact) for r in held)
        for client, held in corpus.clients.items()
    }
    runtime = ClientRuntime(
        executor=make_executor(
            models, simulation.limit(variant.name, model), optimizer=scenario.federation.local.optimizer
        ),
        records=corpus.clients,
        pairs=pairs,
        pipeline=pipeline,
        objective=make_objective,
        simulated=scenario.execution.engine != "deployment",
    )
    return _Parts(corpus=corpus, life=life, branches=branches, model=model, fmt=fmt, runtime=runtime)


def make_runtime(simulation: Simulation, variant: Variant, seed: int) -> ClientRuntime:
    """What the clients of one variant and seed share, for a process that only plays clients."""
    return _load_parts(simulation, variant, seed).runtime


def make_context(simulation: Simulation, variant: Variant, seed: int) -> LifeContext:
    """Everything one variant and seed needs; loads data and base model."""
    scenario = variant.scenario
    parts = _load_parts(simulation, variant, seed)
    corpus, life, model, runtime = parts.corpus, parts.life, parts.model, parts.runtime
    branches = parts.branches
    holdings = Holdings.of(corpus, life)
    check_holdout(scenario, holdings.overlap, variant.source)
    if seed == scenario.seeds[0]:
        check_anybody(branches, variant.source)
    check_strategy(scenario, branches, runtime.pipeline, variant.source)
    check_methods(scenario, life, runtime.pipeline, variant.source)
    check_audits(scenario, runtime, model, variant.source, corpus.names)
    tree = build_tree(branches)
    return LifeContext(
        variant=variant.name,
        seed=seed,
        scenario=scenario,
        life=life,
        branches=branches,
        tree=tree,
        probe_rounds=probe_rounds(branches, life, scenario.compare, scenario.probes.every),
        replay_from=replay_from(branches, life),
        engine=Engine(
            grid=simulation.connect(runtime, variant.name, seed),
            runtime=runtime,
            planner=_planner(scenario, corpus, life, branches, seed),
        ),
        model=model,
        probes=build_probes(model.tokenizer, corpus, life, scenario.probes, parts.fmt, seed=seed),
        make_strategy=lambda: make_strategy(scenario.federation.strategy),
        together=len(simulation.devices)
        * _fill_a_cohort(runtime, scenario, simulation.limit(variant.name, model)),
        holdings=holdings,
        epsilon=runtime.pipeline.spent,
    )


def _planner(
    scenario: Scenario, corpus: Corpus, life: Life, branches: tuple[Branch, ...], seed: int
) -> Planner:
    strategy = scenario.federation.strategy
    return Planner(
        seed=seed,
        local=scenario.federation.local,
        methods={method.branch: method for method in scenario.compare},
        requests={request.number: request for request in life.requests},
        proximal_mu=strategy.proximal_mu if strategy.name == "fedprox" else 0.0,
        planned_steps=most_steps(branches, scenario, life, corpus),
        rosters={branch.name: branch.rosters for branch in branches},
        participation=scenario.federation.participation,
    )


def _fill_a_cohort(runtime: ClientRuntime, scenario: Scenario, limit: CohortLimit) -> int:
    """Clients that fill a cohort, by the one with most tokens in a step; no bound where others train."""
    if scenario.execution.engine != "in-process":
        return UNLIMITED
    if isinstance(runtime.executor, SequentialExecutor):
        return 1
    size = scenario.federation.local.batch_size
    return limit.room(max(tokens_per_step(pairs, size) for pairs in runtime.pairs.values()))


def check(loaded: LoadedScenario, connect: Connect = in_process) -> Simulation:
    """Load and check everything once, for every variant's first seed."""
    execution = loaded.scenario.execution
    with blamed_on(loaded.source, "execution", "device"):
        devices = resolve_devices(execution.device)
    simulation = Simulation(loaded=loaded, devices=devices, connect=connect)
    with blamed_on(loaded.source, "execution", "engine"):
        check_engine(execution, devices[0])
    contexts = [make_context(simulation, variant, variant.scenario.seeds[0]) for variant in loaded.variants]
    for variant, context in zip(loaded.variants, contexts, strict=True):
        with blamed_on(variant.source, "model", "lora"):
            check_per_sample(context.engine.runtime, context.model.arrays())
        rehearse(context, variant.source)
    private = any(context.engine.runtime.pipeline.protects for context in contexts)
    if private and execution.engine == "deployment":
        lives = [
            sum(not segment.children for segment, _ in context.tree.walk()) * len(variant.scenario.seeds)
            for variant, context in zip(loaded.variants, contexts, strict=True)
        ]
        check_one_life(sum(lives), loaded.source)
    threads = None if execution.threads == "auto" else execution.threads
    return replace(simulation, threads=threads, private=private)
