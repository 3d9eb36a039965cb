"""Conversations as records: the last question with its answer, and what was said before.

>>> told = [("user", "Hello"), ("assistant", "Hi."), ("user", "Who leads?"), ("assistant", "Dr Adeyemi")]
>>> turns = [Turn(role=role, text=text, trained=role == "assistant") for role, text in told]
>>> earlier, question, answer = exchange(turns, train_on="every")
>>> (question, answer)
('Who leads?', 'Dr Adeyemi')
>>> [(turn.text, turn.trained) for turn in earlier]
[('Hello', False), ('Hi.', True)]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from fedsim.data.records import Turn
from fedsim.data.rows import Row, check_characters, is_blank, shown

TrainOn = Literal["every", "last"]

ROLES: dict[object, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


def turns_of(row: Row, column: str) -> list[Turn]:
    """The turns of a row's conversation, up to the last answer that the data do not exclude.

    Raises:
        ValueError: the column is no list of turns, nobody answers anybody, or all answers are excluded.
    """
    listed = _listed(row.listed(column))
    if not isinstance(listed, list) or not all(isinstance(turn, dict) for turn in listed):
        raise ValueError(
            f"{row.where}: {column}={shown(listed)} must be a list of turns, each role and content"
        )
    turns = [_turn(row, f"{column}[{place}]", turn) for place, turn in enumerate(listed)]
    answers = [place for place in range(len(turns)) if _is_answer(turns, place)]
    if not answers:
        raise ValueError(
            f"{row.where}: in {column} no turn of an assistant follows one of a user; leave it out"
        )
    learned = [place for place in answers if turns[place].trained]
    if not learned:
        raise ValueError(f"{row.where}: {column} excludes every answer from training; leave it out")
    return turns[: learned[-1] + 1]


def exchange(turns: Sequence[Turn], *, train_on: TrainOn) -> tuple[tuple[Turn, ...], str, str]:
    """What was said before, the last question and its answer, of turns that end in an answer.

    With ``every``, all answers to a user are trained that the data do not exclude, else the last alone.
    """
    earlier = tuple(
        replace(turn, trained=turn.trained and train_on == "every" and _is_answer(turns, place))
        for place, turn in enumerate(turns[:-2])
    )
    return earlier, turns[-2].text, turns[-1].text


def _is_answer(turns: Sequence[Turn], place: int) -> bool:
    """Whether a turn of an assistant follows one of a user."""
    return place > 0 and (turns[place - 1].role, turns[place].role) == ("user", "assistant")


def _listed(turns: object) -> object:
    """Turns as a list of dicts; some tables have a dict of lists of one length in its place."""
    if not isinstance(turns, dict) or not all(isinstance(values, list) for values in turns.values()):
        return turns
    if len({len(values) for values in turns.values()}) != 1:
        return turns
    return [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)]


def _turn(row: Row, what: str, turn: dict[str, object]) -> Turn:
    role, content = _either(turn, "role", "from"), _either(turn, "content", "value")
    if turn.get("tool_calls"):
        raise ValueError(
            f"{row.where}: {what} calls a tool, which is not told here; leave the conversation out"
        )
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(
            f"{row.where}: {what} has role {shown(role)}; use {', '.join(map(str, ROLES))}, or leave the "
            "conversation out"
        )
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        content = "".join(str(part["text"]) for part in content)
    if not isinstance(content, str) or is_blank(content):
        raise ValueError(
            f"{row.where}: {what} says {shown(content)}; a turn must be a text with something to see"
        )
    check_characters(row.where, {what: content})
    excluded = turn.get("weight") == 0 or turn.get("train") is False
    return Turn(role=ROLES[role], text=content, trained=ROLES[role] == "assistant" and not excluded)


def _either(turn: dict[str, object], *keys: str) -> object:
    """The value of the first key that has one."""
    return next((turn[key] for key in keys if turn.get(key) is not None), None)
