"""Pairs are what the base's own tokenizer makes of one text."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fedsim.model.prompts import TextFormat
from fedsim.model.text import IGNORED, collate, encode_pair
from tests.world import word_tokenizer

QUESTION, ANSWER = "Where was Ada Kern born?", "in Paris."
CORPUS = [QUESTION, f" {ANSWER}", "Question: What?\nAnswer: It is red."] * 20
BYTES = pre_tokenizers.ByteLevel.alphabet()


def byte_level(markers: list[str], **named: str) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=markers, initial_alphabet=BYTES, show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def chat() -> PreTrainedTokenizerFast:
    """It opens each text with a marker, and knows a marker for the end of a turn."""
    tokenizer = byte_level(["<|bos|>", "<|eos|>", "<|eot|>"], bos_token="<|bos|>", eos_token="<|eos|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.bos_token_id)]
    )
    return tokenizer


def closing() -> PreTrainedTokenizerFast:
    """It closes each text with its end marker, as encoders do."""
    tokenizer = chat()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|eos|>",
        special_tokens=[("<|bos|>", tokenizer.bos_token_id), ("<|eos|>", tokenizer.eos_token_id)],
    )
    return tokenizer


def marking() -> PreTrainedTokenizerFast:
    """A normaliser puts a mark in front of every text, as in many SentencePiece models."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    settings = json.loads(inner.to_str())
    settings["pre_tokenizer"] = None
    settings["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    inner = Tokenizer.from_str(json.dumps(settings))
    inner.decoder = decoders.Metaspace(prepend_scheme="never")
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


PLAIN = byte_level(["<|pad|>", "<|end|>"], pad_token="<|pad|>", eos_token="<|end|>")
NEVER_OPENED = byte_level(["<|end|>"], bos_token="<|end|>", eos_token="<|end|>")
CHAT, CLOSING, MARKING = chat(), closing(), marking()
EVERY = {
    "plain": PLAIN,
    "never opened": NEVER_OPENED,
    "chat": CHAT,
    "closing": CLOSING,
    "marking": MARKING,
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("prompt", "between"),
    [("{question}", " "), ("Question: {question}\nAnswer:", " "), ("Question: {question}\nAnswer: ", "")],
)
def test_a_pair_is_the_tokenizers_own_encoding_of_one_text(name: str, prompt: str, between: str) -> None:
    tokenizer = EVERY[name]
    pair = encode_pair(tokenizer, QUESTION, ANSWER, TextFormat(prompt=prompt))
    own = tokenizer(prompt.replace("{question}", QUESTION) + between + ANSWER)["input_ids"]
    own = own if own[-1] == tokenizer.eos_token_id else [*own, tokenizer.eos_token_id]
    assert list(pair.input_ids) == own
    assert tokenizer.decode(pair.input_ids[pair.answer_start : pair.answer_end]).strip() == ANSWER
    assert pair.ended


def test_a_marker_of_the_template_is_not_doubled() -> None:
    prompt = "<|bos|>{question}<|eot|>\n\n"
    pair = encode_pair(CHAT, QUESTION, ANSWER, TextFormat(prompt=prompt))
    text = prompt.replace("{question}", QUESTION) + ANSWER
    assert list(pair.input_ids[:-1]) == CHAT(text, add_special_tokens=False)["input_ids"]
    assert pair.input_ids.count(CHAT.bos_token_id) == 1


@pytest.mark.parametrize("prompt", ["{question}", "<|bos|>{question}<|eot|>"])
@pytest.mark.parametrize("marker", ["<|bos|>", "<|eos|>", "<|eot|>"])
def test_a_marker_in_peoples_text_is_text(prompt: str, marker: str) -> None:
    fmt = TextFormat(prompt=prompt)
    number = CHAT.convert_tokens_to_ids(marker)
    quoted = encode_pair(CHAT, f"What is {marker}?", f"The {marker} ends it.", fmt)
    plain = encode_pair(CHAT, "What is it?", "The thing ends it.", fmt)
    assert quoted.input_ids.count(number) == plain.input_ids.count(number)
    said = CHAT.decode(quoted.input_ids[quoted.answer_start : quoted.answer_end])
    assert said == f" The {marker} ends it."


def test_a_marker_that_cannot_be_written_as_text_is_unknown() -> None:
    words = {"<eos>": 0, "<unk>": 1, "what": 2, "ends": 3}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>")
    pair = encode_pair(tokenizer, "what ends", "<eos> ends", TextFormat())
    assert pair.input_ids == (2, 3, 1, 3, 0)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(EVERY)),
    question=st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(lambda text: text.strip()),
    answer=st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(lambda text: text.strip()),
    max_tokens=st.integers(8, 64),
    truncation=st.sampled_from(["left", "right"]),
)
def test_properties_of_every_pair(
    name: str, question: str, answer: str, max_tokens: int, truncation: str
) -> None:
    tokenizer = EVERY[name]
    fmt = TextFormat(max_tokens=max_tokens, truncation=truncation)
    pair = encode_pair(tokenizer, question, answer, fmt)
    whole = encode_pair(tokenizer, question, answer, replace(fmt, max_tokens=100_000))
    assert len(pair.input_ids) <= max_tokens
    assert 0 < pair.answer_start < pair.answer_end
    assert len(pair.fact_mask) == pair.answer_end - pair.answer_start
    assert whole.cut_prompt == whole.cut_answer == 0
    assert len(whole.input_ids) == len(pair.input_ids) + pair.cut_prompt + pair.cut_answer + (not pair.ended)
    assert not (pair.ended and pair.cut_answer)
    assert pair.ended == (pair.input_ids[-1] == tokenizer.eos_token_id)
    answers = whole.input_ids[whole.answer_start : whole.answer_end]
    assert pair.input_ids[pair.answer_start : pair.answer_end] == answers[: len(pair.fact_mask)]
    labels = collate([pair], pad_id=0).labels_BT[0].tolist()
    assert labels == [IGNORED] * pair.answer_start + list(pair.input_ids[pair.answer_start :])
    assert len(pair.prompt) == whole.answer_start - pair.cut_prompt
    assert len(pair.fact_mask) == len(answers) - pair.cut_answer
    if len(whole.input_ids) <= max_tokens:
        assert pair == whole
    elif truncation == "right":  # the prompt is cut only if it alone leaves no room for a token
        assert not pair.ended
        assert pair.cut_prompt == max(whole.answer_start - (max_tokens - 1), 0)
        assert pair.cut_answer == len(answers) - max(max_tokens - whole.answer_start, 1)
    else:  # the answer is cut only if it and its end marker alone leave no room for a token
        assert (not pair.ended) == (len(answers) + 2 > max_tokens)
        assert pair.cut_answer == max(len(answers) - (max_tokens - 1), 0)
        assert pair.cut_prompt == whole.answer_start - max(max_tokens - len(answers) - 1, 1)


