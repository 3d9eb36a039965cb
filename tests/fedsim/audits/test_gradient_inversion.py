"""What one update gives away, on small random bases and on the embedded one.

``exact`` means every token that was fed, in order. The bases are random, so that no token is certain and all
leave a gradient; on the embedded base the last one is, and does not.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from fedsim.audits.gradient_inversion import Recovered, invert, score
from fedsim.data.authors import load_authors
from fedsim.model.adapter import AdapterModel
from fedsim.model.config import LoraConfig, ModelConfig
from fedsim.model.loading import load_model
from fedsim.model.prompts import TextFormat
from fedsim.model.text import Pair, encode_pair
from fedsim.model.vectors import Arrays, from_vector, to_vector
from fedsim.training.config import LocalConfig
from fedsim.training.jobs import TrainJob
from fedsim.training.objectives import MeanNll
from fedsim.training.sequential import SequentialExecutor
from tests.world import SPECIAL, WORDS, make_model, random_arrays, word_tokenizer

RANK_16 = LoraConfig(r=16, alpha=16)
STEP = LocalConfig(epochs=1, batch_size=64, lr=0.1, optimizer="sgd", max_grad_norm=None)
ONE = (("w3 w17 w5 w21 w3", "w30 w8 w11"),)
OTHERS = tuple((f"w{n} w{n + 9} w{n + 4} w{n + 13}", f"w{n + 2} w{n + 20} w{n + 7}") for n in range(0, 18, 2))


def save_wide_base(directory: Path, kind: str) -> Path:
    """A random base of two layers, wide enough that a text's tokens do not fill the hidden space."""
    shared = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gpt2":
            network = GPT2LMHeadModel(GPT2Config(**shared, n_embd=64, n_layer=2, n_head=2, n_positions=32))
        else:
            like_llama = {"hidden_size": 64, "intermediate_size": 64, "max_position_embeddings": 32}
            heads = {"num_hidden_layers": 2, "num_attention_heads": 2}
            network = LlamaForCausalLM(LlamaConfig(**shared, **like_llama, **heads))
    word_tokenizer().save_pretrained(directory)
    network.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, tmp_path_factory) -> AdapterModel:
    return make_model(save_wide_base(tmp_path_factory.mktemp(request.param), request.param), lora=RANK_16)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> AdapterModel:
    return make_model(save_wide_base(tmp_path_factory.mktemp("llama"), "llama"), lora=RANK_16)


def pairs_of(model: AdapterModel, texts: tuple[tuple[str, str], ...]) -> tuple[Pair, ...]:
    return tuple(encode_pair(model.tokenizer, *text, TextFormat()) for text in texts)


def fed(pairs: tuple[Pair, ...]) -> list[tuple[int, ...]]:
    """What a model is fed of each: all but the end marker."""
    return [pair.input_ids[:-1] for pair in pairs]


def update_of(model: AdapterModel, adapter: Arrays, pairs: tuple[Pair, ...], local: LocalConfig = STEP):
    job = TrainJob(
        client=0,
        round=1,
        seed=0,
        adapter=adapter,
        pairs=pairs,
        record_ids=tuple(map(str, range(len(pairs)))),
        local=local,
        objective=MeanNll(),
    )
    (result,) = SequentialExecutor(model=model).train_clients([job])
    assert result.error is None
    return result.update


def noisy(update, relative: float):
    """Gaussian noise on every entry, its deviation a share of the update's L2 norm."""
    draws = np.random.default_rng(0).normal(size=update.shape)
    return (update + relative * np.linalg.norm(update) * draws).astype(np.float32)


def trained(model: AdapterModel) -> Arrays:
    """An adapter as after some rounds: B is not zero."""
    model.fresh(5)
    return random_arrays(model, seed=2, scale=0.1)


def fresh(model: AdapterModel) -> Arrays:
    return model.fresh(5)


# ------------------------------------------------------------------------------- what it reads


@pytest.mark.parametrize(("start", "factor"), [(trained, "A"), (fresh, "B")])
def test_one_step_on_one_record_is_read_exactly(model, start, factor):
    adapter, pairs = start(model), pairs_of(model, ONE)
    recovered = invert(model, adapter, update_of(model, adapter, pairs))
    assert recovered.factor == factor
    assert recovered.sequences[0] == fed(pairs)[0]
    assert recovered.tokens == set(fed(pairs)[0])
    assert score(recovered, fed(pairs)) == {
        "token_recall": 1.0,
        "token_precision": 1.0,
        "exact": 1.0,
        "rouge_l": 1.0,
    }
    assert all(0.0 <= residual <= 1.0 for residual in recovered.residuals)


