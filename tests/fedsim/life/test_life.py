"""Lives: what is possible, what a request covers, and what events are called."""

# ruff: noqa: E501  (messages as the user sees them)

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data.names import ClientNames
from fedsim.life.events.drop import FallsSilent
from fedsim.life.reading import read_life
from fedsim.life.schedule import answers, milestones
from fedsim.life.script import Life
from fedsim.places import ScenarioError, Source
from fedsim.unlearning.methods.npo import Npo
from tests.fedsim.life.lives import life_of, records_of, scenario_of

RECORDS = records_of(5)
JOIN = {"join": {"clients": "0-3"}}
TRAIN = {"train": {"rounds": 4}}


def forget(client: int | str, **scope: Any) -> dict[str, Any]:
    return {"forget": {"client": client, **scope}}


def leave(client: int) -> dict[str, Any]:
    return {"leave": {"client": client}}


def rejoin(client: int, **brings: Any) -> dict[str, Any]:
    return {"rejoin": {"client": client, **brings}}


def test_a_life_by_hand() -> None:
    life = life_of([JOIN, TRAIN, leave(0), forget(3), TRAIN, {"probe": {"label": "look"}}], RECORDS)
    assert life.horizon == 8
    assert [(event.round, event.kind, event.text) for event in life.events] == [
        (0, "join", "clients 0-3 join"),
        (4, "leave", "client 0 leaves"),
        (4, "forget", "client 3 asks to be forgotten"),
        (8, "probe", "look"),
    ]
    (request,) = life.requests
    assert (request.number, request.client, request.round, request.scope) == (1, 3, 4, "client")
    assert request.record_ids == ("3/a", "3/b")
    assert [life.label(round_) for round_ in (0, 1, 4, 8)] == ["join", "", "leave+forget:1", "probe"]
    assert life.events[0].client is None
    assert life.events[1].client == 0


