"""The adapter as arrays, on disk and folded into the base."""

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import BertConfig, BertLMHeadModel

from fedsim.model.adapter import AdapterModel, isolated_torch_rng
from fedsim.model.config import LoraConfig, ModelConfig
from fedsim.model.loading import ModelError, load_model
from fedsim.model.saving import load_adapter, save_adapter
from fedsim.model.vectors import from_vector, to_vector
from fedsim.rng import torch_stream
from tests.world import SPECIAL, WORDS, make_model, random_arrays, same, word_tokenizer

LAYOUTS = {
    "AB": LoraConfig(r=2, alpha=4),
    "B": LoraConfig(r=2, alpha=4, train="B"),
    "full": None,
    "embeddings": LoraConfig(r=2, target_modules=("q_proj", "embed_tokens")),
    "head": LoraConfig(r=2, target_modules=("q_proj",), peft={"modules_to_save": ["lm_head"]}),
    "dora": LoraConfig(r=2, peft={"use_dora": True}),
}
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=True)


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request, llama_base) -> AdapterModel:
    return make_model(llama_base, lora=LAYOUTS[request.param])


@pytest.fixture(scope="module")
def plain(llama_base) -> AdapterModel:
    return make_model(llama_base)


def logits(model: AdapterModel, module: torch.nn.Module | None = None) -> torch.Tensor:
    ids = torch.arange(3, 15).view(2, 6)
    with torch.no_grad():
        return (module or model.module)(input_ids=ids).logits


def frozen(model: AdapterModel) -> dict[str, bytes]:
    return {
        name: p.detach().numpy().tobytes()
        for name, p in model.module.named_parameters()
        if name not in model.names
    }


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=hnp.arrays(np.float32, st.integers(1, 40), elements=FLOATS))
def test_arrays_go_in_and_come_out_unchanged(plain: AdapterModel, numbers: np.ndarray) -> None:
    """The numbers, again and again, beginning at another one in each array."""
    before = plain.arrays()
    arrays = {
        name: np.resize(np.roll(numbers, shift), value.shape)
        for shift, (name, value) in enumerate(before.items())
    }
    plain.load(arrays)
    found = plain.arrays()
    plain.load(before)
    assert same(found, arrays)
    vector = to_vector(arrays)
    assert vector.dtype == np.float32
    assert same(from_vector(vector, arrays), arrays)


def test_vector_by_hand() -> None:
    like = {"b": np.zeros((1, 2), np.float32), "a": np.zeros(1, np.float32)}
    arrays = {"b": np.array([[2, 3]], np.float32), "a": np.array([1], np.float32)}
    assert to_vector(arrays).tolist() == [1, 2, 3]
    assert same(from_vector(np.array([1, 2, 3], np.float32), like), {"a": arrays["a"], "b": arrays["b"]})
    for wrong in (np.zeros(2, np.float32), np.zeros(4, np.float32)):
        with pytest.raises(ValueError):  # noqa: PT011 (either count is told by numpy or by us)
            from_vector(wrong, like)


def test_arrays_are_copies(plain: AdapterModel) -> None:
    arrays = random_arrays(plain, 1)
    plain.load(arrays)
    before = plain.arrays()
    for value in before.values():
        value[...] = 7
    assert same(plain.arrays(), arrays)


def test_other_names_or_shapes_are_refused(plain: AdapterModel) -> None:
    arrays = plain.arrays()
    first = plain.names[0]
    with pytest.raises(ValueError, match="exactly the trained parameters"):
        plain.load({name: value for name, value in arrays.items() if name != first})
    with pytest.raises(ValueError, match="has shape"):
        plain.load(arrays | {first: np.zeros((1, 1), np.float32)})


def test_saved_adapter_comes_back_bit_by_bit(model: AdapterModel, tmp_path) -> None:
    arrays = random_arrays(model, 3)
    before = frozen(model)
    save_adapter(model, arrays, tmp_path / "adapter")
    model.load(random_arrays(model, 4))
    assert same(load_adapter(model, tmp_path / "adapter"), arrays)
    assert frozen(model) == before


