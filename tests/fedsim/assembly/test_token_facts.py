"""What is said of texts before a run, and which of them are refused."""

import re
from dataclasses import replace

import pytest

from fedsim.assembly.token_facts import check_tokens, token_facts, token_sentences
from fedsim.config import ConfigError
from fedsim.data.names import ClientNames
from fedsim.data.records import Record, Turn
from fedsim.model.adapter import AdapterModel
from fedsim.model.prompts import TextFormat
from fedsim.model.text import Pair, encode_pair
from tests.world import make_model

NAMES = ClientNames.of(["clinic-a", "clinic-b", "clinic-c", "clinic-d", "clinic-e"])


@pytest.fixture(scope="module", name="model")
def _model(llama_base) -> AdapterModel:
    return make_model(llama_base)


def records(*texts: tuple[str, str, str | None]) -> tuple[Record, ...]:
    return tuple(
        Record(record_id=f"r/{number}", subject="r", question=question, answer=answer, fact=fact)
        for number, (question, answer, fact) in enumerate(texts)
    )


def encoded(
    model: AdapterModel, held: tuple[Record, ...], max_tokens: int, truncation: str = "left"
) -> tuple[Pair, ...]:
    fmt = TextFormat(max_tokens=max_tokens, truncation=truncation)
    return tuple(encode_pair(model.tokenizer, r.question, r.answer, fmt, fact=r.fact) for r in held)


LONG = " ".join(["w1"] * 6)


def test_counts_by_hand(model: AdapterModel) -> None:
    held = records(("w1 w2", "w3", None), (f"{LONG} w2", "w3 nobody", None), ("w1", f"{LONG} {LONG}", None))
    pairs = {4: encoded(model, held, 8), 5: encoded(model, held[:1], 8), 6: ()}
    facts = token_facts(pairs, model.tokenizer)
    assert set(facts) == {4, 5}
    own = facts[4]
    assert (own.records, own.tokens) == (3, 4 + 8 + 8)
    assert (own.cut_prompts, own.cut_answers, own.longest) == (1, 1, 14)
    assert (own.unknown, own.answer_tokens) == (1, 1 + 2 + 7)
    said = " ".join(token_sentences(pairs, model, 8, NAMES))
    assert "24 tokens in 4 records; a record has 4 to 8, 6 at the median." in said
    assert "1 of 4 questions are cut at model.max_tokens=8 (client clinic-e: 1 of 3)" in said
    assert "Of 1 of them fewer than 8 tokens are left: raise model.max_tokens, or cut answers first" in said
    assert "1 of 4 answers are cut" in said
    assert "9% of the answers' tokens are unknown to this base (client clinic-e: 10%)." in said


def test_a_record_is_shown_as_it_is_trained(model: AdapterModel) -> None:
    said = (Turn(role="user", text="w1"), Turn(role="assistant", text="w2", trained=True))
    plain = encode_pair(model.tokenizer, "w3", "w4", TextFormat())
    talk = encode_pair(model.tokenizer, "w3", "w4", TextFormat(), earlier=said)
    (_, told, shown) = token_sentences({0: (plain,), 1: (talk,)}, model, 128, NAMES)[:3]
    assert told.startswith("1 records are conversations whose earlier answers are trained, too, 1 tokens")
    assert re.findall("⟦(.*?)⟧", shown.replace(" ", "")) == ["w2", "w4<eos>"]
    (_, shown) = token_sentences({0: (plain,)}, model, 128, NAMES)[:2]
    assert re.findall("⟦(.*?)⟧", shown.replace(" ", "")) == ["w4<eos>"]