IMPOSSIBLE = {
    "train with nobody": ([TRAIN], "s.yaml:1: timeline[0].train: nobody is there to train in round 1; let clients join"),
    "train after all left": (
        [{"join": {"clients": 1}}, TRAIN, leave(1), TRAIN],
        "s.yaml:4: timeline[3].train: nobody is there to train in round 5; let clients join",
    ),
    "forget a stranger": (
        [JOIN, TRAIN, forget(4), TRAIN],
        "s.yaml:3: timeline[2].forget.client: client 4 cannot be forgotten after round 4: it never joined; the nearest "
        "client that is there is 3",
    ),
    "forget twice": (
        [JOIN, TRAIN, forget(2), TRAIN, forget(2), TRAIN],
        "s.yaml:5: timeline[4].forget.client: client 2 cannot be forgotten after round 8: it was already forgotten, "
        "after round 4; the nearest client that is there is 1",
    ),
    "leave twice": (
        [JOIN, TRAIN, leave(2), leave(2)],
        "s.yaml:4: timeline[3].leave.client: client 2 cannot leave after round 4: it already left, after round 4; the "
        "nearest client that is there is 1",
    ),
    "join twice": (
        [JOIN, TRAIN, {"join": {"clients": 2}}],
        "s.yaml:3: timeline[2].join.clients: client 2 cannot join after round 4: it is already there",
    ),
    "join after leaving": (
        [JOIN, TRAIN, leave(2), {"join": {"clients": 2}}],
        "s.yaml:4: timeline[3].join.clients: client 2 cannot join after round 4: it already left, after round 4; use "
        "rejoin to bring it back",
    ),
    "not in the data": (
        [JOIN, TRAIN, {"join": {"clients": 9}}],
        "s.yaml:3: timeline[2].join.clients: client 9 is not in the data, which has clients 0-4; nearest is 4",
    ),
    "rejoin who is there": (
        [JOIN, TRAIN, rejoin(2)],
        "s.yaml:3: timeline[2].rejoin.client: client 2 cannot rejoin after round 4: it is already there",
    ),
    "rejoin a stranger": (
        [JOIN, TRAIN, rejoin(4)],
        "s.yaml:3: timeline[2].rejoin.client: client 4 cannot rejoin after round 4: it never joined; use join",
    ),
    "rejoin with strange records": (
        [JOIN, TRAIN, leave(2), rejoin(2, records=["2a"])],
        "s.yaml:4: timeline[3].rejoin.records: client 2 has no record '2a'; nearest is '2/a'",
    ),
    "forget strange records": (
        [JOIN, TRAIN, forget(3, records=["3/a", "33b"]), TRAIN],
        "s.yaml:3: timeline[2].forget.records: client 3 has no record '33b'; nearest is '3/b'",
    ),
    "forget a record twice": (
        [JOIN, TRAIN, forget(3, records=["3/a"]), TRAIN, forget(3, records=["3/a"]), TRAIN],
        "s.yaml:5: timeline[4].forget.records: client 3 already forgot its record '3/a'",
    ),
    "a fraction of one record": (
        [JOIN, TRAIN, forget(3, fraction=0.5), TRAIN, forget(3, fraction=0.5), TRAIN],
        "s.yaml:5: timeline[4].forget.fraction: client 3 holds one record only; leave fraction out to forget the client",
    ),
    "no round": ([JOIN], "s.yaml: timeline: the life has no round of training; add - train: {rounds: 10}"),
    "nothing after the request": (
        [JOIN, TRAIN, forget(3)],
        "s.yaml:3: timeline[2].forget: no round follows the request, so nothing can be observed; add - train: {rounds: "
        "5}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_life_is_refused_at_its_event(case: str) -> None:
    timeline, expected = IMPOSSIBLE[case]
    for compare in ([], ["npo"]):
        with pytest.raises(ScenarioError) as caught:
            life_of(timeline, RECORDS, compare)
        assert str(caught.value) == expected


def test_a_client_without_records_cannot_ask() -> None:
    with pytest.raises(ScenarioError, match="client 1 holds no records to forget"):
        life_of([{"join": {"clients": "0-1"}}, TRAIN, forget(1), TRAIN], {0: ("0/a",), 1: ()})


def test_clients_need_not_be_numbered_without_gaps() -> None:
    with pytest.raises(
        ScenarioError, match="client 4 is not in the data, which has clients 0 and 5; nearest is 5"
    ):
        life_of([{"join": {"clients": 4}}], {0: ("a",), 5: ("b",)})


NAMED = ClientNames.of(["clinic-b", "clinic-a", "clinic-c"])


def named_life(*timeline: dict[str, Any], names: ClientNames = NAMED) -> Life:
    source = Source(file="s.yaml", lines={("timeline", index): index + 1 for index in range(len(timeline))})
    events = scenario_of(timeline).timeline
    return read_life(events, (), records_of(3), seed=1, source=source, names=names)


def test_clients_are_called_what_their_data_call_them() -> None:
    life = named_life(
        {"join": {"clients": "clinic-a, clinic-c"}},
        TRAIN,
        {"leave": {"client": "clinic-c"}},
        {"join": {"clients": "all"}},
        forget("clinic-a"),
        TRAIN,
    )
    assert [(event.clients, event.text) for event in life.events] == [
        ((1, 2), "clients clinic-a and clinic-c join"),
        ((2,), "client clinic-c leaves"),
        ((0,), "client clinic-b joins"),
        ((1,), "client clinic-a asks to be forgotten"),
    ]
    assert life.requests[0].record_ids == ("1/a", "1/b")


@pytest.mark.parametrize(
    ("timeline", "message"),
    [
        (
            [{"join": {"clients": "clinic-d"}}],
            "client clinic-d is not in the data, which has clients clinic-b, ",
        ),
        (
            [{"join": {"clients": "all"}}, TRAIN, {"join": {"clients": "all"}}],
            "all clients of the data have joined",
        ),
        ([{"join": {"clients": "5-3"}}], "found '5-3'; the range 5-3 is empty; write 3-5"),
        ([{"join": {"clients": "0-9999999"}}], "client 3 is not in the data"),
        (
            [{"join": {"clients": 0}}, TRAIN, forget("clinic-a")],
            "client clinic-a cannot be forgotten .* is clinic-b",
        ),
        ([{"join": {"clients": "all"}}, TRAIN, forget("all")], "client all is not in the data"),
    ],
)
def test_errors_call_clients_by_their_names(timeline: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        named_life(*timeline, TRAIN)


def test_unlearning_rounds_must_fit_into_the_life() -> None:
    timeline = [JOIN, TRAIN, forget(3), {"train": {"rounds": 2}}, forget(1), {"train": {"rounds": 3}}]
    method = {"method": "npo", "rounds": 3}
    with pytest.raises(ScenarioError) as caught:
        life_of(timeline, RECORDS, [method])
    assert str(caught.value) == (
        "s.yaml:5: timeline[4].forget: npo takes 3 rounds for this request and would end after round 10, but the "
        "life ends after round 9; add 1 or more rounds of training at the end"
    )
    timeline[-1] = {"train": {"rounds": 4}}
    assert life_of(timeline, RECORDS, [method]).horizon == 10


def test_a_request_goes_back_to_when_its_data_came() -> None:
    """Leaving keeps what was learned; being forgotten does not; what was before another request stays."""
    timeline = [JOIN, TRAIN, leave(2), {"rejoin": {"client": 2}}, TRAIN, forget(2), TRAIN]
    back = [*timeline, {"rejoin": {"client": 2}}, TRAIN, forget(2), TRAIN]
    life = life_of(back, RECORDS)
    assert [request.since for request in life.requests] == [1, 13]
    assert [answer.request.since for answer in answers(life, Npo(rounds=1))] == [1, 1]


# ------------------------------------------------------------------------------------- scope


def test_records_by_name_leave_the_client_there() -> None:
    life = life_of([JOIN, TRAIN, forget(3, records=["3/b", "3/b"]), TRAIN, leave(3)], RECORDS)
    assert (life.requests[0].scope, life.requests[0].record_ids) == ("records", ("3/b",))
    assert life.events[1].text == "client 3 asks to forget 1 of 2 records"


def test_all_that_is_left_is_the_whole_client() -> None:
    life = life_of([JOIN, TRAIN, forget(3, records=["3/b"]), TRAIN, forget(3), TRAIN], RECORDS)
    assert [request.scope for request in life.requests] == ["records", "client"]
    assert life.requests[1].record_ids == ("3/a",)


@given(fraction=st.floats(0.001, 0.999), each=st.integers(2, 8))
def test_a_fraction_never_takes_all_and_never_nothing(fraction: float, each: int) -> None:
    life = life_of([JOIN, TRAIN, forget(3, fraction=fraction), TRAIN], records_of(4, each))
    (request,) = life.requests
    assert request.scope == "records"
    assert 1 <= len(request.record_ids) < each
    assert len(request.record_ids) == min(max(1, round(fraction * each)), each - 1)


def test_a_fractions_draw_depends_on_nobody_else() -> None:
    """Neither an earlier request of another client nor other clients' data change who is drawn."""
    records = records_of(5, 8)
    asks = forget(3, fraction=0.5)
    alone = life_of([JOIN, TRAIN, asks, TRAIN], records).requests[0]
    second = life_of([JOIN, TRAIN, forget(1), TRAIN, asks, TRAIN], records).requests[1]
    poorer = life_of([JOIN, TRAIN, asks, TRAIN], {**records, 0: ("0/a",)}).requests[0]
    assert alone.record_ids == second.record_ids == poorer.record_ids
    other_seed = [life_of([JOIN, TRAIN, asks, TRAIN], records, seed=seed).requests[0] for seed in range(2, 6)]
    assert any(each.record_ids != alone.record_ids for each in other_seed)


@given(gone=st.sampled_from(range(8)))
def test_without_a_record_the_others_keep_their_order_of_drawing(gone: int) -> None:
    records = records_of(4, 8)
    name = records[3][gone]
    fewer = {**records, 3: tuple(each for each in records[3] if each != name)}
    asks = [JOIN, TRAIN, forget(3, fraction=0.5), TRAIN]
    before, after = (set(life_of(asks, each).requests[0].record_ids) for each in (records, fewer))
    assert before - {name} <= after


def test_a_rejoining_client_can_be_forgotten_again_with_what_it_brought() -> None:
    timeline = [JOIN, TRAIN, forget(3), TRAIN, rejoin(3, records=["3/b"]), TRAIN, forget(3), TRAIN]
    life = life_of(timeline, RECORDS)
    assert [request.record_ids for request in life.requests] == [("3/a", "3/b"), ("3/b",)]
    assert life.events[2].brings == ("3/b",)
    assert life.events[2].text == "client 3 rejoins with 1 record"


def test_a_client_that_left_can_still_ask() -> None:
    """Its data are in the model; leaving erased nothing."""
    life = life_of([JOIN, TRAIN, leave(2), TRAIN, forget(2), TRAIN], RECORDS)
    (request,) = life.requests
    assert (request.client, request.round, request.scope) == (2, 8, "client")
    assert request.record_ids == RECORDS[2]


def test_requests_wait_in_line() -> None:
    life = life_of([JOIN, TRAIN, forget(1), {"train": {"rounds": 1}}, forget(2), TRAIN, TRAIN], RECORDS)
    assert [(answer.first, answer.last) for answer in answers(life, Npo(rounds=3))] == [(5, 7), (8, 10)]
    assert {7, 10} <= milestones(life, [Npo(rounds=3)])


def test_dropping_out_is_told() -> None:
    life = life_of(
        [
            {"join": {"clients": "0-3"}},
            {"drop": {"clients": "1-2", "stage": "before_keys"}},
            {"train": {"rounds": 2}},
        ],
        records_of(4),
    )
    assert [event.text for event in life.events] == ["clients 0-3 join", "clients 1-2 drop out before keys"]
    silent = (FallsSilent(stage="before_keys"),)
    assert life.conditions(1) == {1: silent, 2: silent}
    assert life.conditions(2) == {}


def test_only_who_is_there_drops_out() -> None:
    with pytest.raises(ScenarioError, match=r"s\.yaml:2: timeline.*client 3 cannot drop out after round 0"):
        life_of(
            [{"join": {"clients": "0-2"}}, {"drop": {"clients": 3}}, {"train": {"rounds": 1}}], records_of(5)
        )