def test_a_is_read_through_as_many_layers_as_see_the_input(llama):
    """Queries, keys and values have rank 16 each: 24 positions are more than one layer could tell."""
    adapter, pairs = trained(llama), pairs_of(llama, OTHERS[:4])
    recovered = invert(llama, adapter, update_of(llama, adapter, pairs))
    assert recovered.capacity == (48, 48)
    assert recovered.ranks[1] > 16
    assert score(recovered, fed(pairs))["exact"] == 1.0


def test_only_b_trained(llama):
    config = ModelConfig(base=llama.base_name, lora=LoraConfig(r=16, alpha=16, train="B"))
    model = replace(load_model(config), tokenizer=word_tokenizer())
    model.fresh(5)
    adapter, pairs = random_arrays(model, seed=2, scale=0.1), pairs_of(model, ONE)
    recovered = invert(model, adapter, update_of(model, adapter, pairs))
    assert recovered.factor == "B"
    assert score(recovered, fed(pairs))["exact"] == 1.0


def test_the_model_is_left_as_it_was(model):
    adapter, held = trained(model), fresh(model)
    update = update_of(model, adapter, pairs_of(model, ONE))
    model.load(held)
    invert(model, adapter, update)
    assert to_vector(model.arrays()).tobytes() == to_vector(held).tobytes()


# ---------------------------------------------------------------- behind what changes an update


@pytest.mark.parametrize("scale", [1e-3, -1.0, 40.0])
def test_rescaling_hides_nothing(model, scale):
    adapter, pairs = trained(model), pairs_of(model, ONE)
    update = (scale * update_of(model, adapter, pairs)).astype(np.float32)
    assert score(invert(model, adapter, update), fed(pairs))["exact"] == 1.0


def test_clipping_hides_nothing(model):
    adapter, pairs = trained(model), pairs_of(model, ONE)
    update = update_of(model, adapter, pairs, STEP.model_copy(update={"max_grad_norm": 5.0}))
    assert score(invert(model, adapter, update), fed(pairs))["exact"] == 1.0


@pytest.mark.parametrize("start", [trained, fresh])
@pytest.mark.parametrize("relative", [1e-2, 1e-1])
def test_noise_hides_everything(model, start, relative):
    adapter, pairs = start(model), pairs_of(model, ONE)
    update = noisy(update_of(model, adapter, pairs), relative)
    recovered = invert(model, adapter, update)
    assert score(recovered, fed(pairs))["exact"] == 0.0
    assert not recovered.tokens


def test_several_clients_hide_each_other(model):
    """Nine batches have more positions than any span has directions."""
    adapter = trained(model)
    every = [pairs_of(model, (text,)) for text in OTHERS]
    total = np.sum([update_of(model, adapter, pairs) for pairs in every], axis=0)
    recovered = invert(model, adapter, total)
    assert score(recovered, [ids for pairs in every for ids in fed(pairs)])["exact"] == 0.0
    assert recovered.ranks[1] == recovered.capacity[1] or not recovered.sequences


def test_adamw_hides_it(model):
    adapter, pairs = trained(model), pairs_of(model, ONE)
    local = STEP.model_copy(update={"optimizer": "adamw", "lr": 1e-3})
    recovered = invert(model, adapter, update_of(model, adapter, pairs, local))
    assert score(recovered, fed(pairs))["exact"] == 0.0


# -------------------------------------------------------------------------------- controls


def test_zeros_give_nothing(model):
    adapter = trained(model)
    size = sum(value.size for value in adapter.values())
    recovered = invert(model, adapter, np.zeros(size, dtype=np.float32))
    assert recovered == Recovered(
        tokens=frozenset(),
        sequences=(),
        residuals=(),
        factor="A",
        ranks=(0, 0),
        capacity=recovered.capacity,
    )


def test_another_clients_update_does_not_give_the_text(model):
    adapter, pairs = trained(model), pairs_of(model, ONE)
    other = pairs_of(model, (("w1 w2 w4 w6", "w7 w9"),))
    recovered = invert(model, adapter, update_of(model, adapter, other))
    assert score(recovered, fed(other))["exact"] == 1.0
    assert score(recovered, fed(pairs)) == {
        "token_recall": 0.0,
        "token_precision": 0.0,
        "exact": 0.0,
        "rouge_l": 0.0,
    }


def test_the_wrong_adapter_does_not_give_the_order(model):
    """The first block's inputs need no adapter, later ones do."""
    adapter, pairs = trained(model), pairs_of(model, ONE)
    update = update_of(model, adapter, pairs)
    recovered = invert(model, random_arrays(model, seed=3, scale=0.1), update)
    assert recovered.tokens == set(fed(pairs)[0])
    assert score(recovered, fed(pairs))["exact"] == 0.0


