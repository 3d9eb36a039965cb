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


def test_turns_as_a_dict_of_lists_and_texts_in_parts_are_read():
    plain = turns_of(row([turn("user", "A"), turn("assistant", "B")]), "messages")
    assert turns_of(row({"role": ["user", "assistant"], "content": ["A", "B"]}), "messages") == plain
    parts = [turn("user", [{"type": "text", "text": "A"}]), turn("assistant", "B")]
    assert turns_of(row(parts), "messages") == plain
    empty = {"from": None, "value": None}
    assert turns_of(row([turn("user", "A") | empty, turn("assistant", "B") | empty]), "messages") == plain


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_answers_that_the_data_exclude_are_not_trained(mark):
    turns = [turn("user"), turn("assistant") | mark, turn("user"), turn("assistant")]
    earlier, _, _ = exchange(turns_of(row(turns), "messages"), train_on="every")
    assert [one.trained for one in earlier] == [False, False]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_a_conversation_ends_with_the_last_answer_to_learn(mark):
    turns = [turn("user", "A"), turn("assistant", "B"), turn("user", "C"), turn("assistant", "D") | mark]
    assert exchange(turns_of(row(turns), "messages"), train_on="every") == ((), "A", "B")
    with pytest.raises(ValueError, match=r"chats.json:3: messages excludes every answer from training"):
        turns_of(row(turns[2:]), "messages")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ({"role": "user", "content": "hi"}, r"chats.json:3: messages=\{'role'.* must be a list of turns"),
        ({"role": "user"}, r"must be a list of turns"),
        ({"a": 1}, r"must be a list of turns"),
        ({"role": ["user"], "content": []}, r"must be a list of turns"),
        (None, r"chats.json:3: messages=None must be a list of turns"),
        (["a"], r"chats.json:3: messages=\['a'\] must be a list of turns"),
        ([turn("bot")], r"chats.json:3: messages\[0\] has role 'bot'; use system, user, human, assistant"),
        ([turn(["user"])], r"messages\[0\] has role \['user'\]; use system, user"),
        ([turn("user"), turn("assistant") | {"tool_calls": [{}]}], r"messages\[1\] calls a tool"),
        ([turn("user"), turn("assistant", " ")], r"messages\[1\] says ' '; a turn must be a text"),
        ([turn("user"), turn("assistant", "\ud83d")], r"holds half a character"),
        ([turn("user")], r"in messages no turn of an assistant follows one of a user"),
    ],
)
def test_what_is_no_conversation_is_refused(turns, message):
    with pytest.raises(ValueError, match=message):
        turns_of(row(turns), "messages")
