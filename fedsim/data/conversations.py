r"""Conversations as questions and answers: every turn of an assistant is the answer to what was said before.

Earlier turns stand in the question with their roles in front, so that a question is one text.

>>> turns = [("user", "Hello"), ("assistant", "Hi."), ("user", "Who leads?"), ("assistant", "Dr Adeyemi")]
>>> exchanges(turns)[1]
('user: Hello\nassistant: Hi.\nuser: Who leads?', 'Dr Adeyemi')
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.data.rows import Row, check_characters, is_blank, shown

Turn = tuple[str, str]
"""Who speaks, and what is said."""

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


def turns_of(row: Row, column: str) -> list[Turn]:
    """The turns of a row's conversation.

    Raises:
        ValueError: the column is no list of turns, or nobody answers anybody.
    """
    listed = row.fields.get(column)
    if not isinstance(listed, list) or not all(isinstance(turn, dict) for turn in listed):
        raise ValueError(
            f"{row.where}: {column}={shown(listed)} must be a list of turns, each role and content"
        )
    turns = [_turn(row, f"{column}[{place}]", turn) for place, turn in enumerate(listed)]
    if not exchanges(turns):
        raise ValueError(
            f"{row.where}: in {column} no turn of an assistant follows one of a user; leave it out"
        )
    return turns


def exchanges(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    """A question and an answer for each turn of the assistant behind one of the user."""
    found = []
    for place in range(1, len(turns)):
        (before, _), (now, answer) = turns[place - 1], turns[place]
        if (before, now) == ("user", "assistant"):
            told = turns[:place]
            whole = "\n".join(f"{role}: {content}" for role, content in told)
            found.append((told[0][1] if len(told) == 1 else whole, answer))
    return found


def _turn(row: Row, what: str, turn: dict[str, object]) -> Turn:
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if role not in ROLES:
        raise ValueError(f"{row.where}: {what} has role {shown(role)}; use system, user or assistant")
    if not isinstance(content, str) or is_blank(content):
        raise ValueError(
            f"{row.where}: {what} says {shown(content)}; a turn must be a text with something to see"
        )
    check_characters(row.where, {what: content})
    return ROLES[str(role)], content