# --------------------------------------------------------------------------------- the score


def test_score_by_hand():
    recovered = Recovered(
        tokens=frozenset({1, 2, 3, 9}),
        sequences=((1, 2, 3), (1, 9)),
        residuals=(0.1, 0.2),
        factor="A",
        ranks=(4, 4),
        capacity=(8, 8),
    )
    got = score(recovered, [(1, 2, 3), (1, 4, 3, 5)])
    assert got["token_recall"] == pytest.approx(3 / 5)
    assert got["token_precision"] == pytest.approx(3 / 4)
    assert got["exact"] == pytest.approx(1 / 2)
    # The second's best match is (1, 2, 3): two in order, of 4 true and 3 guessed tokens.
    assert got["rouge_l"] == pytest.approx((1.0 + 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)) / 2)


@pytest.mark.parametrize("truth", [[], [(1, 2), ()]])
def test_score_needs_a_truth(truth):
    nothing = Recovered(
        tokens=frozenset(), sequences=(), residuals=(), factor="A", ranks=(0, 0), capacity=(8, 8)
    )
    with pytest.raises(ValueError, match="at least one"):
        score(nothing, truth)


# -------------------------------------------------------------------------- what cannot be used


@pytest.mark.parametrize("targets", [("o_proj",), ("q_proj", "k_proj"), r".*layers\.1\..*v_proj"])
def test_adapters_without_what_is_needed_are_refused(llama, targets):
    lora = LoraConfig(r=4, alpha=4, target_modules=targets)
    model = make_model(Path(llama.base_name), lora=lora)
    size = sum(value.size for value in model.arrays().values())
    with pytest.raises(ValueError, match="the first block"):
        invert(model, model.arrays(), np.zeros(size, dtype=np.float32))


def test_unusable_arguments_are_refused(llama):
    adapter = llama.arrays()
    update = np.zeros(sum(value.size for value in adapter.values()), dtype=np.float32)
    with pytest.raises(ValueError, match="entries"):
        invert(llama, adapter, update[:-1])
    with pytest.raises(ValueError, match="finite"):
        invert(llama, adapter, np.full_like(update, np.nan))
    with pytest.raises(ValueError, match="tolerance"):
        invert(llama, adapter, update, tolerance=0.0)
    with pytest.raises(ValueError, match="width"):
        invert(llama, adapter, update, width=0)


# ---------------------------------------------------------------------------- the embedded base


@pytest.fixture(scope="module")
def authors():
    """The embedded base with an adapter of some steps on public authors, and its private records."""
    model = load_model(ModelConfig(base="tiny-authors", lora=RANK_16))
    corpus = load_authors(clients=1)

    def encoded(records):
        return pairs_of(model, tuple((record.question, record.answer) for record in records))

    start = model.fresh(0)
    public = encoded(corpus.public["public"][:40])
    warmed = update_of(model, start, public, LocalConfig(epochs=1, batch_size=8))
    adapter = from_vector(to_vector(start) + warmed, start)
    return model, start, adapter, encoded(corpus.clients[0])


@pytest.mark.parametrize("record", range(9))
def test_real_records_are_read_but_for_a_token_that_nothing_depends_on(authors, record):
    """The base is certain that a value's last token ends the answer: no gradient, no trace as an input."""
    model, _, adapter, pairs = authors
    (truth,) = fed(pairs[record : record + 1])
    recovered = invert(model, adapter, update_of(model, adapter, pairs[record : record + 1]))
    assert recovered.sequences[0] == truth[:-1]
    assert recovered.tokens == set(truth[:-1])


def test_a_fresh_adapter_of_a_smaller_rank_than_the_record_gives_tokens_only(authors):
    model, start, _, pairs = authors
    longest = max(pairs, key=lambda pair: len(pair.input_ids))
    recovered = invert(model, start, update_of(model, start, (longest,)))
    assert recovered.factor == "B"
    assert recovered.tokens == set(longest.input_ids[:-2])
    assert score(recovered, [longest.input_ids[:-2]])["exact"] == 0.0


def test_order_is_lost_long_before_tokens(authors):
    """Noise of a millionth of the norm on every entry hides what follows what; a thousandth hides all."""
    model, _, adapter, pairs = authors
    (truth,) = fed(pairs[:1])
    update = update_of(model, adapter, pairs[:1])
    little, more = (invert(model, adapter, noisy(update, share)) for share in (1e-6, 1e-3))
    assert little.tokens == set(truth[:-1])
    assert score(little, [truth[:-1]])["exact"] == 0.0
    assert not more.tokens
