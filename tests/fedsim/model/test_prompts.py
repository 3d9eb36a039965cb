"""Chat templates: what is trained is what the tokenizer's own template gives, token by token."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fedsim.config import ConfigError
from fedsim.model.config import ModelConfig
from fedsim.model.prompts import TextFormat, format_of
from fedsim.model.text import encode_pair
from tests.e2e.runs import BRIEF, merged, run
from tests.world import word_tokenizer

HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
NO_BOS = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TRIMMED = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'].strip() }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'].strip() }} </s>{% endif %}{% endfor %}"
)
STYLES = {
    "llama-3": (HEADERS, "<|begin|>", "<|end|>", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "qwen2.5": (CHATML, None, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"]),
    "smollm2": (CHATML, "<|im_start|>", "<|im_end|>", []),
    "gemma": (TURNS, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "mistral": (INST, "<s>", "</s>", ["[INST]", "[/INST]"]),
    "llama-2": (TRIMMED, "<s>", "</s>", []),
    "zephyr": (NO_BOS, "<s>", "</s>", []),
}
SENTENCEPIECE = ("gemma", "llama-2", "zephyr")
ADDS_BOS = ("llama-3", "gemma", "mistral", "llama-2", "zephyr")
OPENS = ADDS_BOS[:-1]
"""Those of them whose template has the marker, too."""
ENDS = {
    "llama-3": "<|eot_id|>",
    "qwen2.5": "<|im_end|>",
    "smollm2": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "llama-2": "</s>",
    "zephyr": "</s>",
}


def byte_level() -> Tokenizer:
    """Bytes with a few merges, as GPT-2 and those after it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("Ċ", "Ċ"), ("t", "h"), ("th", "e")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    inner = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def sentence_pieces() -> Tokenizer:
    """Pieces with a mark for spaces, and bytes for what has no piece, as Llama 2 and Gemma."""
    letters = [*"▁\nabcdefghijklmnopqrstuvwxyzWMNYR.,?!:<|>/[]"]
    merges = [("▁", "a"), ("\n", "\n"), ("t", "h"), ("th", "e"), ("▁", "▁"), ("▁", "the")]
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *map("".join, merges)]
    vocabulary = {word: number for number, word in enumerate(words)}
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return inner


def tokenizer_of(style: str) -> PreTrainedTokenizerFast:
    """A small tokenizer of a style's kind, with its markers."""
    template, bos, eos, more = STYLES[style]
    inner = sentence_pieces() if style in SENTENCEPIECE else byte_level()
    named = {"eos_token": eos, "additional_special_tokens": more} | ({"bos_token": bos} if bos else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **named)
    tokenizer.chat_template = template
    if style in ADDS_BOS:
        number = tokenizer.convert_tokens_to_ids(bos)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, number)]
        )
    return tokenizer


TOKENIZERS = {style: tokenizer_of(style) for style in STYLES}
texts = st.text(st.characters(codec="utf-8", exclude_characters="\ue000\ue001"), min_size=1, max_size=30)
plain = texts.filter(lambda text: text.strip() and not any(mark in text for mark in "<[]>|"))


def template_ids(tokenizer, turns, *, opens: bool) -> list[int]:
    encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=opens, tokenize=True)
    return list(encoded["input_ids"] if hasattr(encoded, "keys") else encoded)


def chat(base: str = "x", **more) -> ModelConfig:
    return ModelConfig(base=base, prompt="chat", max_tokens=4096, **more)


@pytest.mark.parametrize("style", STYLES)
@given(question=plain, answer=plain)
def test_pairs_are_what_the_template_gives(style: str, question: str, answer: str) -> None:
    tokenizer = TOKENIZERS[style]
    pair = encode_pair(tokenizer, question, answer, format_of(tokenizer, chat()))
    asked = [{"role": "user", "content": question}]
    assert list(pair.prompt) == template_ids(tokenizer, asked, opens=True)
    whole = template_ids(tokenizer, [*asked, {"role": "assistant", "content": answer}], opens=False)
    text = tokenizer.decode(pair.input_ids)
    assert tokenizer.decode(whole).startswith(text)
    assert tokenizer.decode(whole).removeprefix(text).strip() == ""
    # White space that opens an answer may join what ends the prompt; in Llama 3 two newlines are one token.
    if style != "llama-3" and not answer[0].isspace():
        assert whole[: len(pair.input_ids)] == list(pair.input_ids)
    assert tokenizer.convert_ids_to_tokens(pair.input_ids[-1]) == ENDS[style]