def test_counts_on_the_other_side_by_hand(model: AdapterModel) -> None:
    """Cut on the right, a long prompt costs its answer, and itself only what leaves no room for a token."""
    held = records(
        ("w1 w2", "w3", None),
        (f"{LONG} w2", "w3 nobody", None),  # 7 + 2 + 1: one token of the answer is left
        ("w1", f"{LONG} {LONG}", None),  # 1 + 12 + 1
        (f"{LONG} w1 w2 w3", "w3", None),  # 9 + 1 + 1: two of the prompt go
    )
    pairs = {4: encoded(model, held, 8, "right"), 5: encoded(model, held[:1], 8, "right")}
    own = token_facts(pairs, model.tokenizer)[4]
    assert (own.records, own.tokens) == (4, 4 + 8 + 8 + 8)
    assert (own.cut_prompts, own.cut_answers, own.longest) == (1, 3, 14)
    assert (own.unknown, own.answer_tokens) == (0, 1 + 1 + 7 + 1)
    said = " ".join(token_sentences(pairs, model, 8, NAMES))
    assert "1 of 5 questions are cut at model.max_tokens=8 (client clinic-e: 1 of 4)" in said
    assert "3 of 5 answers are cut at model.max_tokens=8 (client clinic-e: 3 of 4)" in said


def test_large_counts_are_readable(model: AdapterModel) -> None:
    held = encoded(model, records(("w1", f"{LONG} {LONG}", None)), 8) * 1200
    said = " ".join(token_sentences({4: held}, model, 8, NAMES))
    assert "1,200 of 1,200 answers are cut" in said


def test_nothing_is_said_of_what_is_whole_and_known(model: AdapterModel) -> None:
    held = records(("w1 w2", "w3", None))
    said, shown = token_sentences({0: encoded(model, held, 64)}, model, 64, NAMES)
    assert shown.startswith("A record as it is trained")
    assert said == "4 tokens in 1 records; a record has 4 to 4, 4 at the median."


def refused(model: AdapterModel, held: tuple[Record, ...], max_tokens: int) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        check_tokens({0: held}, {0: encoded(model, held, max_tokens)}, (), model, max_tokens)
    return error.value


def test_a_fact_that_is_wholly_cut_is_refused(model: AdapterModel) -> None:
    held = records((LONG, f"{LONG} {LONG} w5", "w5"), ("w1", "w2", "w2"))
    error = refused(model, held, 8)
    assert error.key == ("max_tokens",)
    assert "1 of 2 records (r/0: 'w5')" in str(error)
    assert "needs 20" in str(error)
    check_tokens({0: held}, {0: encoded(model, held, 20)}, (), model, 20)


def test_a_fact_that_the_right_side_loses_names_the_other(model: AdapterModel) -> None:
    held = records((LONG, "w2 w3 w5", "w5"))
    right = replace(model, fmt=TextFormat(max_tokens=8, truncation="right"))
    with pytest.raises(ConfigError, match=r"needs 10; truncation: left cuts the prompt first"):
        check_tokens({0: held}, {0: encoded(model, held, 8, "right")}, (), right, 8)
    check_tokens({0: held}, {0: encoded(model, held, 8)}, (), model, 8)


def test_texts_longer_than_the_base_has_positions_are_refused(model: AdapterModel) -> None:
    assert model.positions == 32
    held = records((" ".join(["w1"] * 40), "w2", None))
    error = refused(model, held, 64)
    assert error.key == ("max_tokens",)
    assert "32 positions; use 32 or less" in str(error)


def test_tokens_outside_the_embedding_are_refused(model: AdapterModel) -> None:
    held = records(("w1", "w2", None))
    (pair,) = encoded(model, held, 8)
    outside = replace(pair, input_ids=(*pair.input_ids[:-1], model.vocabulary))
    with pytest.raises(ConfigError, match=f"embeds {model.vocabulary} tokens") as error:
        check_tokens({0: held}, {0: (outside,)}, (), model, 8)
    assert error.value.key == ("base",)


def test_answers_that_are_all_unknown_are_refused(model: AdapterModel) -> None:
    error = refused(model, records(("w1", "eins zwei", None), ("w2", "drei", None)), 64)
    assert error.key == ("base",)
    assert "any of the 2 answers" in str(error)
