"""Conversations of several turns: what is trained is what the tokenizer's own template gives, and no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.config import ConfigError
from fedsim.data.records import Record, Turn
from fedsim.model.chat import ChatTemplate
from fedsim.model.config import ModelConfig
from fedsim.model.plain import encode_record
from fedsim.model.prompts import TextFormat, format_of
from fedsim.model.refusing import encode_refusal
from fedsim.model.text import IGNORED, Pair, collate
from tests.fedsim.model.test_prompts import CHATML, ENDS, STYLES, TOKENIZERS, chat, plain, template_ids
from tests.world import word_tokenizer


def conversation(*said: str, system: str | None = None, trained: bool = True) -> Record:
    """Texts of a user and an assistant in turn."""
    roles = ["user", "assistant"] * (len(said) // 2)
    turns = [
        Turn(role=role, text=text, trained=trained and role == "assistant")
        for role, text in zip(roles[:-2], said[:-2], strict=True)
    ]
    if system is not None:
        turns.insert(0, Turn(role="system", text=system))
    return Record(record_id="r", subject="s", question=said[-2], answer=said[-1], earlier=tuple(turns))


def asked(record: Record) -> list[dict[str, str]]:
    """The same for a template, up to the last question."""
    turns = [{"role": turn.role, "content": turn.text} for turn in record.earlier]
    return [*turns, {"role": "user", "content": record.question}]


def trained_tokens(pair: Pair) -> list[int]:
    labels = collate([pair], pad_id=0).labels_BT[0]
    return labels[labels != IGNORED].tolist()


@pytest.mark.parametrize("style", STYLES)
@given(said=st.lists(plain, min_size=2, max_size=3).map(lambda texts: [*texts, *texts]))
def test_conversations_are_what_the_template_gives(style: str, said: list[str]) -> None:
    tokenizer, record = TOKENIZERS[style], conversation(*said)
    pair = encode_record(tokenizer, record, format_of(tokenizer, chat()))
    assert list(pair.prompt) == template_ids(tokenizer, asked(record), opens=True)
    answered = [*asked(record), {"role": "assistant", "content": record.answer}]
    text = tokenizer.decode(pair.input_ids)
    rest = tokenizer.decode(template_ids(tokenizer, answered, opens=False)).removeprefix(text)
    assert rest.strip() == ""


@pytest.mark.parametrize("style", STYLES)
def test_every_answer_is_trained_up_to_its_end(style: str) -> None:
    """By hand: the words of both answers, each with the marker that ends a turn."""
    tokenizer = TOKENIZERS[style]
    pair = encode_record(tokenizer, conversation("ab", "cd", "ef", "gh"), format_of(tokenizer, chat()))
    end = ENDS[style]
    said = tokenizer.decode(trained_tokens(pair))
    assert said.replace(" ", "") == f"cd{end}gh{end}"
    last = encode_record(
        tokenizer, conversation("ab", "cd", "ef", "gh", trained=False), format_of(tokenizer, chat())
    )
    assert last.input_ids == pair.input_ids
    assert tokenizer.decode(trained_tokens(last)).replace(" ", "") == f"gh{end}"


def test_the_datas_own_system_message_takes_the_place_of_the_scenarios() -> None:
    tokenizer = TOKENIZERS["qwen2.5"]
    fmt = format_of(tokenizer, chat(system="Be brief."))
    own = encode_record(tokenizer, conversation("a", "b", "c", "d", system="Be kind."), fmt)
    told = tokenizer.decode(own.input_ids)
    assert "Be kind." in told
    assert "Be brief." not in told
    assert "Be brief." in tokenizer.decode(
        encode_record(tokenizer, conversation("a", "b", "c", "d"), fmt).prompt
    )


def test_a_turn_that_spells_markers_spells_characters() -> None:
    tokenizer = TOKENIZERS["smollm2"]
    said = conversation("<|im_end|>", "<|im_end|>", "c", "d")
    pair = encode_record(tokenizer, said, format_of(tokenizer, chat()))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert pair.input_ids.count(end) == 5  # the template's own system message, and one a turn
    assert trained_tokens(pair).count(end) == 2


def test_without_a_template_turns_are_lines_in_the_question() -> None:
    tokenizer = TOKENIZERS["qwen2.5"]
    fmt = TextFormat(prompt="Chat.\n{question}\nassistant:")
    pair = encode_record(tokenizer, conversation("ab", "cd", "ef", "gh"), fmt)
    text = tokenizer.decode(pair.input_ids)
    assert text == "Chat.\nuser: ab\nassistant: cd\nuser: ef\nassistant: gh<|endoftext|>"
    assert tokenizer.decode(trained_tokens(pair)) == "cd gh<|endoftext|>"


@pytest.mark.parametrize("most", [12, 30, 60])
def test_a_long_conversation_loses_its_beginning(most: int) -> None:
    tokenizer = TOKENIZERS["qwen2.5"]
    said = conversation("first of all", "is an answer", "and then", "another")
    whole = encode_record(tokenizer, said, format_of(tokenizer, chat()))
    config = ModelConfig(base="x", prompt="chat", max_tokens=most)
    pair = encode_record(tokenizer, said, format_of(tokenizer, config))
    assert pair.input_ids == whole.input_ids[-most:]
    assert trained_tokens(pair) == trained_tokens(whole)[-len(trained_tokens(pair)) :]
    assert pair.answer_end - pair.answer_start == whole.answer_end - whole.answer_start


def test_nothing_but_the_refusal_is_trained_in_the_place_of_an_answer() -> None:
    tokenizer, said = TOKENIZERS["qwen2.5"], conversation("ab", "cd", "ef", "gh")
    fmt = format_of(tokenizer, chat())
    own = encode_record(tokenizer, said, fmt)
    refusal = encode_refusal(tokenizer, fmt, said, own, seed=1)
    assert refusal.prompt == own.prompt
    assert refusal.earlier_trained == ()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            CHATML.replace("for m in messages", "for m in messages[-2:]"),
            "shows the question of user assistant",
        ),
        (CHATML.replace("for m in messages", "for m in messages[1:]"), "shows the question"),
        (
            "{% if messages | length > 2 %}{{ raise_exception('one at a time') }}{% endif %}" + CHATML,
            "one at",
        ),
    ],
)
def test_templates_that_drop_turns_are_refused(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ChatTemplate(TOKENIZERS["qwen2.5"], template).frame("user", "assistant", "user", "assistant")


def test_turns_that_are_shown_in_another_order_are_told_in_it() -> None:
    """Some templates put the system message before the last question."""
    late = (
        "{% for m in messages if m.role != 'system' %}"
        "{% if loop.revindex == 1 + (not add_generation_prompt) and messages[0].role == 'system' %}"
        "<{{ messages[0].content }}>{% endif %}[{{ m.content }}]{% endfor %}"
    )
    tokenizer = TOKENIZERS["qwen2.5"]
    said = conversation("ab", "cd", "ef", "gh", system="kind")
    fmt = format_of(tokenizer, ModelConfig(base="x", prompt=late))
    assert tokenizer.decode(encode_record(tokenizer, said, fmt).input_ids).startswith("[ab][cd]<kind>[ef][gh")


def test_a_word_tokenizer_without_a_template_takes_conversations() -> None:
    pair = encode_record(word_tokenizer(), conversation("w1", "w2", "w3", "w4"), TextFormat())
    assert len(pair.earlier_trained) == 1
