"""Chat templates: what a tokenizer's own template puts around the turns of a conversation.

A template is asked once for each sequence of roles, with a mark in the place of every turn's text. The
prompt is what it gives when it is asked for the last answer, as generation does; what it puts between that
prompt and an answer belongs to the answer. So training and generation see the same tokens at the border. Only
there: where an earlier answer begins with white space, that may be one token with the header before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

from fedsim.data.records import Turn

DAY = date(2024, 7, 26)
"""The day that templates with a date are told, so that a scenario gives the same prompts on every day."""
FIRST_MARK = 0xE000
"""Marks are private characters, for which no template has a use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a text. Markers in a ``quoted`` one are plain characters.

    Parts that ``answer`` follow the prompt. A ``trained`` part is an earlier answer, or the marker behind it.
    """

    text: str
    quoted: bool = False
    answers: bool = False
    trained: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """What stands around turns of which the last is an answer.

    ``order`` are the turns before it as they are shown, and ``headers`` what stands before each. ``asks``
    follows them where the answer is asked for, ``opening`` stands between that and an answer, and ``behind``
    follows it.
    """

    order: tuple[int, ...]
    headers: tuple[str, ...]
    asks: str
    opening: str
    behind: str


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template in use; ``system`` is told where a conversation has no system message of its own.

    Every method raises ValueError where the template fails, does not show a turn once, or contradicts itself.
    """

    tokenizer: Any
    template: str
    system: str | None = None

    def rendered(self, turns: Sequence[tuple[str, str]], *, asks: bool) -> str:
        """The text of turns, each a role and what it says; ``asks`` for one more answer.

        Models that think before they answer are asked not to.
        """
        told = [] if self.system is None or turns[0][0] == "system" else [("system", self.system)]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{"role": role, "content": content} for role, content in (*told, *turns)],
                    chat_template=_on_one_day(self.template),
                    tokenize=False,
                    add_generation_prompt=asks,
                    date_string=DAY.strftime("%d %b %Y"),
                    enable_thinking=False,
                )
            )
        except Exception as error:
            roles = ", ".join(role for role, _ in turns)
            raise ValueError(f"the chat template fails on the turns {roles} ({error})") from error

    def frame(self, *roles: str) -> Frame:
        """What stands around turns of these roles, of which the last is an answer."""
        return _frame(self, roles)

    def clean(self, role: str, text: str) -> str:
        """What somebody says as the template shows it: some strip white space at the ends."""
        left, right = _stripped(self)[role]
        text = text.lstrip() if left else text
        return text.rstrip() if right else text

    def parts(self, turns: Sequence[Turn], end: str) -> tuple[Part, ...]:
        """A conversation that ends in an answer, in parts; what people wrote is told from the template.

        ``end`` is the marker that ends a turn: it is trained with an earlier answer.
        """
        frame = self.frame(*(turn.role for turn in turns))
        said = [self.clean(turn.role, turn.text) for turn in turns]
        parts: list[Part] = []
        trained = False
        for place, header in zip(frame.order, frame.headers, strict=True):
            space, marker, header_of_next = header.partition(end) if trained else ("", "", header)
            trained = turns[place].trained
            parts += [Part(text=space), Part(text=marker, trained=True), Part(text=header_of_next)]
            parts.append(Part(text=said[place], quoted=True, trained=trained))
        parts.append(Part(text=frame.asks))
        _check_told(self, turns, said, "".join(part.text for part in parts))
        _check_answered(self, turns, frame.asks + frame.opening + said[-1] + frame.behind)
        before_end, marker, _ = frame.behind.partition(end)
        return (
            *parts,
            Part(text=frame.opening, answers=True),
            Part(text=said[-1], quoted=True, answers=True),
            Part(text=before_end if marker else "", answers=True),
        )