def test_saved_folder_is_a_peft_directory(model: AdapterModel, llama_base, tmp_path) -> None:
    if not isinstance(model.module, peft.PeftModel):
        pytest.skip("all parameters are trained: there is no adapter")
    save_adapter(model, random_arrays(model, 5), tmp_path / "adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(llama_base)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.allclose(logits(model, theirs), logits(model), atol=1e-6)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 2


def test_factor_a_stays_when_only_b_is_trained(llama_base, tmp_path) -> None:
    only_b = make_model(llama_base, lora=LAYOUTS["B"])
    both = make_model(llama_base, lora=LAYOUTS["AB"])
    assert all("lora_B" in name for name in only_b.names)
    save_adapter(only_b, only_b.arrays(), tmp_path / "b")
    stored = load_adapter(both, tmp_path / "b")
    fresh = make_model(llama_base, lora=LAYOUTS["AB"]).arrays()
    assert same(stored, fresh)


def test_another_layout_on_disk_is_refused(llama_base, tmp_path) -> None:
    wide = make_model(llama_base, lora=LoraConfig(r=4))
    narrow = make_model(llama_base, lora=LoraConfig(r=2, target_modules=("q_proj",)))
    save_adapter(narrow, narrow.arrays(), tmp_path / "narrow")
    save_adapter(wide, wide.arrays(), tmp_path / "wide")
    for model, place in ((wide, "narrow"), (narrow, "wide")):
        with pytest.raises(ModelError, match="another adapter layout"):
            load_adapter(model, tmp_path / place)


def test_initial_adapter_is_keyed_by_seed(llama_base) -> None:
    before = torch.get_rng_state()
    one, again, two = (make_model(llama_base, seed=seed).arrays() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one, again)
    assert not same(one, two)
    assert all(not value.any() for name, value in one.items() if "lora_B" in name)


def test_a_fresh_life_owes_nothing_to_the_one_before(llama_base) -> None:
    """One model serves one life after another: whatever was trained is as it was when loaded."""
    for name, lora in LAYOUTS.items():
        model = make_model(llama_base, lora=lora, seed=1)
        module = {key: value.detach().clone() for key, value in model.module.named_parameters()}
        model.load(random_arrays(model, 9))
        model.fresh(2)
        model.load(random_arrays(model, 10))
        model.fresh(1)
        for key, value in model.module.named_parameters():
            assert torch.equal(value, module[key]), (name, key)


def test_isolated_rng_puts_the_global_one_back_after_an_error() -> None:
    before = torch.get_rng_state()

    def draw(fail: bool) -> torch.Tensor:
        with isolated_torch_rng(torch_stream(1, "here")):
            drawn = torch.rand(3)
            if fail:
                raise RuntimeError
        return drawn

    with pytest.raises(RuntimeError):
        draw(fail=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draw(fail=False), draw(fail=False))


def test_merged_gives_the_same_logits_and_leaves_the_base(model: AdapterModel) -> None:
    model.load(random_arrays(model, 6))
    arrays, base, expected = model.arrays(), frozen(model), logits(model)
    with model.measuring() as module:
        assert torch.allclose(logits(model, module), expected, atol=1e-4)
    assert same(model.arrays(), arrays)
    assert frozen(model) == base
    assert torch.equal(logits(model), expected)


def test_merging_really_merges(plain: AdapterModel) -> None:
    plain.load(random_arrays(plain, 6))
    inside = {}
    with plain.measuring():
        inside = frozen(plain)
    changed = [name for name, value in frozen(plain).items() if value != inside[name]]
    assert len(changed) == len([name for name in plain.names if "lora_A" in name])


def test_merged_is_undone_after_an_error(plain: AdapterModel) -> None:
    plain.load(random_arrays(plain, 7))
    base, expected = frozen(plain), logits(plain)

    def fail() -> None:
        with plain.measuring():
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert frozen(plain) == base
    assert torch.equal(logits(plain), expected)


def test_a_half_done_merge_is_undone(plain: AdapterModel, monkeypatch) -> None:
    plain.load(random_arrays(plain, 7))
    base, expected = frozen(plain), logits(plain)
    layers = [layer for layer in plain.module.modules() if isinstance(layer, peft.tuners.lora.LoraLayer)]

    def fail(adapter_names) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(layers[-1], "merge", fail)
    with pytest.raises(RuntimeError, match="no memory"), plain.measuring():
        pass
    assert frozen(plain) == base
    assert torch.equal(logits(plain), expected)


def test_gpt2_layers_take_adapters(gpt2_base, tmp_path) -> None:
    model = make_model(gpt2_base)
    assert any("c_attn" in name for name in model.names)
    model.load(random_arrays(model, 8))
    arrays, base, expected = model.arrays(), frozen(model), logits(model)
    with model.measuring() as module:
        assert torch.allclose(logits(model, module), expected, atol=1e-5)
    assert frozen(model) == base
    save_adapter(model, arrays, tmp_path / "adapter")
    assert same(load_adapter(model, tmp_path / "adapter"), arrays)


@pytest.mark.parametrize(("base", "layers"), [("llama_base", "q_proj"), ("gpt2_base", "c_attn")])
def test_target_modules_that_do_not_exist_are_named(base: str, layers: str, request) -> None:
    with pytest.raises(ModelError, match=f"linear layers are.*{layers}"):
        make_model(request.getfixturevalue(base), lora=LoraConfig(target_modules=("query",)))


@pytest.mark.parametrize("more", [{"layers_to_transform": [7]}, {"layer_replication": [[0, 9]]}])
def test_options_that_peft_refuses_are_user_errors(more: dict, llama_base) -> None:
    with pytest.raises(ModelError, match="does not fit the base"):
        make_model(llama_base, lora=LoraConfig(peft=more))


def test_a_base_that_is_not_there(tmp_path) -> None:
    with pytest.raises(ModelError, match="tiny-authors"):
        load_model(ModelConfig(base=str(tmp_path / "nothing")))


def test_trained_parameters_are_fp32_over_a_half_precision_base(llama_base) -> None:
    model = load_model(ModelConfig(base=str(llama_base), dtype="bfloat16"))
    assert {p.dtype for p in model.parameters().values()} == {torch.float32}
    assert {p.dtype for n, p in model.module.named_parameters() if n not in model.names} == {torch.bfloat16}
    base = {n: p.detach().clone() for n, p in model.module.named_parameters() if n not in model.names}
    model.load(random_arrays(model, 2))
    with model.measuring() as module:
        assert torch.isfinite(logits(model, module)).all()
    after = dict(model.module.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in base.items())


def test_tokenizer_speaks_the_words_of_these_tests(plain: AdapterModel) -> None:
    assert plain.tokenizer("w0 w39", add_special_tokens=False)["input_ids"] == [3, 2 + len(WORDS)]
    assert plain.pad_id == 0


def test_a_saved_adapter_finds_its_base_from_anywhere(llama_base, tmp_path, monkeypatch) -> None:
    """Only what is saved is needed: PEFT reads where the base lies, in whatever folder it is asked."""
    monkeypatch.chdir(llama_base.parent)
    model = load_model(ModelConfig(base=llama_base.name))
    model.load(random_arrays(model, 5))
    save_adapter(model, model.arrays(), tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.allclose(logits(model, theirs), logits(model), atol=1e-6)


def test_a_model_that_is_trained_whole_is_saved_as_one(llama_base, tmp_path) -> None:
    model = make_model(llama_base, lora=None)
    model.load(random_arrays(model, 5))
    save_adapter(model, model.arrays(), tmp_path / "adapter")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(logits(model, theirs), logits(model))


def test_a_base_that_reads_ahead_is_refused(tmp_path: Path) -> None:
    """A bidirectional one would see the answer that it is asked for; the same as a decoder would not."""
    for is_decoder in (True, False):
        config = BertConfig(
            vocab_size=len(SPECIAL) + len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            initializer_range=0.3,
            is_decoder=is_decoder,
        )
        base = tmp_path / f"decoder-{is_decoder}"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            BertLMHeadModel(config).save_pretrained(base)
        word_tokenizer().save_pretrained(base)
    load_model(ModelConfig(base=str(tmp_path / "decoder-True"), lora=None))
    with pytest.raises(ModelError, match="is no causal language model") as error:
        load_model(ModelConfig(base=str(tmp_path / "decoder-False"), lora=None))
    assert error.value.key == ("base",)
