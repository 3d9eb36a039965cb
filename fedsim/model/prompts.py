"""How a question becomes a prompt: words around it, or the chat template of the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from fedsim.config import ConfigError
from fedsim.data.records import Turn
from fedsim.model.chat import ChatTemplate, Part

if TYPE_CHECKING:
    from fedsim.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFormat:
    """How a question becomes a prompt. ``{question}`` is replaced; the answer follows the prompt.

    ``separator`` stands between prompt and answer; unless it is ``exact``, a prompt that ends in white space
    of its own has none. ``strips`` takes white space off both ends of questions and answers. ``end_id`` is
    the token that ends an answer; None: the tokenizer's end-of-sequence marker. ``truncation`` is the side on
    which a pair of more than ``max_tokens`` is cut first. ``chat`` tells conversations of several turns;
    without it they stand in the place of the question.
    """

    prompt: str = "{question}"
    separator: str = " "
    max_tokens: int = 128
    exact: bool = False
    strips: bool = False
    end_id: int | None = None
    truncation: Literal["left", "right"] = "left"
    chat: ChatTemplate | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt={self.prompt!r} must contain the placeholder {{question}}")

    def end(self, tokenizer: Any) -> int:
        """The token that ends an answer."""
        return int(tokenizer.eos_token_id if self.end_id is None else self.end_id)

    def clean(self, text: str) -> str:
        """A question or an answer as it stands in the text."""
        return text.strip() if self.strips else text

    def parts(
        self, tokenizer: Any, question: str, answer: str, earlier: Sequence[Turn] = ()
    ) -> tuple[Part, ...]:
        """The text of a pair in parts; what people wrote is told from what the scenario's author wrote."""
        if earlier and self.chat is not None:
            turns = [replace(turn, text=self.clean(turn.text)) for turn in earlier]
            turns += [Turn(role="user", text=question), Turn(role="assistant", text=answer)]
            return self.chat.parts(turns, str(tokenizer.convert_ids_to_tokens(self.end(tokenizer))))
        asked = [*_told(earlier), Part(text=question, quoted=True)]
        around = self.prompt.split("{question}")
        parts = [Part(text=around[0])]
        for after in around[1:]:
            parts += [*asked, Part(text=after)]
        last = next((part.text for part in reversed(parts) if part.text), "")
        bare = last[-1:].isspace() and not self.exact
        parts.append(Part(text="" if bare else self.separator, answers=True))
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
    template = config.prompt if is_template(config.prompt) else tokenizer.chat_template
    if template is None:
        raise ConfigError(
            f"prompt: chat needs a chat template, and base={config.base!r} has none; give a prompt with the "
            "placeholder {question}, or a template in Jinja",
            "prompt",
        )
    chat = ChatTemplate(tokenizer, template, config.system)
    frame = chat.frame("user", "assistant")
    before, between, after = frame.texts
    padded = chat.rendered([("user", " x"), ("assistant", " y")], opens=False)
    return TextFormat(
        prompt=f"{before}{{question}}{frame.opening}",
        separator=between.removeprefix(frame.opening),
        max_tokens=config.max_tokens,
        exact=True,
        strips=f"{before} x{between} y" not in padded,
        end_id=_first_marker(tokenizer, after),
        truncation=config.truncation,
        chat=chat,
    )


def _first_marker(tokenizer: Any, text: str) -> int | None:
    """The first marker that stands in a text; None if none does."""
    markers = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return next((token for token in found if token in markers), None)
