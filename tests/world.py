"""A federation of a few clients over a random base: what tests of rounds, grids and training stand on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fedsim.assembly.build import local_work
from fedsim.data.records import Record
from fedsim.federation.attempt import Engine
from fedsim.federation.client import make_client_app, train_together
from fedsim.federation.grid import InProcessGrid
from fedsim.federation.planner import Planner
from fedsim.federation.runtime import ClientRuntime
from fedsim.federation.state import Federation
from fedsim.federation.strategies.protocol import StrategyConfig
from fedsim.federation.strategies.registry import strategy_of
from fedsim.life.steps import Participant, Step, UnlearningStep
from fedsim.model.adapter import AdapterModel
from fedsim.model.config import LoraConfig, ModelConfig
from fedsim.model.loading import load_model
from fedsim.model.prompts import TextFormat
from fedsim.model.refusing import encode_refusal
from fedsim.model.text import Pair, encode_pair
from fedsim.model.vectors import Arrays
from fedsim.training.config import LocalConfig
from fedsim.training.jobs import Executor, TrainJob, TrainResult, result_of
from fedsim.training.sequential import SequentialExecutor
from fedsim.unlearning.protocol import MethodConfig
from fedsim.unlearning.request import Request
from privacy import Nominal, StageConfig, build_pipeline

WORDS = [f"w{number}" for number in range(40)]
SPECIAL = ["<pad>", "<eos>", "<unk>"]
FORMAT = TextFormat()
SMALL_LORA = LoraConfig(r=2, alpha=4)
LOCAL = LocalConfig(epochs=2, batch_size=2, lr=0.05, optimizer="sgd", max_grad_norm=None)


def word_tokenizer(vocabulary: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """A token for each word, behind the special ones."""
    words = {word: index for index, word in enumerate([*SPECIAL, *vocabulary])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def save_base(directory: Path, kind: str = "llama") -> Path:
    """A random base of two layers: llama, qwen2 or mistral (both with shared key heads), or gpt2."""
    shared = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    like_llama = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gpt2":
            network = GPT2LMHeadModel(GPT2Config(**shared, n_embd=16, n_layer=2, n_head=2, n_positions=32))
        elif kind == "llama":
            network = LlamaForCausalLM(LlamaConfig(**shared, **like_llama))
        elif kind == "qwen2":
            network = Qwen2ForCausalLM(Qwen2Config(**shared, **like_llama, num_key_value_heads=1))
        else:
            network = MistralForCausalLM(
                MistralConfig(**shared, **like_llama, num_key_value_heads=1, sliding_window=4)
            )
    word_tokenizer().save_pretrained(directory)
    network.save_pretrained(directory)
    return directory


def save_opt(directory: Path, **more: object) -> Path:
    """A random OPT of one layer, which flattens rows and drops by itself."""
    config = OPTConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        **more,
    )
    OPTForCausalLM(config).save_pretrained(directory)
    word_tokenizer().save_pretrained(directory)
    return directory


def make_model(base: Path, *, seed: int = 1, lora: LoraConfig | None = SMALL_LORA) -> AdapterModel:
    """The base with fresh adapters. Some families load a tokenizer class of their own: ours is put back."""
    model = load_model(ModelConfig(base=str(base), lora=lora))
    model.fresh(seed)
    return replace(model, tokenizer=word_tokenizer())


def random_arrays(model: AdapterModel, seed: int, scale: float = 0.3) -> Arrays:
    """An adapter whose every array is random, so that deltas are not zero."""
    draws = np.random.default_rng(seed)
    return {
        name: (value + scale * draws.normal(size=value.shape)).astype(np.float32)
        for name, value in model.arrays().items()
    }


def make_records(client: int, count: int = 4) -> tuple[Record, ...]:
    draws = np.random.default_rng(client)

    def text() -> str:
        return " ".join(draws.choice(WORDS, draws.integers(2, 5)))

    return tuple(
        Record(record_id=f"c{client}/r{number}", subject=f"c{client}", question=text(), answer=text())
        for number in range(count)
    )


def encode(model: AdapterModel, records: Sequence[Record]) -> tuple[Pair, ...]:
    return tuple(encode_pair(model.tokenizer, r.question, r.answer, FORMAT, fact=r.fact) for r in records)


@dataclass(frozen=True)
class Tampering:
    """An executor that lets some clients fail: ``faults`` maps a client to what becomes of its result."""

    inner: Executor
    faults: dict[int, Callable[[TrainJob, TrainResult], TrainResult]]

    def train_clients(self, jobs: Sequence[TrainJob]) -> list[TrainResult]:
        results = self.inner.train_clients(jobs)
        return [self._tampered(job, result) for job, result in zip(jobs, results, strict=True)]

    def _tampered(self, job: TrainJob, result: TrainResult) -> TrainResult:
        if job.client not in self.faults:
            return result
        try:
            return self.faults[job.client](job, result)
        except RuntimeError as error:
            return result_of(job, error=f"RuntimeError: {error}")


def raises(job: TrainJob, result: TrainResult) -> TrainResult:
    raise RuntimeError("the client crashed")


def gives_nan(job: TrainJob, result: TrainResult) -> TrainResult:
    return replace(result, update=np.full_like(result.update, np.nan))


def too_long(job: TrainJob, result: TrainResult) -> TrainResult:
    return replace(result, update=np.append(result.update, np.float32(0)))


@dataclass(frozen=True)
class World:
    """A model, its clients and the engine that trains them."""

    model: AdapterModel
    engine: Engine
    strategy: StrategyConfig

    def federation(self) -> Federation:
        return Federation(algorithm=self.strategy, adapter=self.model.arrays())


def born(world: World, start: Arrays) -> Federation:
    """A federation of a world, from a copy of an adapter."""
    federation = world.federation()
    federation.adapter = {name: value.copy() for name, value in start.items()}
    return federation


def make_world(
    model: AdapterModel,
    *,
    clients: int = 4,
    records: int = 4,
    more: int = 1,
    privacy: Sequence[dict] = (),
    weighting: str = "examples",
    strategy: StrategyConfig | None = None,
    local: LocalConfig = LOCAL,
    methods: Sequence[MethodConfig] = (),
    requests: Sequence[Request] = (),
    faults: dict | None = None,
    serialise: bool = False,
    rounds: int = 3,
    sized: bool = True,
    simulated: bool = True,
    nominal: dict | None = None,
) -> World:
    """``records`` per client; client c has c times ``more`` extra ones, so that weights differ.

    ``rounds`` is how many each client may take part in; ``sized`` whether the pipeline knows the
    adapter's dimension; without ``simulated`` clients behave as in a deployment. ``nominal`` is what else the
    pipeline is checked against.
    """
    strategy = strategy or strategy_of()
    held = {client: make_records(client, records + more * client) for client in range(clients)}
    dimension = sum(value.size for value in model.arrays().values()) * (1 + len(strategy.sends))
    pipeline = build_pipeline(
        TypeAdapter(list[StageConfig]).validate_python(list(privacy)),
        nominal=Nominal(
            max_cohort=clients,
            max_weight=float(records + clients) if weighting == "examples" else 4.0,
            dimension=dimension if sized else None,
            **(nominal or {}),
        ),
        weighting=weighting,
    )
    executor: Executor = SequentialExecutor(model=model)
    runtime = ClientRuntime(
        executor=Tampering(executor, faults) if faults else executor,
        records=held,
        pairs={client: encode(model, some) for client, some in held.items()},
        pipeline=pipeline,
        local_work=local_work,
        refuse=partial(encode_refusal, model.tokenizer, FORMAT),
        algorithm=strategy,
        keyed_secrets=simulated,
    )
    planner = Planner(
        rounds=rounds,
        seed=7,
        local=local,
        methods={method.branch: method for method in methods},
        requests={(method.branch, request.number): request for method in methods for request in requests},
        planned_steps={client: rounds * local.planned_steps(len(some)) for client, some in held.items()},
    )
    grid = InProcessGrid(
        make_client_app(runtime), train_together=partial(train_together, runtime), serialise=serialise
    )
    engine = Engine(grid=grid, runtime=runtime, planner=planner)
    return World(model=model, engine=engine, strategy=strategy)


def make_step(round_: int, clients: Sequence[int], unlearning: UnlearningStep | None = None) -> Step:
    cohort = tuple(Participant(client=client) for client in clients)
    return Step(round=round_, cohort=cohort, nominal_size=len(cohort), unlearning=unlearning)


def same(left: Arrays, right: Arrays) -> bool:
    """Bitwise equality, names included."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and left[name].tobytes() == right[name].tobytes()
        for name in left
    )
