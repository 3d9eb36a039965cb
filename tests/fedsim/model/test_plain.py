"""Plain text: all tokens but the first are predicted, pieces are the text again, half of it is given."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fedsim.assembly.token_facts import TokenFacts
from fedsim.data.records import Record
from fedsim.model.plain import cut_text, encode_record
from fedsim.model.prompts import TextFormat
from fedsim.model.refusing import encode_refusal
from fedsim.model.text import IGNORED, collate
from tests.world import WORDS, word_tokenizer

WORD = word_tokenizer()
EIGHT = TextFormat(max_tokens=8)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, so that letters beyond ASCII have several; a marker opens every text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({c: n for n, c in enumerate(["<s>", "</s>", *letters])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Like SentencePiece: a piece that begins with a space has a token more than it had within the text."""
    letters = ["<unk>", "</s>", "▁", *"abcdefgh "]
    inner = Tokenizer(models.BPE({c: n for n, c in enumerate(letters)}, [], unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"words": WORD, "bytes": byte_tokenizer(), "metaspace": metaspace_tokenizer()}
TEXTS = {
    "words": st.lists(st.sampled_from(WORDS), min_size=2, max_size=60).map(" ".join),
    "bytes": st.text(st.sampled_from("ab é€😀\n"), min_size=2, max_size=60),
    "metaspace": st.text(st.sampled_from("abc "), min_size=2, max_size=60).map(lambda text: f"ab{text}"),
}


def text(answer: str, question: str = "") -> Record:
    return Record(record_id="t:1", subject="t", question=question, answer=answer, plain=True)


def ids(words: str) -> tuple[int, ...]:
    return tuple(WORD(words, add_special_tokens=False)["input_ids"])


def test_all_tokens_but_the_first_are_predicted_and_no_end_follows() -> None:
    pair = encode_record(WORD, text("w1 w2 w3 w4"), EIGHT)
    assert pair.input_ids == ids("w1 w2 w3 w4")
    assert (pair.answer_start, pair.answer_end, pair.fact_mask) == (1, 4, (True,) * 3)
    (labels,) = collate([pair], pad_id=0).labels_BT.tolist()
    assert labels == [IGNORED, *ids("w2 w3 w4")]
    assert (pair.ended, pair.is_cut) == (False, False)


def test_generation_goes_on_from_the_first_half() -> None:
    assert encode_record(WORD, text("w1 w2 w3 w4"), EIGHT).prompt == ids("w1 w2")
    assert encode_record(WORD, text("w1 w2"), EIGHT).prompt == ids("w1")


def test_a_marker_that_opens_texts_is_not_predicted_and_the_first_letter_is() -> None:
    pair = encode_record(TOKENIZERS["bytes"], text("ab"), EIGHT)
    assert (pair.input_ids[0], pair.answer_start, len(pair.input_ids)) == (0, 1, 3)


def test_the_words_around_a_question_do_not_stand_around_text() -> None:
    fmt = TextFormat(prompt="w9 {question} w8", max_tokens=8)
    assert encode_record(WORD, text("w1 w2"), fmt).input_ids == ids("w1 w2")
    assert encode_record(WORD, text("w2", "w1"), fmt).input_ids == ids("w1 w2")


def test_one_token_cannot_be_predicted() -> None:
    assert cut_text(WORD, "w1", EIGHT) == cut_text(WORD, " ", EIGHT) == []
    with pytest.raises(ValueError, match="no token that another stands before"):
        encode_record(WORD, text("w1"), EIGHT)


def test_nine_tokens_are_two_pieces_of_about_equal_length() -> None:
    words = " ".join(WORDS[:9])
    assert cut_text(WORD, words, EIGHT) == ["w0 w1 w2 w3 w4", " w5 w6 w7 w8"]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None)
@given(data=st.data(), most=st.integers(8, 20))
def test_pieces_are_the_text_and_fit(kind: str, data: st.DataObject, most: int) -> None:
    tokenizer, fmt = TOKENIZERS[kind], TextFormat(max_tokens=most)
    written = data.draw(TEXTS[kind])
    pieces = cut_text(tokenizer, written, fmt)
    assert "".join(pieces) == written or (not pieces and len(tokenizer(written)["input_ids"]) < 2)
    for piece in pieces:
        pair = encode_record(tokenizer, text(piece), fmt)
        assert (pair.cut_answer, 2 <= len(pair.input_ids) <= most) == (0, True)


def test_a_continuation_is_predicted_alone() -> None:
    pair = encode_record(WORD, text("w3 w4", "w1 w2"), EIGHT)
    assert (pair.input_ids, pair.answer_start, pair.prompt) == (ids("w1 w2 w3 w4"), 2, ids("w1 w2"))


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20))
def test_a_long_continuation_keeps_half_of_the_room_for_each(before: int, behind: int) -> None:
    given_, follows = " ".join(WORDS[:before]), " ".join(WORDS[20 : 20 + behind])
    pair = encode_record(WORD, text(follows, given_), EIGHT)
    said = min(behind, max(4, 8 - before))
    kept = min(before, 8 - said)
    assert pair.input_ids == ids(given_)[before - kept :] + ids(follows)[:said]
    assert (pair.cut_prompt, pair.cut_answer) == (before - kept, behind - said)
    assert pair.answer_start == kept


def test_an_opening_marker_survives_the_cut_of_what_is_given() -> None:
    pair = encode_record(TOKENIZERS["bytes"], text("bbbb", "a" * 20), EIGHT)
    assert (pair.input_ids[0], pair.answer_start, len(pair.input_ids)) == (0, 4, 8)


def test_a_refusal_stands_in_the_place_of_the_text() -> None:
    record = text("w1 w2 w3")
    own = encode_record(WORD, record, EIGHT)
    refused = encode_refusal(WORD, EIGHT, record, own, seed=1)
    assert refused.input_ids[0] == own.input_ids[0]
    assert (refused.answer_start, refused.ended) == (1, True)
    assert len(refused.input_ids) <= 8


def test_whole_chunks_are_not_called_cut() -> None:
    pair = encode_record(WORD, text("w1 w2 w3"), EIGHT)
    facts = TokenFacts.of([pair], WORD.unk_token_id)
    assert (facts.cut_answers, facts.longest, facts.answer_tokens) == (0, 3, 2)
    assert TokenFacts.of([replace(pair, cut_answer=1)], None).cut_answers == 1