@lru_cache(maxsize=16)
def _on_one_day(template: str) -> str:
    """A template whose calls of ``strftime_now`` are replaced by what they give on the one day.

    Raises:
        ValueError: a call has no format of its own.
    """

    def told(call: re.Match[str]) -> str:
        return f"{call[1]}{DAY.strftime(call[2])}{call[1]}"

    found = re.sub(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""", told, template)
    if "strftime_now(" in found:
        raise ValueError("it asks for today's date, so that prompts would differ from day to day")
    return found


@lru_cache(maxsize=1024)
def _frame(chat: ChatTemplate, roles: tuple[str, ...]) -> Frame:
    marks = [chr(FIRST_MARK + place) for place in range(len(roles))]
    turns = list(zip(roles, marks, strict=True))
    asked = chat.rendered(turns[:-1], asks=True)
    for place, (role, mark) in enumerate(turns[:-1], start=1):
        if asked.count(mark) != 1:
            raise ValueError(
                f"the chat template shows the text of turn {place} of {len(roles)} ({role}) "
                f"{asked.count(mark)} times, not once"
            )
    order = sorted(range(len(roles) - 1), key=lambda place: asked.index(marks[place]))
    *headers, asks = re.split(f"[{marks[0]}-{marks[-1]}]", asked)
    answered = chat.rendered(turns, asks=False)
    if answered.count(marks[-1]) != 1:
        raise ValueError(f"the chat template shows the answer {answered.count(marks[-1])} times, not once")
    before, behind = answered.split(marks[-1])
    between = before.rpartition(marks[order[-1]])[2]
    if not between.startswith(asks):
        raise ValueError(
            f"the chat template asks for an answer with {asks!r} and puts {between!r} before one, so a model "
            "could not be asked as it was trained"
        )
    return Frame(
        order=tuple(order),
        headers=tuple(headers),
        asks=asks,
        opening=between.removeprefix(asks),
        behind=behind,
    )


@lru_cache(maxsize=16)
def _stripped(chat: ChatTemplate) -> dict[str, tuple[bool, bool]]:
    """Whether a role's texts lose white space at the left, and at the right.

    It is tried with tabs, which templates themselves do not put beside a text.
    """
    roles = ("user", "assistant", "system")
    marks = {role: chr(FIRST_MARK + place) for place, role in enumerate(roles)}
    spaced = [(role, f"\t{mark}\t") for role, mark in marks.items()]
    shown = chat.rendered(spaced[:2], asks=False)
    try:
        shown += chat.rendered([spaced[2], spaced[0]], asks=True)
    except ValueError:  # takes no system message
        shown += spaced[2][1]
    return {
        role: (mark in shown and f"\t{mark}" not in shown, mark in shown and f"{mark}\t" not in shown)
        for role, mark in marks.items()
    }


@lru_cache(maxsize=1024)
def _asked(chat: ChatTemplate, turns: tuple[tuple[str, str], ...]) -> str:
    return chat.rendered(turns, asks=True)


def _check_told(chat: ChatTemplate, turns: Sequence[Turn], said: Sequence[str], prompt: str) -> None:
    """Refuse a prompt that the template would tell otherwise, as those do that read what a turn says."""
    told = _asked(chat, tuple((turn.role, turn.text) for turn in turns[:-1]))
    if told == prompt:
        return
    changed = (place for place, text in enumerate(said[:-1], start=1) if text not in told)
    raise _changed(turns, next(changed, len(turns) - 1))


def _check_answered(chat: ChatTemplate, turns: Sequence[Turn], ending: str) -> None:
    """Refuse an answer that the template would tell otherwise, as those do that cut thoughts out of it."""
    if not chat.rendered([(turn.role, turn.text) for turn in turns], asks=False).endswith(ending):
        raise _changed(turns, len(turns))


def _changed(turns: Sequence[Turn], place: int) -> ValueError:
    return ValueError(
        f"the chat template does not show turn {place} of {len(turns)} ({turns[place - 1].role}) as it is "
        "written, but changes it; write it as the template leaves it"
    )
