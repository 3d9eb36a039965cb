"""Conversations: every answer of the assistant is one record's."""

from pathlib import Path

import pytest

from fedsim.data.conversations import exchanges, turns_of
from fedsim.data.rows import Row


def row(turns):
    return Row(path=Path("chats.json"), line=3, fields={"messages": turns})


def turn(role, content="Hello"):
    return {"role": role, "content": content}


def test_one_exchange_is_its_question_and_answer():
    assert exchanges([("user", "Who?"), ("assistant", "Me.")]) == [("Who?", "Me.")]


def test_earlier_turns_stand_in_the_question():
    turns = [("system", "Be kind."), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")]
    assert exchanges(turns) == [
        ("system: Be kind.\nuser: A", "B"),
        ("system: Be kind.\nuser: A\nassistant: B\nuser: C", "D"),
    ]


def test_an_assistant_whom_nobody_asked_has_no_record():
    turns = [("assistant", "Welcome"), ("user", "A"), ("user", "B"), ("assistant", "C"), ("assistant", "D")]
    assert exchanges(turns) == [("assistant: Welcome\nuser: A\nuser: B", "C")]


def test_both_spellings_of_turns_are_read():
    theirs = [{"from": "human", "value": "A"}, {"from": "gpt", "value": "B"}]
    assert turns_of(row(theirs), "messages") == turns_of(
        row([turn("user", "A"), turn("assistant", "B")]), "messages"
    )


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (None, r"chats.json:3: messages=None must be a list of turns"),
        (["a"], r"chats.json:3: messages=\['a'\] must be a list of turns"),
        ([turn("bot")], r"chats.json:3: messages\[0\] has role 'bot'; use system, user or assistant"),
        ([turn("user"), turn("assistant", " ")], r"messages\[1\] says ' '; a turn must be a text"),
        ([turn("user"), turn("assistant", "\ud83d")], r"holds half a character"),
        ([turn("user")], r"in messages no turn of an assistant follows one of a user"),
    ],
)
def test_what_is_no_conversation_is_refused(turns, message):
    with pytest.raises(ValueError, match=message):
        turns_of(row(turns), "messages")
