"""How questions and conversations become prompts: words around them, or the chat template of the base."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fedsim.config import ConfigError
from fedsim.data.records import Turn
from fedsim.model.chat import ChatTemplate, Part

if TYPE_CHECKING:
    from fedsim.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFormat:
    """How a question becomes a prompt. ``{question}`` is replaced; the answer follows the prompt.

    ``separator`` stands between prompt and answer; a prompt that ends in white space of its own has none.
    Earlier turns of a conversation stand before the question, each on a line. With ``chat`` all this is left
    to a template. ``end_id`` is the token that ends an answer; None: the tokenizer's end-of-sequence marker.
    ``truncation`` is the side on which a pair of more than ``max_tokens`` is cut first.
    """

    prompt: str = "{question}"
    separator: str = " "
    max_tokens: int = 128
    end_id: int | None = None
    truncation: Literal["left", "right"] = "left"
    chat: ChatTemplate | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt={self.prompt!r} must contain the placeholder {{question}}")

    def end(self, tokenizer: Any) -> int:
        """The token that ends an answer."""
        return int(tokenizer.eos_token_id if self.end_id is None else self.end_id)

    def parts(self, question: str, answer: str, earlier: Sequence[Turn] = ()) -> tuple[Part, ...]:
        """The text of a pair in parts; what people wrote is told from what the scenario's author wrote."""
        if self.chat is not None:
            asked = (Turn(role="user", text=question), Turn(role="assistant", text=answer))
            tokenizer = self.chat.tokenizer
            end = str(tokenizer.convert_ids_to_tokens(self.end(tokenizer)))
            return self.chat.parts((*earlier, *asked), end)
        told = [*_told(earlier), Part(text=question, quoted=True)]
        around = self.prompt.split("{question}")
        parts = [Part(text=around[0])]
        for after in around[1:]:
            parts += [*told, Part(text=after)]
        last = next((part.text for part in reversed(parts) if part.text), "")
        parts.append(Part(text="" if last[-1:].isspace() else self.separator, answers=True))
        return (*parts, Part(text=answer, quoted=True, answers=True))


def _told(earlier: Sequence[Turn]) -> Iterator[Part]:
    """Earlier turns as lines, each with its role in front, up to where the question stands."""
    for turn in earlier:
        yield Part(text=f"{turn.role}: ", quoted=True)
        yield Part(text=turn.text, quoted=True, trained=turn.trained)
        yield Part(text="\n", quoted=True)
    if earlier:
        yield Part(text="user: ", quoted=True)


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
    template = config.prompt if is_template(config.prompt) else _template_of(tokenizer, config.base)
    chat = ChatTemplate(tokenizer, template, config.system)
    try:
        frame = chat.frame("user", "assistant")
    except ValueError as error:
        raise _refusal(chat, error) from error
    return TextFormat(
        max_tokens=config.max_tokens,
        end_id=_first_marker(tokenizer, frame.behind),
        truncation=config.truncation,
        chat=chat,
    )


def _template_of(tokenizer: Any, base: str) -> str:
    """The template that a tokenizer brings; of several the one that it calls its default."""
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"prompt: chat needs a chat template, and base={base!r} has none; give a prompt with the "
            "placeholder {question}, or a template in Jinja",
            "prompt",
        )
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ConfigError(
            f"base={base!r} has the chat templates {', '.join(tokenizer.chat_template)} and none that is the "
            "default; give the text of one as the prompt",
            "prompt",
        ) from error


def _refusal(chat: ChatTemplate, error: ValueError) -> ConfigError:
    """Why a template cannot be used, and what to do instead."""
    if re.fullmatch(r"\{\{\s*question\s*\}\}", chat.template.strip()):
        return ConfigError("prompt: two braces make a template in Jinja; write {question} with one", "prompt")
    if chat.system is not None:
        try:
            ChatTemplate(chat.tokenizer, chat.template).frame("user", "assistant")
        except ValueError:
            pass
        else:
            return ConfigError(f"{error}; without a system message it does not: leave system out", "system")
    said = "give a prompt with the placeholder {question}, or another template in Jinja"
    return ConfigError(f"{error}; {said}", "prompt")


def _first_marker(tokenizer: Any, text: str) -> int | None:
    """The first marker that stands in a text; None if none does."""
    found: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return next((token for token in found if token in tokenizer.added_tokens_decoder), None)
