"""Conversations: one record each, with what was said before its last question."""

from pathlib import Path

import pytest

from fedsim.data.conversations import exchange, turns_of
from fedsim.data.rows import Row


def row(turns):
    return Row(path=Path("chats.json"), line=3, fields={"messages": turns})


def turn(role, content="Hello"):
    return {"role": role, "content": content}


def exchanged(*told, train_on="every"):
    """What was said before, with a star behind what is trained, the question and its answer."""
    turns = turns_of(row([turn(role, content) for role, content in told]), "messages")
    earlier, question, answer = exchange(turns, train_on=train_on)
    return [f"{one.role}: {one.text}{'*' * one.trained}" for one in earlier], question, answer


def test_one_exchange_is_its_question_and_answer():
    assert exchanged(("user", "Who?"), ("assistant", "Me.")) == ([], "Who?", "Me.")


def test_earlier_turns_are_told_and_their_answers_trained():
    turns = [("system", "Be kind."), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")]
    assert exchanged(*turns) == (["system: Be kind.", "user: A", "assistant: B*"], "C", "D")
    assert exchanged(*turns, train_on="last") == (["system: Be kind.", "user: A", "assistant: B"], "C", "D")


def test_an_assistant_whom_nobody_asked_is_not_trained():
    turns = [("assistant", "Welcome"), ("user", "A"), ("user", "B"), ("assistant", "C"), ("assistant", "D")]
    assert exchanged(*turns) == (["assistant: Welcome", "user: A"], "B", "C")


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
        ([turn(["user"])], r"messages\[0\] has role \['user'\]; use system, user or assistant"),
        ([turn("user"), turn("assistant", " ")], r"messages\[1\] says ' '; a turn must be a text"),
        ([turn("user"), turn("assistant", "\ud83d")], r"holds half a character"),
        ([turn("user")], r"in messages no turn of an assistant follows one of a user"),
    ],
)
def test_what_is_no_conversation_is_refused(turns, message):
    with pytest.raises(ValueError, match=message):
        turns_of(row(turns), "messages")
