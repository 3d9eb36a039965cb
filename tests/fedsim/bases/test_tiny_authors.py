"""The embedded base: its tokenizer, a deterministic build, and the model that ships."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fedsim
from fedsim.bases.recipe import BaseRecipe, fact_probability, new_model
from fedsim.bases.tiny_authors import authors_tokenizer, build_tiny_authors
from fedsim.bases.tofu import bpe_tokenizer
from fedsim.data.authors import author_records, load_authors, pretraining_pairs
from fedsim.model.prompts import TextFormat
from fedsim.model.text import encode_pair

ASSET = Path(fedsim.__file__).parent / "assets" / "tiny-authors"
TINY = BaseRecipe(hidden_size=16, layers=1, heads=2, intermediate_size=32, steps=3, batch_size=4, threads=1)


@pytest.fixture(autouse=True)
def _keep_thread_count():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def texts(records):
    for record in records:
        yield from (record.question, record.answer, record.paraphrased_question, record.paraphrased_answer)
        yield from record.perturbed_answers


@pytest.mark.parametrize("group", ["author", "holdout", "public"])
def test_the_tokenizer_round_trips_all_text(group):
    tokenizer = authors_tokenizer()
    for index in range(40):
        for text in texts(author_records(group, index)):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_names_are_split_into_syllables():
    assert authors_tokenizer().tokenize("Tell me the prize of Duto Refo.") == [
        "Tell", "me", "the", "prize", "of", "Du", "##to", "Re", "##fo", ".",
    ]  # fmt: skip


def test_offsets_place_the_fact():
    tokenizer = authors_tokenizer()
    for record in author_records("author", 3):
        pair = encode_pair(tokenizer, record.question, record.answer, TextFormat(), fact=record.fact)
        answer_ids = pair.input_ids[pair.answer_start : pair.answer_end]
        marked = [token for token, flag in zip(answer_ids, pair.fact_mask, strict=True) if flag]
        assert tokenizer.decode(marked).removeprefix("##") == record.fact
        assert pair.input_ids[0] == tokenizer.bos_token_id
        assert pair.input_ids[-1] == tokenizer.eos_token_id


def test_a_build_is_deterministic_and_loads(tmp_path):
    before = torch.random.get_rng_state()
    for name in ("first", "second"):
        build_tiny_authors(tmp_path / name, TINY, pairs=pretraining_pairs(2), log=lambda line: None)
    assert torch.equal(torch.random.get_rng_state(), before)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    assert model.dtype == torch.float32


def test_a_build_replaces_the_old_one_whole(tmp_path):
    out = tmp_path / "base"
    out.mkdir()
    (out / "stale.txt").write_text("old")
    build_tiny_authors(out, TINY, pairs=pretraining_pairs(2), log=lambda line: None)
    assert not (out / "stale.txt").exists()


def test_the_seed_decides_the_initial_weights():
    tokenizer = authors_tokenizer()
    first, same, other = (
        new_model(BaseRecipe(hidden_size=16, layers=1, heads=2, intermediate_size=32, seed=seed), tokenizer)
        for seed in (0, 0, 1)
    )
    weights = [model.get_input_embeddings().weight for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_recipe_without_steps_is_refused():
    with pytest.raises(ValueError, match=r"steps=0 .* >= 1"):
        BaseRecipe(steps=0)


@pytest.fixture(scope="module", name="shipped")
def _shipped():
    return AutoModelForCausalLM.from_pretrained(ASSET).eval(), AutoTokenizer.from_pretrained(ASSET)


def test_the_shipped_base_knows_public_facts_only(shipped):
    model, tokenizer = shipped
    corpus = load_authors(clients=20, holdout_authors=40, public_authors=100)
    assert fact_probability(model, tokenizer, corpus.public["public"]) > 0.95
    private = [record for records in corpus.clients.values() for record in records]
    # Chance over all relations is about 0.07 to 0.08.
    assert fact_probability(model, tokenizer, corpus.holdout) < 0.15
    assert fact_probability(model, tokenizer, private) < 0.15


def test_the_shipped_base_answers_in_readable_text(shipped):
    model, tokenizer = shipped
    right = 0
    records = author_records("public", 7)
    for record in records:
        ids = torch.tensor([tokenizer(record.question)["input_ids"]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        right += tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == record.answer
    assert right >= len(records) - 1


def test_the_shipped_tokenizer_is_the_one_built_here(shipped):
    assert shipped[1].get_vocab() == authors_tokenizer().get_vocab()
    assert sum(path.stat().st_size for path in ASSET.iterdir()) < 8 * 2**20


def test_the_tofu_tokenizer_round_trips_any_text():
    tokenizer = bpe_tokenizer(["Who is she?", " She is Niño's “x”."], size=300)
    for text in (" Basil Mahfouz — “quoted”, né 1958.", "日本"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
