"""Every option of PEFT's LoraConfig either works, is measured as it was trained, or is refused at its key."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM

from fedsim.config import ConfigError
from fedsim.model.adapter import AdapterModel
from fedsim.model.config import LoraConfig, ModelConfig
from fedsim.model.forward import forward
from fedsim.model.loading import ModelError, load_model
from fedsim.model.lora_options import PASSED_ON, REFUSED, check_patterns, patterns_of
from fedsim.model.saving import load_adapter, save_adapter
from fedsim.model.text import collate, encode_pair
from fedsim.model.vectors import from_vector, to_vector
from fedsim.training.config import LocalConfig
from fedsim.training.jobs import TrainJob
from fedsim.training.objectives import MeanNll
from fedsim.training.sequential import SequentialExecutor
from tests.world import FORMAT, SPECIAL, WORDS, word_tokenizer

EXAMPLES: dict[str, dict[str, Any]] = {
    "alpha_pattern": {"alpha_pattern": {"q_proj": 2}},
    "bias": {"bias": "all"},
    "ensure_weight_tying": {"ensure_weight_tying": True, "modules_to_save": ["embed_tokens"]},
    "exclude_modules": {"exclude_modules": ["k_proj"]},
    "fan_in_fan_out": {"fan_in_fan_out": False},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "layers_pattern": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "layers_to_transform": {"layers_to_transform": 1},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "rank_pattern": {"rank_pattern": {"q_proj": 1}},
    "target_parameters": {"target_parameters": ["mlp.gate_proj.weight"]},
    "trainable_token_indices": {"trainable_token_indices": [3, 4]},
    "use_dora": {"use_dora": True},
    "use_rslora": {"use_rslora": True},
}
TARGETS = ("q_proj", "k_proj", "v_proj")
TEXTS = (("w1 w2", "w3 w4"), ("w5 w6", "w7 w8 w9"), ("w10", "w11 w12"))


def tied_base(directory: Path, *, tied: bool) -> Path:
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        attention_bias=True,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    word_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", name="bases")
def _bases(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: tied_base(root / name, tied=name == "tied") for name in ("own", "tied")}


def trained(base: Path, lora: LoraConfig) -> AdapterModel:
    """A model after some steps on three pairs, its adapter in place."""
    model = load_model(ModelConfig(base=str(base), lora=lora))
    start = model.fresh(1)
    pairs = tuple(encode_pair(model.tokenizer, *text, FORMAT) for text in TEXTS)
    job = TrainJob(
        client=0,
        round=1,
        seed=1,
        adapter=start,
        pairs=pairs,
        record_ids=("a", "b", "c"),
        local=LocalConfig(epochs=20, batch_size=3, lr=2e-2),
        objective=MeanNll(),
    )
    (result,) = SequentialExecutor(model=model).train_clients([job])
    assert result.update is not None, result.error
    model.load(from_vector(to_vector(start) + result.update, start))
    return model


@torch.no_grad()
def nll(model: AdapterModel, module: torch.nn.Module) -> float:
    pairs = [encode_pair(model.tokenizer, *text, FORMAT) for text in TEXTS]
    return float(forward(module, collate(pairs, pad_id=model.pad_id)).mean_nll.mean())


def test_every_option_of_peft_is_decided() -> None:
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert known == set(PASSED_ON) | set(REFUSED)
    assert not set(PASSED_ON) & set(REFUSED)
    assert set(EXAMPLES) == set(PASSED_ON)


@pytest.mark.parametrize("option", sorted(PASSED_ON))
def test_an_option_that_is_passed_on_is_measured_as_it_was_trained(option: str, bases, tmp_path) -> None:
    base = bases["tied" if option == "ensure_weight_tying" else "own"]
    model = trained(base, LoraConfig(r=2, alpha=4, target_modules=TARGETS, peft=EXAMPLES[option]))
    expected = nll(model, model.module)
    untouched = nll(model, load_model(ModelConfig(base=str(base), lora=None)).module)
    assert expected < untouched - 0.1  # it was trained
    with model.measuring() as module:
        assert nll(model, module) == pytest.approx(expected, abs=1e-3)
    arrays = model.arrays()
    save_adapter(model, arrays, tmp_path / "adapter")
    model.fresh(2)
    found = load_adapter(model, tmp_path / "adapter")
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert nll(model, model.module) == expected


@pytest.mark.parametrize(
    ("base", "targets"),
    [("own", "lm_head"), ("tied", "lm_head"), ("tied", "embed_tokens"), ("own", "embed_tokens")],
)
def test_what_layers_share_is_measured_as_it_was_trained(base: str, targets: str, bases) -> None:
    model = trained(bases[base], LoraConfig(r=2, alpha=4, target_modules=("q_proj", targets)))
    assert model.merges == (base == "own")
    expected = nll(model, model.module)
    with model.measuring() as module:
        assert nll(model, module) == pytest.approx(expected, abs=1e-4)


def test_a_merge_into_shared_weights_would_have_been_another_model(bases) -> None:
    """The control: folded in without asking, the tied head gives other numbers."""
    model = trained(bases["tied"], LoraConfig(r=2, alpha=4, target_modules=("q_proj", "lm_head")))
    expected = nll(model, model.module)
    with model._merged() as module:
        assert abs(nll(model, module) - expected) > 0.1


def test_low_precision_is_not_merged(bases) -> None:
    """Small deltas would be rounded away in the base's type."""
    model = load_model(ModelConfig(base=str(bases["own"]), dtype="bfloat16"))
    assert not model.merges