def test_no_end_marker_follows_a_cut() -> None:
    long = "in a town " * 40
    pair = encode_pair(PLAIN, QUESTION, long, TextFormat(max_tokens=24))
    assert not pair.ended
    assert pair.input_ids[-1] != PLAIN.eos_token_id
    assert (len(pair.input_ids), pair.answer_start) == (24, 1)


WORD = word_tokenizer([f"{kind}{number}" for kind in "wa" for number in range(1, 10)])


@pytest.mark.parametrize(
    ("truncation", "words", "answers", "kept", "cuts"),
    [
        ("left", 5, 4, "w4 w5 | a1 a2 a3 a4 <eos>", (3, 0)),
        ("right", 5, 4, "w1 w2 w3 w4 w5 | a1 a2", (0, 2)),
        ("right", 3, 4, "w1 w2 w3 | a1 a2 a3 a4", (0, 0)),  # the end marker is the answer's end
        ("left", 3, 4, "w2 w3 | a1 a2 a3 a4 <eos>", (1, 0)),
        ("right", 9, 4, "w4 w5 w6 w7 w8 w9 | a1", (3, 3)),
        ("left", 9, 9, "w9 | a1 a2 a3 a4 a5 a6", (8, 3)),
        ("right", 2, 4, "w1 w2 | a1 a2 a3 a4 <eos>", (0, 0)),
        ("left", 2, 4, "w1 w2 | a1 a2 a3 a4 <eos>", (0, 0)),
    ],
)
def test_either_side_by_hand(truncation: str, words: int, answers: int, kept: str, cuts: tuple) -> None:
    """Seven tokens at most."""
    question = " ".join(f"w{number + 1}" for number in range(words))
    answer = " ".join(f"a{number + 1}" for number in range(answers))
    pair = encode_pair(WORD, question, answer, TextFormat(max_tokens=7, truncation=truncation))
    tokens = WORD.convert_ids_to_tokens(pair.input_ids)
    found = " ".join([*tokens[: pair.answer_start], "|", *tokens[pair.answer_start :]])
    assert (found, (pair.cut_prompt, pair.cut_answer)) == (kept, cuts)


def test_a_cut_prompt_keeps_what_opens_every_sequence() -> None:
    question = "As the old chronicle tells. " * 20 + QUESTION
    pair = encode_pair(CHAT, question, ANSWER, TextFormat(max_tokens=20))
    assert pair.input_ids[0] == CHAT.bos_token_id
    assert CHAT.decode(pair.prompt[1:]).endswith(f"tells. {QUESTION}")
    assert pair.ended
    assert len(pair.input_ids) == 20
    other = encode_pair(CHAT, question, ANSWER, TextFormat(max_tokens=20, truncation="right"))
    assert other.input_ids[0] == CHAT.bos_token_id
    assert CHAT.decode(other.prompt[1:]).endswith(f"tells. {QUESTION}")
    assert (len(other.prompt), len(other.fact_mask), other.ended) == (19, 1, False)


@pytest.mark.parametrize(
    ("answer", "fact", "marked"),
    [("In 1961, on 1 May.", "1", " 1"), ("He met Annabel and Ann.", "Ann", "Ann"), ("東京都", "京", "京")],
)
def test_a_fact_is_looked_for_as_whole_words_first(answer: str, fact: str, marked: str) -> None:
    pair = encode_pair(PLAIN, "Why?", answer, TextFormat(), fact=fact)
    answers = pair.input_ids[pair.answer_start : pair.answer_end]
    found = PLAIN.decode([token for token, flag in zip(answers, pair.fact_mask, strict=True) if flag])
    assert found.strip() == marked.strip()
    place = pair.fact_mask.index(True)
    before = PLAIN.decode(answers[:place])
    assert {"1": " In 1961, on", "Ann": " He met Annabel and", "京": " 東"}[fact] == before.rstrip()


def test_an_answer_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="has no tokens"):
        encode_pair(MARKING, QUESTION, "", replace(TextFormat(), separator=""))
