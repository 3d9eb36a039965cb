"""Chat templates: what a tokenizer's own template puts around the turns of a conversation.

A template is asked once for each sequence of roles, with a mark in the place of every turn's text. What
stands between the generation prompt and the answer belongs to the answer, so that training and generation see
the same tokens at the border.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedsim.config import ConfigError
from fedsim.data.records import Turn

DATE = "26 Jul 2024"
"""The day that templates with a date are told, so that a scenario gives the same prompts on every day."""
FIRST_MARK = 0xE000
"""Marks are private characters, for which no template has a use."""
SAID = {"system": "system message", "user": "question", "assistant": "answer"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a text. Markers in a ``quoted`` one are plain characters.

    Parts that ``answer`` follow the prompt. A ``trained`` part is learned although it is part of the prompt.
    """

    text: str
    quoted: bool = False
    answers: bool = False
    trained: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """What stands around turns: ``texts`` before, between and behind them, one more than there are turns.

    ``order`` are the turns as they are shown, and ``opening`` is the part of the text before the answer with
    which a model is asked for it.
    """

    order: tuple[int, ...]
    texts: tuple[str, ...]
    opening: str


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template in use; ``system`` is told where a conversation has no system message of its own."""

    tokenizer: Any
    template: str
    system: str | None = None

    def rendered(self, turns: Sequence[tuple[str, str]], *, opens: bool) -> str:
        """The text of turns, each a role and what it says; ``opens`` asks for one more answer.

        Raises:
            ConfigError: the template fails; the key is ``prompt`` or ``system``.
        """
        told = [] if self.system is None or turns[0][0] == "system" else [("system", self.system)]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{"role": role, "content": content} for role, content in (*told, *turns)],
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=opens,
                    date_string=DATE,
                )
            )
        except Exception as error:
            hint = "; some take no system message: leave system out" if told else ""
            raise ConfigError(
                f"the chat template fails ({error}){hint}", "system" if told else "prompt"
            ) from error

    def frame(self, *roles: str) -> Frame:
        """What stands around turns of these roles, of which the last is an answer.

        Raises:
            ConfigError: the template fails, does not show every turn once, or contradicts itself.
        """
        return _frame(self, roles)

    def parts(self, turns: Sequence[Turn], end: str) -> tuple[Part, ...]:
        """A conversation that ends in an answer, in parts; what people wrote is told from the template.

        ``end`` is the marker that ends a turn: it is trained with the turn.
        """
        frame = self.frame(*(turn.role for turn in turns))
        *before, opened = frame.texts[:-1]
        parts: list[Part] = []
        trained = False
        for number, text in zip(frame.order[:-1], before, strict=True):
            ended, marker, rest = text.partition(end) if trained else ("", "", text)
            turn, trained = turns[number], turns[number].trained
            said = Part(text=turn.text, quoted=True, trained=trained)
            parts += [Part(text=ended), Part(text=marker, trained=True), Part(text=rest), said]
        separator = Part(text=opened.removeprefix(frame.opening), answers=True)
        answer = Part(text=turns[-1].text, quoted=True, answers=True)
        return (*parts, Part(text=frame.opening), separator, answer)


@lru_cache(maxsize=1024)
def _frame(chat: ChatTemplate, roles: tuple[str, ...]) -> Frame:
    asked, before = _cut(chat, roles[:-1], opens=True)
    order, texts = _cut(chat, roles, opens=False)
    opening, opened = before[-1], texts[-2]
    if order != (*asked, len(roles) - 1) or texts[:-2] != before[:-1] or not opened.startswith(opening):
        raise ConfigError(
            f"the chat template opens an answer with {opening!r} when it is asked for one, and with "
            f"{opened!r} where one stands, so a model could not be asked as it was trained; give a template "
            "that agrees with itself",
            "prompt",
        )
    return Frame(order=order, texts=texts, opening=opening)


def _cut(chat: ChatTemplate, roles: Sequence[str], *, opens: bool) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The order in which turns are shown, and what stands around them."""
    marks = [chr(FIRST_MARK + place) for place in range(len(roles))]
    text = chat.rendered(list(zip(roles, marks, strict=True)), opens=opens)
    for mark, role in zip(marks, roles, strict=True):
        if text.count(mark) != 1:
            turn = f" of {' '.join(roles)}" if len(roles) > 2 else ""
            raise ConfigError(
                f"the chat template shows the {SAID[role]}{turn} {text.count(mark)} times, not once", "prompt"
            )
    order = sorted(range(len(roles)), key=lambda place: text.index(marks[place]))
    pattern = f"[{marks[0]}-{marks[-1]}]"
    return tuple(order), tuple(re.split(pattern, text))