def test_a_trial_leaves_no_trace(bases) -> None:
    model = load_model(ModelConfig(base=str(bases["own"])))
    before = {name: value.detach().clone() for name, value in model.module.named_parameters()}
    state = torch.get_rng_state()
    assert model.merges
    assert model.hides_left_padding
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.module.named_parameters())


@pytest.mark.parametrize("option", sorted(REFUSED))
def test_an_option_that_is_refused_says_why_at_its_key(option: str) -> None:
    with pytest.raises(ValidationError, match=option) as error:
        LoraConfig(peft={option: 1})
    (problem,) = error.value.errors()
    assert problem["ctx"]["error"].key == ("peft", option)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"did you mean 'use_dora'"):
        LoraConfig(peft={"use_dorra": True})


NAMES = [f"model.layers.{layer}.self_attn.{kind}_proj" for layer in range(30) for kind in "qkvo"]
LONG = "model.layers.0." + "a" * 60


@pytest.mark.parametrize(
    "pattern",
    ["(q_proj", "[", "*", "a{99999999999}", "(" * 20_000],
    ids=["open", "set", "star", "many", "deep"],
)
def test_a_pattern_that_is_no_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="is no regular expression") as error:
        check_patterns(patterns_of(pattern, {}), NAMES)
    assert error.value.key == ("target_modules",)


OVERLAPPING = [
    "(a+)+b",
    r"(\w*)*!",
    "(a|a)*!",
    "(a|aa)+?!",
    ".*" * 12 + "!",
    r"\w*" * 12 + "!",
    "[a-z]+" * 12 + "!",
]


@pytest.mark.parametrize("pattern", OVERLAPPING)
def test_a_pattern_that_does_not_end_is_refused(pattern: str, monkeypatch) -> None:
    monkeypatch.setattr("fedsim.model.lora_options.SLOW", 0.5)
    with pytest.raises(ConfigError, match="takes more than"):
        check_patterns(patterns_of(pattern, {}), [*NAMES, LONG])


@pytest.mark.parametrize(
    "key", ["exclude_modules", "layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern"]
)
def test_every_option_that_is_matched_is_tried(key: str) -> None:
    bad = "(q_proj"
    forms: dict[str, Any] = {
        "exclude_modules": bad,
        "layers_pattern": bad,
        "modules_to_save": ["lm_head", bad],
    }
    found = patterns_of(["q_proj"], {key: forms.get(key, {"q_proj": 4, bad: 2})})
    with pytest.raises(ConfigError, match="is no regular expression") as error:
        check_patterns(found, NAMES)
    assert error.value.key[:2] == ("peft", key)


@pytest.mark.parametrize(
    "pattern",
    [r".*\.(q|v)_proj", r"(layers\.\d\.)+q", "all", "(?i).*Q_PROJ", r".*layers\.(?:1?\d|2[0-5])\..*"],
)
def test_a_pattern_that_ends_is_let_through(pattern: str) -> None:
    found = patterns_of(pattern, {"exclude_modules": pattern, "alpha_pattern": {pattern: 1}})
    check_patterns(found, NAMES)


def test_plain_names_are_no_patterns() -> None:
    options = {"exclude_modules": ["a+"], "rank_pattern": {"layers.0.q_proj": 1}, "modules_to_save": None}
    assert patterns_of(["(a+)+b"], options) == {}
    assert patterns_of("all-linear", {}) == {}


def test_the_key_at_fault_is_the_scenario_s(bases) -> None:
    lora = LoraConfig(target_modules=("q_proj",), peft={"rank_pattern": {"(q": 4}})
    with pytest.raises(ModelError, match=r"'\(q' is no regular expression") as error:
        load_model(ModelConfig(base=str(bases["own"]), lora=lora))
    assert error.value.key == ("lora", "peft", "rank_pattern", "(q")


MISREAD: dict[str, list[Any]] = {
    "use_dora": ["no", "false", 0, 1],
    "lora_bias": ["off"],
    "fan_in_fan_out": ["maybe"],
    "bias": ["some", True],
    "modules_to_save": ["lm_head", [], [1]],
    "target_parameters": ["mlp.gate_proj.weight"],
    "rank_pattern": [{"q_proj": 100_000_000}, {"q_proj": 0}, {"q_proj": "4"}, 5],
    "alpha_pattern": [{"q_proj": 0}, {"q_proj": "8"}],
    "trainable_token_indices": [[-1], [], ["a"], 3],
    "layers_to_transform": [-1, "0", [0.5]],
    "layer_replication": [[[0]], 3],
    "exclude_modules": [[], 3],
}


@pytest.mark.parametrize(("option", "value"), [(name, one) for name, all_ in MISREAD.items() for one in all_])
def test_a_value_that_peft_would_misread_is_refused_at_its_key(option: str, value: Any) -> None:
    """PEFT takes "no" for true, and a name for a list of letters."""
    with pytest.raises(ValidationError, match=f"{option} is ") as error:
        LoraConfig(peft={option: value})
    (problem,) = error.value.errors()
    assert problem["ctx"]["error"].key == ("peft", option)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("modules_to_save", ["nothing_here"]),
        ("target_parameters", ["zzz"]),
        ("rank_pattern", {"r_proj": 2}),
        ("alpha_pattern", {"q_pro": 2}),
        ("exclude_modules", ["q"]),
        ("exclude_modules", "q_proj"),
        ("trainable_token_indices", [10_000]),
    ],
)
def test_an_option_that_names_nothing_is_refused(bases, option: str, value: Any) -> None:
    lora = LoraConfig(target_modules=("q_proj", "v_proj"), peft={option: value})
    with pytest.raises(ModelError, match=f"{option} names") as error:
        load_model(ModelConfig(base=str(bases["own"]), lora=lora))
    assert error.value.key == ("lora", "peft", option)
