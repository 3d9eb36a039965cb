"""A federation to measure: authors as clients, a LoRA adapter on a base, rounds that all take part in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from fedsim.assembly.build import local_work
from fedsim.data.authors import load_authors
from fedsim.data.records import Record
from fedsim.federation.attempt import Engine
from fedsim.federation.client import make_client_app, train_together
from fedsim.federation.grid import InProcessGrid
from fedsim.federation.planner import Planner
from fedsim.federation.rounds import RoundOutcome, run_round
from fedsim.federation.runtime import ClientRuntime
from fedsim.federation.state import Federation
from fedsim.federation.strategies.registry import strategy_of
from fedsim.life.steps import Participant, Step
from fedsim.model.adapter import AdapterModel
from fedsim.model.config import LoraConfig, ModelConfig
from fedsim.model.loading import load_model
from fedsim.model.refusing import encode_refusal
from fedsim.model.text import Pair, encode_pair
from fedsim.model.vectors import to_vector
from fedsim.training.config import LocalConfig
from fedsim.training.executors import make_executor
from fedsim.training.jobs import Executor
from fedsim.training.memory import cohort_limit
from fedsim.training.sequential import SequentialExecutor
from privacy import Nominal, StageConfig, build_pipeline

SEED = 1
FACTS = 9
"""Facts of one author in the embedded data."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a federation is made of; travels to other processes as JSON."""

    clients: int
    records: int
    base: str = "tiny-authors"
    dtype: str = "float32"
    device: str = "cpu"
    quantize: str | None = None
    rank: int = 8
    epochs: int = 1
    batch_size: int = 8
    lr: float = 2e-3
    prompt: str = "{question}"
    natural: bool = False

    @property
    def local(self) -> LocalConfig:
        """Local training: AdamW, gradients clipped to norm 1."""
        return LocalConfig(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr)

    def as_settings(self) -> dict[str, Any]:
        return asdict(self)

    def model(self) -> AdapterModel:
        """The base with a fresh adapter."""
        lora = LoraConfig(r=self.rank, alpha=2.0 * self.rank)
        settings = {
            "base": self.base,
            "dtype": self.dtype,
            "quantize": self.quantize,
            "lora": lora,
            "prompt": self.prompt,
        }
        config = ModelConfig.model_validate(settings)
        model = load_model(config, device=self.device)
        model.fresh(SEED)
        return model

    def held(self) -> Mapping[int, tuple[Record, ...]]:
        """Each client's records: authors' facts, cut to size."""
        corpus = load_authors(
            clients=self.clients,
            authors_per_client=math.ceil(self.records / FACTS),
            natural=self.natural,
        )
        return {client: records[: self.records] for client, records in corpus.clients.items()}


def batched(model: AdapterModel) -> Executor:
    """Cohorts as a run would form them."""
    return make_executor([model], cohort_limit(model, device=model.device))


def sequential(model: AdapterModel) -> Executor:
    """One client at a time."""
    return SequentialExecutor(model=model)


def make_runtime(
    work: Work, model: AdapterModel, executor: Executor, privacy: Sequence[Mapping[str, Any]] = ()
) -> ClientRuntime:
    """What the clients of one process share."""
    held = work.held()
    fmt = model.fmt
    pairs: dict[int, tuple[Pair, ...]] = {
        client: tuple(encode_pair(model.tokenizer, r.question, r.answer, fmt, fact=r.fact) for r in records)
        for client, records in held.items()
    }
    pipeline = build_pipeline(
        TypeAdapter(list[StageConfig]).validate_python(list(privacy)),
        nominal=Nominal(
            max_cohort=work.clients,
            max_weight=1.0,
            dimension=sum(value.numel() for value in model.parameters().values()),
        ),
        weighting="uniform",
    )
    return ClientRuntime(
        executor=executor,
        records=held,
        pairs=pairs,
        pipeline=pipeline,
        local_work=local_work,
        refuse=partial(encode_refusal, model.tokenizer, fmt),
        algorithm=strategy_of(),
    )


def in_process(runtime: ClientRuntime) -> InProcessGrid:
    """The grid of an ordinary run."""
    return InProcessGrid(make_client_app(runtime), train_together=partial(train_together, runtime))


@dataclass(kw_only=True)
class Rounds:
    """A federation that goes on round by round; each call of ``next`` is one whole round."""

    work: Work
    engine: Engine
    federation: Federation
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        work: Work,
        model: AdapterModel,
        executor: Callable[[AdapterModel], Executor] = batched,
        *,
        privacy: Sequence[Mapping[str, Any]] = (),
        connect: Callable[[ClientRuntime], InProcessGrid] = in_process,
    ) -> Rounds:
        """A federation at its beginning; several may share a model, one after another."""
        runtime = make_runtime(work, model, executor(model), privacy)
        planner = Planner(
            rounds=100,
            seed=SEED,
            local=work.local,
            methods={},
            requests={},
            planned_steps={
                c: 100 * work.local.planned_steps(len(held)) for c, held in runtime.records.items()
            },
        )
        engine = Engine(grid=connect(runtime), runtime=runtime, planner=planner)
        federation = Federation(algorithm=(strategy_of()), adapter=model.fresh(SEED))
        return cls(work=work, engine=engine, federation=federation)

    def next(self, clients: Sequence[int] | None = None) -> RoundOutcome:
        """One round of all clients, or of some; RuntimeError unless each of them contributed."""
        asked = tuple(range(self.work.clients)) if clients is None else tuple(clients)
        cohort = tuple(Participant(client=client) for client in asked)
        step = Step(round=self.federation.round + 1, cohort=cohort, nominal_size=len(cohort))
        started = time.perf_counter()
        outcome = run_round(self.federation, step, "keep", self.engine)
        self.seconds.append(time.perf_counter() - started)
        if outcome.contributors != asked:
            why = next(iter(outcome.failures.values()), outcome.aborted)
            raise RuntimeError(f"{len(outcome.failures)} of {len(asked)} clients failed: {why}")
        return outcome

    def timed(self) -> float:
        """Seconds of the next round."""
        self.next()
        return self.seconds[-1]

    def vector(self) -> NDArray[np.float32]:
        """The adapter as one vector."""
        return to_vector(self.federation.adapter)


def apart(one: NDArray[np.float32], other: NDArray[np.float32], start: NDArray[np.float32]) -> float:
    """How far two adapters are apart, relative to how far the first has come from ``start``."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(one - start))
