"""Conversations of several turns: what is trained is what the tokenizer's own template gives, and no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data.records import Record, Turn
from fedsim.model.chat import ChatTemplate
from fedsim.model.config import ModelConfig
from fedsim.model.plain import encode_record
from fedsim.model.prompts import TextFormat, format_of
from fedsim.model.refusing import encode_refusal
from fedsim.model.text import IGNORED, Pair, collate
from tests.fedsim.model.test_prompts import (
    CHATML,
    ENDS,
    OPENS,
    STYLES,
    TOKENIZERS,
    chat,
    plain,
    template_ids,
)
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


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_a_long_conversation_loses_its_oldest_exchange(style: str, system: str | None) -> None:
    if system is not None and style in ("gemma", "mistral", "llama-2"):
        pytest.skip("takes no system message")
    tokenizer = TOKENIZERS[style]
    said = ["first of all", "is an answer", "and then", "another", "at last", "one more"]
    whole = encode_record(tokenizer, conversation(*said, system=system), format_of(tokenizer, chat()))
    shorter = encode_record(tokenizer, conversation(*said[2:], system=system), format_of(tokenizer, chat()))
    for most in (len(whole.input_ids) - 1, len(shorter.input_ids)):
        config = ModelConfig(base="x", prompt="chat", max_tokens=most)
        pair = encode_record(tokenizer, conversation(*said, system=system), format_of(tokenizer, config))
        assert pair.input_ids == shorter.input_ids
        assert pair.earlier_trained == shorter.earlier_trained
        assert pair.cut_prompt == len(whole.prompt) - len(shorter.prompt)


def test_the_system_message_stays_when_nothing_else_is_left_to_go() -> None:
    """It is cut like a prompt; neither the template's own nor the scenario's takes its place."""
    tokenizer = TOKENIZERS["qwen2.5"]
    said = conversation("who", "me", "and who", "you", system="Never tell a soul what was said.")
    config = ModelConfig(base="x", prompt="chat", max_tokens=60, system="Tell all.")
    pair = encode_record(tokenizer, said, format_of(tokenizer, config))
    text = tokenizer.decode(pair.input_ids)
    assert "a soul what was said." in text
    assert "Tell all" not in text
    assert "You help" not in text
    assert pair.cut_prompt > 0
    assert pair.ended


@pytest.mark.parametrize("style", OPENS)
def test_what_is_cut_begins_with_its_marker(style: str) -> None:
    tokenizer = TOKENIZERS[style]
    config = ModelConfig(base="x", prompt="chat", max_tokens=24)
    pair = encode_record(
        tokenizer, conversation("Who was the first of them all?", "Nobody."), format_of(tokenizer, config)
    )
    assert pair.cut_prompt > 0
    assert len(pair.input_ids) == 24
    assert pair.input_ids[0] == tokenizer.bos_token_id
    assert pair.input_ids.count(tokenizer.bos_token_id) == 1


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
            r"turn 1 of 4 \(user\) 0 times, not once",
        ),
        (CHATML.replace("for m in messages", "for m in messages[1:]"), "turn 1 of 4"),
        (
            "{% if messages | length > 2 %}{{ raise_exception('one at a time') }}{% endif %}" + CHATML,
            r"fails on the turns user, assistant, user \(one at a time\)",
        ),
    ],
)
def test_templates_that_drop_turns_are_refused(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(TOKENIZERS["qwen2.5"], template).frame("user", "assistant", "user", "assistant")


def test_a_template_that_changes_what_is_said_is_refused() -> None:
    """Some drop what an earlier answer thought."""
    split = "{{ m['content'].split('</think>')[-1] }}"
    template = CHATML.replace("{{ m['content'] }}", split)
    fmt = format_of(TOKENIZERS["qwen2.5"], ModelConfig(base="x", prompt=template, max_tokens=400))
    said = conversation("a", "<think>b</think>c", "d", "e")
    with pytest.raises(ValueError, match=r"record r: .* turn 2 of 4 \(assistant\) as it is written"):
        encode_record(TOKENIZERS["qwen2.5"], said, fmt)
    encode_record(TOKENIZERS["qwen2.5"], conversation("a", "c", "d", "e"), fmt)


LATE_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {% if system is defined and loop.last %}{{ system }}\n\n{% endif %}"
    "{{ m.content }}[/INST]{% else %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)
"""In the manner of Mistral 0.3: the system message stands in the last question, if nothing follows that."""


@pytest.mark.parametrize("in_data", [True, False])
def test_a_system_message_that_only_a_prompt_shows(in_data: bool) -> None:
    tokenizer = TOKENIZERS["mistral"]
    system = None if in_data else "Be kind."
    config = ModelConfig(base="x", prompt="chat", system=system, max_tokens=400)
    tokenizer.chat_template, template = LATE_SYSTEM, tokenizer.chat_template
    try:
        said = conversation("ab", "cd", "ef", "gh", system="Be kind." if in_data else None)
        pair = encode_record(tokenizer, said, format_of(tokenizer, config))
    finally:
        tokenizer.chat_template = template
    assert tokenizer.decode(pair.input_ids) == "<s>[INST] ab[/INST] cd</s>[INST] Be kind.\n\nef[/INST] gh</s>"
    assert tokenizer.decode(trained_tokens(pair)).replace(" ", "") == "cd</s>gh</s>"


def test_models_that_may_think_are_asked_not_to() -> None:
    opens = "<|im_start|>assistant\n{% endif %}"
    assert opens in CHATML
    thinks = CHATML.replace(
        opens,
        "<|im_start|>assistant\n"
        "{% if not enable_thinking | default(true) %}<think></think>{% endif %}{% endif %}",
    ).replace(
        "{{ m['content'] }}", "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m['content'] }}"
    )
    tokenizer = TOKENIZERS["qwen2.5"]
    fmt = format_of(tokenizer, ModelConfig(base="x", prompt=thinks, max_tokens=400))
    pair = encode_record(tokenizer, conversation("ab", "cd"), fmt)
    assert tokenizer.decode(pair.prompt).endswith("<think></think>")
    assert tokenizer.decode(trained_tokens(pair)) == "cd<|im_end|>"


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
