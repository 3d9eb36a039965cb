"""Plans of memory against the bytes that are really held at once, counted tensor by tensor on the CPU."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from fedsim.model.adapter import AdapterModel
from fedsim.model.config import LoraConfig, ModelConfig
from fedsim.model.loading import load_model
from fedsim.model.skeleton import shape_of, skeleton_of
from fedsim.training import kept as kept_module
from fedsim.training import memory as memory_module
from fedsim.training.cohort import Cohort
from fedsim.training.config import LocalConfig
from fedsim.training.kept import Kept, by_sizes, kept_per_token
from fedsim.training.memory import USABLE, Plan, Sizes, cohort_limit, limit_by
from fedsim.training.stacked import StackedLora
from tests.fedsim.training.test_cohort import make_job
from tests.fedsim.training.test_quantised import coarsened
from tests.world import WORDS, encode, make_model, make_records, word_tokenizer

GB = 10**9


class Held(TorchDispatchMode):
    """Bytes of all tensors that are alive, those of a model left out, and the most there were."""

    def __init__(self, model: AdapterModel) -> None:
        super().__init__()
        self.now = self.peak = 0
        own = (*model.module.parameters(), *model.module.buffers())
        self.known: dict[int, object] = {x.untyped_storage()._cdata: x for x in own}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self._add(x.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return

        def gone(_: object) -> None:
            self.now -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


@pytest.fixture(scope="module", params=[43, 1500], ids=["few-words", "many-words"])
def base(request, tmp_path_factory):
    """A small Llama: four blocks, shared key heads, a head that is small or most of it."""
    folder = tmp_path_factory.mktemp("llama")
    shape = LlamaConfig(
        vocab_size=request.param,
        hidden_size=64,
        intermediate_size=224,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("targets", "dropout"),
    [("all-linear", 0.0), ("all-linear", 0.1), (("q_proj", "v_proj"), 0.1)],
    ids=["all", "all-dropped", "q-and-v-dropped"],
)
def test_a_step_holds_what_is_counted_within_a_tenth(base, dtype, checkpointing, dropout, targets) -> None:
    lora = LoraConfig(r=4, alpha=4, dropout=dropout, target_modules=targets)
    config = ModelConfig(base=str(base), dtype=dtype, checkpointing=checkpointing, lora=lora)
    model = replace(load_model(config), tokenizer=word_tokenizer())
    assert model.packs_up_to > 0
    answer = " ".join(2 * WORDS[:32])
    long = [  # no two begin alike, so nothing is shared
        replace(record, question=f"w{number}", answer=answer)
        for number, record in enumerate(make_records(0, 4))
    ]
    pairs, local = encode(model, long), LocalConfig(batch_size=4, max_grad_norm=None)
    jobs = [make_job(model, client, 4, pairs=pairs, local=local) for client in range(2)]
    cohort = Cohort(StackedLora(model), jobs)
    tokens = sum(len(pair.input_ids) - 1 for job in jobs for pair in job.pairs)
    with model.training(), Held(model) as held:
        cohort._plain(0)
    vectors = 2 * cohort.vectors_KD.numel() * 4  # the gradients, of clients and not of tokens
    counted = kept_per_token(model).peak(checkpointing=checkpointing)
    assert counted == pytest.approx((held.peak - vectors) / tokens, rel=0.1)


def test_a_model_of_a_shape_alone_has_the_same_sizes(base) -> None:
    config = ModelConfig(base=str(base), dtype="bfloat16", checkpointing=True)
    shape = shape_of(config)
    alone, loaded = Sizes.of(skeleton_of(shape, config)), Sizes.of(load_model(config))
    assert replace(alone, in_4_bits=loaded.in_4_bits) == loaded
    assert alone.in_4_bits < loaded.in_4_bits == loaded.base


def test_quantised_layers_are_counted_by_what_they_compute_in(llama_base) -> None:
    plain, coarse = make_model(llama_base), coarsened(make_model(llama_base))
    expected, found = kept_per_token(plain), kept_per_token(coarse)
    assert found == expected


def test_what_cannot_go_without_memory_is_estimated(llama_base, monkeypatch) -> None:
    def fail(model):
        raise RuntimeError("looks at its numbers")

    model = make_model(llama_base)
    monkeypatch.setattr(kept_module, "_counted", fail)
    assert kept_per_token(model) == by_sizes(model)


# --------------------------------------------------------------------------------- choice


def test_cohorts_on_a_cpu_go_by_tokens(llama_base) -> None:
    limit = cohort_limit(make_model(llama_base), device="cpu")
    assert (limit.clients, limit.tokens) == (1024, 2048)


@pytest.mark.parametrize("gigabytes", [0.001, 0.01, 0.1, 24.0])
def test_a_full_cohort_fits_beside_the_base(llama_base, monkeypatch, gigabytes: float) -> None:
    """What a limit allows is a plan that fits, unless not even one token does."""
    model = make_model(llama_base)
    monkeypatch.setattr(memory_module, "device_memory", lambda device: int(gigabytes * GB))
    limit = cohort_limit(model, device="cuda:0")
    each = limit.tokens // limit.clients
    plan = plan_of(Sizes.of(model), memory=int(gigabytes * GB), clients=limit.clients, tokens_each=each)
    assert plan.fits
    assert limit.tokens <= 16_384


def test_memory_bounds_a_limit_by_hand() -> None:
    """Of 7 GB beside the base, a half for tokens of 1 MB and a fifth for clients of 32 MB."""
    limit = limit_by(sizes_of(), memory=10 * GB, most=10**6)
    assert (limit.tokens, limit.clients) == (3500, 43)


# ----------------------------------------------------------------------------------- plan


def sizes_of(**more) -> Sizes:
    kept = Kept(whole=8e5, block=1e5, inputs=2e5, logits=1e5, passing=1e5)
    fields = {"base": 2 * GB, "in_4_bits": GB // 2, "dimension": 10**6, "kept": kept, "checkpointing": False}
    return Sizes(**(fields | more))


def plan_of(sizes: Sizes, **more) -> Plan:
    return Plan(
        **({"sizes": sizes, "memory": 10 * GB, "clients": 2, "tokens_each": 1000, "records": 8} | more)
    )


def test_a_plan_by_hand() -> None:
    """1 MB a token: two clients of 1,000 tokens and 8 vectors of a million numbers."""
    plan = plan_of(sizes_of())
    assert plan.at_once == 2 * (32e6 + 1e9)
    assert plan.sentence() == "base 2.0 GB, 2 clients at once 2.1 GB, of 10.0 GB"
    assert plan.why_not() is None


PART = ("federation", "local", "micro_batch")


@pytest.mark.parametrize(
    ("changed", "says", "key"),
    [
        ({"asked": 9, "clients": 9}, "execution.cohort: 6", ("execution", "cohort")),
        ({"clients": 1, "tokens_each": 8000}, "micro_batch: 6,", PART),
        (
            {"clients": 1, "tokens_each": 8000},
            "model.checkpointing: true",
            PART,
        ),
        (
            {"clients": 1, "tokens_each": 8000, "in_parts": False},
            "federation.local.batch_size: 6,",
            ("federation", "local", "batch_size"),
        ),
        ({"clients": 1, "memory": 3 * GB}, "model.quantize: 4bit", PART),
        ({"clients": 1, "memory": GB // 4}, "a smaller base, or 0.7 GB", ("model", "base")),
    ],
)
def test_a_plan_that_does_not_fit_names_the_nearest_that_does(changed, says: str, key) -> None:
    found = plan_of(sizes_of(), **changed).why_not()
    assert found is not None
    assert says in found[0]
    assert found[1] == key


@pytest.mark.parametrize("memory", [4, 5, 9, 17])
def test_what_is_named_fits_and_one_more_does_not(memory: int) -> None:
    plan = plan_of(sizes_of(), clients=1, tokens_each=16_000, records=16, memory=memory * GB)
    said, _ = plan.why_not()
    part = int(said.partition("micro_batch: ")[2].split(",")[0])
    assert plan.with_records(part).fits
    assert not plan.with_records(part + 1).fits
    assert plan.with_records(part).at_once <= USABLE * plan.memory - plan.sizes.base
