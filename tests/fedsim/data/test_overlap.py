"""Records in more than one place: found whatever their spelling, counted, and said for each request."""

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data.names import ClientNames
from fedsim.data.overlap import find_overlap, fingerprint, holdout_error, overlap_sentences
from fedsim.data.records import Corpus, Record, Turn
from fedsim.life.holdings import Holdings
from fedsim.life.script import Life, LifeEvent
from fedsim.life.shared_records import request_sentences
from fedsim.unlearning.request import Request


def record(name, answer, question="Q?"):
    return Record(record_id=name, subject="s", question=question, answer=answer)


def held(place, answers):
    return tuple(record(f"{place}:{line}", answer) for line, answer in enumerate(answers, 1))


def corpus(clients, holdout=(), public=None, names=None):
    return Corpus(
        clients={client: held(f"c{client}", answers) for client, answers in clients.items()},
        holdout=held("h", holdout),
        public={name: held(name, answers) for name, answers in (public or {}).items()},
        names=names or ClientNames(),
    )


def life(joined, *requests):
    join = LifeEvent(round=0, kind="join", clients=tuple(joined), text="")
    asked = tuple(
        Request(number=number, client=client, round=1, scope="records", record_ids=ids)
        for number, (client, ids) in enumerate(requests, 1)
    )
    return Life(horizon=2, events=(join,), requests=asked)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris", "paris"),
        ("Paris", " Paris. "),
        ("New  York", "New\u00a0York"),
        ("José", "Jose\u0301"),
        ("Straße", "STRASSE"),
        ("“Paris”!", "Paris"),
        ("ﬁne", "fine"),
    ],
)
def test_spelling_makes_no_other_record(one, other):
    assert fingerprint(record("a", one)) == fingerprint(record("b", other))


@pytest.mark.parametrize(("one", "other"), [("Paris", "Rome"), ("C", "C++"), ("uber", "über"), ("?", "!")])
def test_other_words_make_another_record(one, other):
    assert fingerprint(record("a", one)) != fingerprint(record("b", other))


def test_another_question_makes_another_record():
    assert fingerprint(record("a", "Paris", "Where?")) != fingerprint(record("a", "Paris", "Who?"))


def test_what_was_said_before_makes_another_record():
    """Many conversations end in thanks."""
    thanks = record("a", "You are welcome.", "Thanks!")
    said = [replace(thanks, earlier=(Turn(role="user", text=text),)) for text in ("Who?", "Where?", "WHO")]
    assert len({fingerprint(one) for one in (thanks, *said)}) == 3


ANSWERS = st.lists(st.sampled_from("abcdef"), max_size=5)


@given(st.lists(ANSWERS, min_size=1, max_size=4), ANSWERS, ANSWERS)
def test_counts_are_those_of_comparing_each_with_each(clients, holdout, public):
    data = corpus(dict(enumerate(clients)), holdout, {"facts": public})
    overlap = find_overlap(data, range(len(clients)))
    sets = [set(answers) for answers in clients]
    trained = set().union(*sets)
    assert len(overlap.holdout) == len(set(holdout) & trained)
    assert len(overlap.known_holdout) == len(set(holdout) & set(public))
    assert len(overlap.public) == len(set(public) & trained)
    shared = set().union(*(one & other for one, other in itertools.combinations(sets, 2)))
    assert len(overlap.clients) == len(shared)
    twice = {x for answers in [*clients, holdout, public] for x in answers if answers.count(x) > 1}
    assert len(overlap.within) == len(twice)


def test_a_holdout_that_clients_train_on_is_told_with_counts_and_lines():
    data = corpus({0: "ab", 1: "cd"}, "xabad")
    message = holdout_error(find_overlap(data, [0, 1]))
    assert message.startswith("4 records of the holdout also stand in the data of clients that join: ")
    assert "2 in client 0 and holdout (c0:1 = h:2 = h:4, c0:2 = h:3)" in message
    assert "1 in client 1 and holdout (c1:2 = h:5)" in message


def test_who_never_joins_spoils_no_holdout():
    assert holdout_error(find_overlap(corpus({0: "ab", 1: "cd"}, "cd"), [0])) is None


def test_different_records_are_no_overlap():
    overlap = find_overlap(corpus({0: "ab", 1: "cd"}, "ef", {"facts": "gh"}), [0, 1])
    assert overlap.repeats == ()
    assert (overlap_sentences(overlap), holdout_error(overlap)) == ([], None)


def test_a_request_says_who_else_holds_its_facts():
    data = corpus({3: "abcdefghi", 5: "abcdefgx", 6: "a"}, public={"facts": "i"})
    own = tuple(f"c3:{line}" for line in range(1, 10))
    scene = life([3, 5, 6], (3, own))
    (sentence,) = request_sentences(find_overlap(data, [3, 5, 6]), scene)
    assert sentence.startswith(
        "7 of client 3's 9 facts are also client 5's (1 client 6's, 1 in public facts): "
    )
    assert "request 1 cannot show" in sentence


def test_a_request_for_records_sees_what_stays_with_the_client():
    data = corpus({0: "aab"})
    overlap = find_overlap(data, [0])
    (sentence,) = request_sentences(overlap, life([0], (0, ("c0:1",))))
    assert sentence.startswith("1 of client 0's 1 facts are also in records of its own that stay: ")
    assert request_sentences(overlap, life([0], (0, ("c0:1", "c0:2")))) == []
    assert overlap_sentences(overlap) == [
        "1 record stands twice in one place, and counts twice in training and in means: "
        "1 in client 0 (c0:1 = c0:2)."
    ]


def test_holdings_tell_the_spread_and_what_cannot_be_judged():
    names = ClientNames.of(["b", "a", "c"])
    said = Holdings.of(corpus({0: "a", 1: "bcd", 2: "ef"}, names=names), life([0, 1])).sentences()
    assert said[0] == "3 clients hold 6 records: 1 (client b) to 3 (client a), median 2; 0 in the holdout."
    assert said[1] == "Clients by number, in order of first appearance: 0 = b, 1 = a, 2 = c."
    assert said[2] == "client c never joins."
    assert said[3].startswith("There is no holdout")
    assert said[4].startswith("There is no public data")


def test_holdings_of_equal_clients_with_numbers_say_no_more_than_needed():
    data = corpus({0: "ab", 1: "cd"}, "ef", {"facts": "gh"}, ClientNames.of(["0", "1"]))
    assert Holdings.of(data, life([0, 1])).sentences() == [
        "2 clients hold 4 records: 2 each; 2 in the holdout, 2 in public facts."
    ]


def test_holdings_as_json_name_clients_counts_and_places():
    data = corpus({0: "ab", 1: "b"}, "c", {"facts": "b"}, ClientNames.of(["b", "a"]))
    row = Holdings.of(data, life([0, 1], (1, ("c1:1",)))).row()
    assert row["clients"] == [
        {"client": 0, "name": "b", "records": 2},
        {"client": 1, "name": "a", "records": 1},
    ]
    assert (row["holdout"], row["public"]) == (1, {"facts": 1})
    places = [("client:0", "c0:2"), ("client:1", "c1:1"), ("facts", "facts:1")]
    assert row["repeats"] == [[{"place": place, "record": record} for place, record in places]]
    assert row["sentences"][-1].startswith(
        "1 of client a's 1 facts are also client b's (1 in public facts): "
    )
    assert json.loads(json.dumps(row)) == row