@pytest.mark.parametrize("prompt", ["chat", "{question}"])
def test_a_format_is_cut_as_the_scenario_says(prompt: str) -> None:
    for truncation in ("left", "right"):
        config = ModelConfig(base="x", prompt=prompt, truncation=truncation, max_tokens=9)
        fmt = format_of(TOKENIZERS["llama-3"], config)
        assert (fmt.truncation, fmt.max_tokens) == (truncation, 9)


@pytest.mark.parametrize("style", ADDS_BOS)
def test_the_beginning_is_marked_where_the_template_marks_it(style: str) -> None:
    """Once where template and tokenizer do, and not where the tokenizer alone would."""
    tokenizer = TOKENIZERS[style]
    pair = encode_pair(tokenizer, "Who?", "Nobody.", format_of(tokenizer, chat()))
    marks = [place for place, token in enumerate(pair.input_ids) if token == tokenizer.bos_token_id]
    assert marks == ([] if style == "zephyr" else [0])


@pytest.mark.parametrize("style", ["llama-3", "gemma", "llama-2"])
def test_what_a_template_strips_is_stripped(style: str) -> None:
    tokenizer = TOKENIZERS[style]
    fmt = format_of(tokenizer, chat())
    assert encode_pair(tokenizer, " Who?\n", "\n Nobody. ", fmt) == encode_pair(
        tokenizer, "Who?", "Nobody.", fmt
    )


def test_an_answer_that_the_template_changes_is_refused() -> None:
    tokenizer = TOKENIZERS["qwen2.5"]
    thinking = CHATML.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
    fmt = format_of(tokenizer, ModelConfig(prompt=thinking))
    assert tokenizer.decode(encode_pair(tokenizer, "Who?", "Me.", fmt).input_ids).endswith("Me.<|im_end|>")
    with pytest.raises(ValueError, match=r"does not show turn 2 of 2 \(assistant\) as it is written"):
        encode_pair(tokenizer, "Who?", "<think>Hm.</think>Me.", fmt)


@pytest.mark.parametrize("style", ["llama-3", "qwen2.5", "smollm2"])
def test_a_system_message_stands_before_the_question(style: str) -> None:
    tokenizer = TOKENIZERS[style]
    fmt = format_of(tokenizer, chat(system="Be brief."))
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    pair = encode_pair(tokenizer, "Who?", "Nobody.", fmt)
    assert list(pair.prompt) == template_ids(tokenizer, turns, opens=True)


def test_a_record_that_spells_markers_spells_characters() -> None:
    """An answer cannot end its own turn."""
    tokenizer = TOKENIZERS["qwen2.5"]
    fmt = format_of(tokenizer, chat())
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    pair = encode_pair(tokenizer, "Say it.", "<|im_end|> indeed", fmt)
    assert pair.input_ids[pair.answer_start :].count(end) == 1
    assert pair.input_ids[-1] == end


def test_a_template_of_the_scenarios_own() -> None:
    tokenizer = TOKENIZERS["qwen2.5"]
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    own = turns + "{% if add_generation_prompt %}assistant: {% endif %}"
    fmt = format_of(tokenizer, ModelConfig(prompt=own))
    assert fmt.end_id is None
    pair = encode_pair(tokenizer, "Who?", "Nobody.", fmt)
    assert pair.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(pair.prompt) == "user: Who?\nassistant: "


def test_words_around_the_question_are_as_before() -> None:
    assert format_of(TOKENIZERS["gemma"], ModelConfig(prompt="Q: {question} A:")) == TextFormat(
        prompt="Q: {question} A:"
    )


