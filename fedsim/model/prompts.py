"""How a question becomes a prompt: words around it, or the chat template of the base.

A chat template is asked once, with marks in the place of question and answer; every record gets what it puts
around them. What stands between the generation prompt and the answer belongs to the answer, so that training
and generation see the same tokens at the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedsim.config import ConfigError

if TYPE_CHECKING:
    from fedsim.model.config import ModelConfig

QUESTION, ANSWER = "\ue000", "\ue001"
"""Marks for which no template has a use."""
DATE = "26 Jul 2024"
"""The day that templates with a date are told, so that a scenario gives the same prompts on every day."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a text. Markers in a ``quoted`` one are plain characters; ``answers`` follow the prompt."""

    text: str
    quoted: bool = False
    answers: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFormat:
    """How a question becomes a prompt. ``{question}`` is replaced; the answer follows the prompt.

    ``separator`` stands between prompt and answer; unless it is ``exact``, a prompt that ends in white space
    of its own has none. ``strips`` takes white space off both ends of questions and answers. ``end_id`` is
    the token that ends an answer; None: the tokenizer's end-of-sequence marker. ``truncation`` is the side on
    which a pair of more than ``max_tokens`` is cut first.
    """

    prompt: str = "{question}"
    separator: str = " "
    max_tokens: int = 128
    exact: bool = False
    strips: bool = False
    end_id: int | None = None
    truncation: Literal["left", "right"] = "left"

    def __post_init__(self) -> None:
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt={self.prompt!r} must contain the placeholder {{question}}")

    def end(self, tokenizer: Any) -> int:
        """The token that ends an answer."""
        return int(tokenizer.eos_token_id if self.end_id is None else self.end_id)

    def clean(self, text: str) -> str:
        """A question or an answer as it stands in the text."""
        return text.strip() if self.strips else text

    def parts(self, question: str, answer: str) -> tuple[Part, ...]:
        """The text of a pair in parts; what people wrote is told from what the scenario's author wrote."""
        around = self.prompt.split("{question}")
        parts = [Part(text=around[0])]
        for after in around[1:]:
            parts += [Part(text=question, quoted=True), Part(text=after)]
        last = next((part.text for part in reversed(parts) if part.text), "")
        bare = last[-1:].isspace() and not self.exact
        parts.append(Part(text="" if bare else self.separator, answers=True))
        return (*parts, Part(text=answer, quoted=True, answers=True))


def is_template(prompt: str) -> bool:
    """Whether a prompt is a chat template, in Jinja, of the scenario's own."""
    return "{{" in prompt or "{%" in prompt


def format_of(tokenizer: Any, config: ModelConfig) -> TextFormat:
    """The format that a scenario asks for, with this tokenizer.

    Raises:
        ConfigError: there is no chat template, or it cannot be used; the key is ``prompt`` or ``system``.
    """
    if config.prompt != "chat" and not is_template(config.prompt):
        return TextFormat(prompt=config.prompt, max_tokens=config.max_tokens, truncation=config.truncation)
    template = config.prompt if is_template(config.prompt) else tokenizer.chat_template
    if template is None:
        raise ConfigError(
            f"prompt: chat needs a chat template, and base={config.base!r} has none; give a prompt with the "
            "placeholder {question}, or a template in Jinja",
            "prompt",
        )
    chat = _Chat(tokenizer, template, config.system)
    before, opening = chat.cut(chat.rendered(QUESTION), QUESTION)
    whole = chat.rendered(QUESTION, ANSWER)
    start, rest = chat.cut(whole, QUESTION)
    between, after = chat.cut(rest, ANSWER)
    if start != before or not between.startswith(opening):
        raise ConfigError(
            f"the chat template opens an answer with {opening!r} when it is asked for one, and with "
            f"{between!r} where one stands, so a model could not be asked as it was trained; give a template "
            "that agrees with itself",
            "prompt",
        )
    padded = chat.rendered(f" {QUESTION}", f" {ANSWER}")
    return TextFormat(
        prompt=f"{before}{{question}}{opening}",
        separator=between.removeprefix(opening),
        max_tokens=config.max_tokens,
        exact=True,
        strips=f" {QUESTION}" not in padded or f"{between} {ANSWER}" not in padded,
        end_id=_first_marker(tokenizer, after),
        truncation=config.truncation,
    )


@dataclass(frozen=True)
class _Chat:
    """A chat template in use."""

    tokenizer: Any
    template: str
    system: str | None

    def rendered(self, question: str, answer: str | None = None) -> str:
        """The text of a conversation: up to where an answer begins, or with one."""
        turns = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns.append({"role": "user", "content": question})
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns,
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=answer is None,
                    date_string=DATE,
                )
            )
        except Exception as error:
            key = "prompt" if self.system is None else "system"
            hint = "" if self.system is None else "; some take no system message: leave system out"
            raise ConfigError(f"the chat template fails ({error}){hint}", key) from error

    def cut(self, text: str, mark: str) -> tuple[str, str]:
        """What a template puts before and behind a mark."""
        before, *after = text.split(mark)
        if len(after) != 1:
            what = "question" if mark == QUESTION else "answer"
            raise ConfigError(f"the chat template shows the {what} {len(after)} times, not once", "prompt")
        return before, after[0]


def _first_marker(tokenizer: Any, text: str) -> int | None:
    """The first marker that stands in a text; None if none does."""
    markers = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return next((token for token in found if token in markers), None)