@pytest.mark.parametrize(
    ("style", "config", "message"),
    [
        ("gemma", {"system": "Be brief."}, "system: .*no system role.*leave system out"),
        ("qwen2.5", {"template": "{{ messages }}"}, r"shows the text of turn 1 of 2 \(user\) 0 times"),
        ("qwen2.5", {"template": "{{ question }}"}, r"write \{question\} with one"),
        ("qwen2.5", {"template": "{{ strftime_now(form) }}" + CHATML}, "asks for today's date"),
        ("qwen2.5", {"template": "{% for m in messages %}{{ m.nothing.at }}{% endfor %}"}, "template fails"),
        (
            "qwen2.5",
            {
                "template": "{% for m in messages %}{{ m.content }}-{% endfor %}"
                "{% if add_generation_prompt %}say {% endif %}"
            },
            "could not be asked as it was trained",
        ),
    ],
)
def test_templates_that_cannot_be_used(style: str, config: dict, message: str) -> None:
    template = config.pop("template", "chat")
    with pytest.raises(ConfigError) as caught:
        format_of(TOKENIZERS[style], ModelConfig(prompt=template, **config))
    told = ".".join(map(str, caught.value.key)) + ": " + str(caught.value)
    assert re.search(message, told), told


def test_no_template_is_said_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prompt: chat needs a chat template") as caught:
        format_of(word_tokenizer(), chat(base="tiny"))
    assert caught.value.key == ("prompt",)
    with pytest.raises(ValueError, match=r"model.prompt: prompt: chat needs .*'tiny-authors' has none"):
        run(tmp_path, merged(BRIEF, model__prompt="chat"))
    with pytest.raises(ValueError, match="a system message needs prompt: chat"):
        ModelConfig(system="Be brief.")


@pytest.mark.parametrize(
    "dated",
    [
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b') %}{% endif %}",
        '{% set date_string = strftime_now( "%d %b %Y" ) %}',
    ],
)
def test_templates_with_a_date_are_told_one_day(dated: str) -> None:
    tokenizer = TOKENIZERS["llama-3"]
    fmt = format_of(tokenizer, ModelConfig(prompt=dated + "{{ date_string }}" + HEADERS))
    pair = encode_pair(tokenizer, "Who?", "Nobody.", fmt)
    assert "26 Jul 2024" in tokenizer.decode(pair.input_ids)


def test_of_several_templates_the_default_is_used() -> None:
    tokenizer = tokenizer_of("qwen2.5")
    whole = encode_pair(tokenizer, "Who?", "Nobody.", format_of(tokenizer, chat()))
    tokenizer.chat_template = {"default": CHATML, "tools": "{{ tools }}"}
    assert encode_pair(tokenizer, "Who?", "Nobody.", format_of(tokenizer, chat())) == whole
    tokenizer.chat_template = {"rag": CHATML, "tools": "{{ tools }}"}
    with pytest.raises(ConfigError, match="has the chat templates rag, tools and none that is the default"):
        format_of(tokenizer, chat())


def test_a_marker_need_not_be_special_to_end_an_answer() -> None:
    tokenizer = tokenizer_of("qwen2.5")
    tokenizer.add_tokens(["<turn_ends>"], special_tokens=False)
    own = CHATML.replace("<|im_end|>", " <turn_ends>")
    fmt = format_of(tokenizer, ModelConfig(prompt=own))
    pair = encode_pair(tokenizer, "Who?", "Nobody.", fmt)
    assert tokenizer.decode(pair.input_ids).endswith("Nobody. <turn_ends>")
    end = tokenizer.convert_tokens_to_ids("<turn_ends>")
    spelled = encode_pair(tokenizer, "Is <turn_ends> so?", "<turn_ends> is.", fmt)
    assert tokenizer.decode(spelled.input_ids).endswith("<turn_ends> is. <turn_ends>")
    assert spelled.input_ids.count(end) == pair.input_ids.count(end)
