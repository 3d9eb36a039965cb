"""The tree of branches: by hand on tiny lives, then its promises on random ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedsim.life.config import FixedCohort
from fedsim.life.events.drop import FallsSilent
from fedsim.life.roster import Participation
from fedsim.life.schedule import probe_rounds, replay_from
from fedsim.life.steps import Branch, Participant, Step, UnlearningStep
from fedsim.life.tree import Segment, build_tree
from fedsim.places import ScenarioError
from tests.fedsim.life.lives import Lived, live, records_of

EVERYBODY = 1.0
RECORDS = records_of(4)


def clients(step: Step) -> tuple[int, ...]:
    return tuple(participant.client for participant in step.cohort)


def without(step: Step, client: int) -> tuple[str, ...]:
    return next(participant.without for participant in step.cohort if participant.client == client)


# ------------------------------------------------------------------------------------ by hand


def step(round_: int, *ids: int) -> Step:
    return Step(round=round_, cohort=tuple(Participant(client=c) for c in ids), nominal_size=3)


def test_merging_three_branches_by_hand() -> None:
    """a: 0 0 0;  b: 0 0 1 (parts after two);  c: 0 (ends after one)."""
    branches = [
        Branch(name="a", steps=(step(1, 0), step(2, 0), step(3, 0))),
        Branch(name="b", steps=(step(1, 0), step(2, 0), step(3, 1))),
        Branch(name="c", steps=(step(1, 0),)),
    ]
    tree = build_tree(branches)
    assert (tree.branches, tree.start, tree.end, tree.owner) == (("a", "b", "c"), 0, 1, "a")
    (shared,) = tree.children
    assert (shared.branches, shared.start, shared.end) == (("a", "b"), 1, 2)
    assert [(child.branches, child.start, child.steps) for child in shared.children] == [
        (("a",), 2, (step(3, 0),)),
        (("b",), 2, (step(3, 1),)),
    ]
    parents = [(segment.branches, above and above.branches) for segment, above in tree.walk()]
    assert parents == [
        (("a", "b", "c"), None),
        (("a", "b"), ("a", "b", "c")),
        (("a",), ("a", "b")),
        (("b",), ("a", "b")),
    ]


def test_a_life_by_hand() -> None:
    """Client 3 joins after round 1, asks after round 2; the method takes one round, two are left."""
    timeline = [
        {"join": {"clients": "0-1"}},
        {"train": {"rounds": 1}},
        {"join": {"clients": 3}},
        {"train": {"rounds": 1}},
        {"forget": {"client": 3}},
        {"train": {"rounds": 2}},
    ]
    lived = live(timeline, RECORDS, compare=[{"method": "npo", "rounds": 1}], participation=EVERYBODY)
    cohorts = {branch.name: [clients(each) for each in branch.steps] for branch in lived.branches}
    assert cohorts == {
        "keep": [(0, 1), (0, 1, 3), (0, 1, 3), (0, 1, 3)],
        "leave": [(0, 1), (0, 1, 3), (0, 1), (0, 1)],
        "retrain#1": [(0, 1), (0, 1), (0, 1), (0, 1)],
        "npo": [(0, 1), (0, 1, 3), (0, 1), (0, 1)],
    }
    assert [each.unlearning for each in lived.steps("npo")] == [
        None,
        None,
        UnlearningStep(branch="npo", request=1, index=0),
        None,
    ]
    assert [[each.nominal_size for each in branch.steps] for branch in lived.branches] == [[2, 3, 3, 3]] * 4
    spans = [(segment.branches, segment.start, segment.end) for segment, _ in lived.tree.walk()]
    assert spans == [
        (("keep", "leave", "retrain#1", "npo"), 0, 1),
        (("keep", "leave", "npo"), 1, 2),
        (("keep",), 2, 4),
        (("leave",), 2, 4),
        (("npo",), 2, 4),
        (("retrain#1",), 1, 4),
    ]
    assert replay_from(lived.branches, lived.life) == {1: 2}


def test_close_requests_queue() -> None:
    timeline = [
        {"join": {"clients": "0-3"}},
        {"train": {"rounds": 2}},
        {"forget": {"client": 3}},
        {"train": {"rounds": 1}},
        {"forget": {"client": 2}},
        {"forget": {"client": 1}},
        {"train": {"rounds": 8}},
    ]
    lived = live(timeline, RECORDS, compare=[{"method": "npo", "rounds": 2}])
    marks = [
        each.unlearning and (each.unlearning.request, each.unlearning.index) for each in lived.steps("npo")
    ]
    assert marks == [None, None, (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), None, None, None]


def test_each_reference_lives_until_the_next_request() -> None:
    timeline = [
        {"join": {"clients": "0-3"}},
        {"train": {"rounds": 3}},
        {"forget": {"client": 3}},
        {"train": {"rounds": 2}},
        {"forget": {"client": 2}},
        {"train": {"rounds": 4}},
    ]
    lived = live(timeline, RECORDS, participation=EVERYBODY)
    retrain = [(each.name, each.observed_from, len(each.steps)) for each in lived.branches[2:]]
    assert retrain == [("retrain#1", 3, 5), ("retrain#2", 5, 9)]
    assert {client for each in lived.steps("retrain#2") for client in clients(each)} == {0, 1}
    assert {client for each in lived.steps("retrain#1") for client in clients(each)} == {0, 1, 2}


def test_records_are_left_out_after_the_request_and_in_retrain_from_the_beginning() -> None:
    timeline = [
        {"join": {"clients": "0-3"}},
        {"train": {"rounds": 2}},
        {"forget": {"client": 3, "records": ["3/b"]}},
        {"train": {"rounds": 2}},
    ]
    lived = live(timeline, RECORDS, compare=[{"method": "npo", "rounds": 1}], participation=EVERYBODY)
    gone = {branch.name: [without(each, 3) for each in branch.steps] for branch in lived.branches}
    assert gone == {
        "keep": [(), (), (), ()],
        "leave": [(), (), ("3/b",), ("3/b",)],
        "retrain#1": [("3/b",)] * 4,
        "npo": [(), (), ("3/b",), ("3/b",)],
    }


def test_a_client_that_never_trained_costs_no_replay() -> None:
    timeline = [
        {"join": {"clients": "0-2"}},
        {"train": {"rounds": 3}},
        {"join": {"clients": 3}},
        {"forget": {"client": 3}},
        {"train": {"rounds": 2}},
    ]
    lived = live(timeline, RECORDS, participation=EVERYBODY)
    assert replay_from(lived.branches, lived.life) == {1: 4}


def test_replay_starts_where_a_reference_parts_from_the_one_before() -> None:
    timeline = [
        {"join": {"clients": "0-2"}},
        {"train": {"rounds": 2}},
        {"join": {"clients": 3}},
        {"train": {"rounds": 2}},
        {"forget": {"client": 0}},
        {"train": {"rounds": 1}},
        {"forget": {"client": 3}},
        {"train": {"rounds": 1}},
    ]
    lived = live(timeline, RECORDS, participation=EVERYBODY)
    assert replay_from(lived.branches, lived.life) == {1: 1, 2: 3}


# --------------------------------------------------------------------------------- coming back

BACK = [
    {"join": {"clients": "0-3"}},
    {"train": {"rounds": 2}},
    {"forget": {"client": 3}},
    {"train": {"rounds": 2}},
    {"rejoin": {"client": 3, "records": ["3/b"]}},
    {"train": {"rounds": 2}},
]


def test_rejoining_brings_the_named_data_in_every_branch_that_forgot() -> None:
    lived = live(BACK, RECORDS, compare=[{"method": "npo", "rounds": 1}], participation=EVERYBODY)
    for name in ("leave", "retrain#1", "npo"):
        assert [without(each, 3) for each in lived.steps(name)[4:]] == [("3/a",), ("3/a",)]
    assert all(3 not in clients(each) for each in lived.steps("retrain#1")[:4])


def test_where_the_request_was_ignored_coming_back_takes_nothing_away() -> None:
    lived = live(BACK, RECORDS, participation=EVERYBODY)
    assert [without(each, 3) for each in lived.steps("keep")] == [()] * 6


def test_leaving_and_coming_back_with_less_holds_in_keep_too() -> None:
    timeline = [*BACK[:2], {"leave": {"client": 3}}, *BACK[3:]]
    lived = live(timeline, RECORDS, participation=EVERYBODY)
    assert [without(each, 3) for each in lived.steps("keep")[4:]] == [("3/a",), ("3/a",)]


def test_a_second_request_after_coming_back_is_never_trained_on_in_its_reference() -> None:
    timeline = [*BACK, {"forget": {"client": 3}}, {"train": {"rounds": 2}}]
    lived = live(timeline, RECORDS, participation=EVERYBODY)
    assert all(3 not in clients(each) for each in lived.steps("retrain#2"))
    assert any(3 in clients(each) for each in lived.steps("retrain#1"))
    assert replay_from(lived.branches, lived.life) == {1: 1, 2: 5}


def test_a_record_forgotten_before_may_come_back() -> None:
    timeline = [
        {"join": {"clients": "0-3"}},
        {"train": {"rounds": 1}},
        {"forget": {"client": 3, "records": ["3/b"]}},
        {"train": {"rounds": 1}},
        {"leave": {"client": 3}},
        {"rejoin": {"client": 3}},
        {"train": {"rounds": 1}},
    ]
    lived = live(timeline, RECORDS, participation=EVERYBODY)
    assert [without(each, 3) for each in lived.steps("retrain#1")] == [("3/b",), ("3/b",), ()]


# ------------------------------------------------------------------------------ participation


def test_a_fixed_cohort_fills_or_keeps_an_empty_place() -> None:
    roster, nominal = [0, 1, 2, 4, 5], [0, 1, 2, 3, 4, 5]
    for round_ in range(1, 40):
        full = Participation(seed=1, rule=FixedCohort(cohort=3)).cohort(round_, nominal, nominal)
        filled = Participation(seed=1, rule=FixedCohort(cohort=3)).cohort(round_, roster, nominal)
        empty = Participation(seed=1, rule=FixedCohort(cohort=3, replacement="none"))
        assert len(full) == len(filled) == 3
        assert empty.cohort(round_, roster, nominal) == [client for client in full if client != 3]
        assert set(full) - {3} <= set(filled)


def test_participation_has_the_stated_probability() -> None:
    """2,000 draws at q = 0.3: the share lies within four standard errors, 0.041; 0.35 does not."""
    draw = Participation(seed=3, rule=0.3)
    share = sum(len(draw.cohort(round_, range(20), range(20))) for round_ in range(100)) / 2000
    assert abs(share - 0.3) < 0.041
    assert abs(share - 0.35) > 0.0205


# -------------------------------------------------------------------------- promises, at random

MOST = 5
KINDS = ["join", "train", "train", "forget", "records", "fraction", "leave", "rejoin", "probe"]
moves = st.lists(
    st.tuples(
        st.sampled_from(
            ["join", "train", "train", "forget", "records", "fraction", "leave", "rejoin", "probe"]
        ),
        st.integers(0, MOST - 1),
        st.integers(1, 3),
    ),
    min_size=4,
    max_size=14,
)
rules = st.one_of(
    st.sampled_from([0.3, 0.7, 1.0]),
    st.builds(FixedCohort, cohort=st.integers(1, 4), replacement=st.sampled_from(["next", "none"])),
)


def written(moves_: Iterable[tuple[str, int, int]]) -> list[dict[str, Any]]:
    """A life in which most moves are possible: those that are not are left out."""
    there: set[int] = set()
    seen: set[int] = set()
    timeline: list[dict[str, Any]] = [{"join": {"clients": [0, 1]}}]
    there |= {0, 1}
    seen |= {0, 1}
    for kind, client, number in moves_:
        if kind == "train":
            timeline.append({"train": {"rounds": number}})
        elif kind == "join" and client not in seen:
            timeline.append({"join": {"clients": client}})
            there.add(client)
            seen.add(client)
        elif kind in ("forget", "leave") and client in there and len(there) > 1:
            timeline.append({kind: {"client": client}})
            there.discard(client)
        elif kind == "records" and client in there:
            timeline.append({"forget": {"client": client, "records": [f"{client}/{'abc'[number - 1]}"]}})
        elif kind == "fraction" and client in there:
            timeline.append({"forget": {"client": client, "fraction": number / 4}})
        elif kind == "rejoin" and client in seen - there:
            timeline.append(
                {"rejoin": {"client": client, "records": [f"{client}/a", f"{client}/{'abc'[number - 1]}"]}}
            )
            there.add(client)
        elif kind == "probe":
            timeline.append({"probe": {}})
    return [*timeline, {"train": {"rounds": 12}}]


@st.composite
def lives(draw: st.DrawFn) -> Lived:
    timeline, rule, seed = written(draw(moves)), draw(rules), draw(st.integers(0, 9))
    compare = [{"method": "npo", "rounds": 2}, {"method": "grad_ascent", "rounds": 1}]
    try:
        return live(timeline, records_of(MOST, 3), compare=compare, participation=rule, seed=seed)
    except ScenarioError:  # a record forgotten twice, or more unlearning rounds than the end has room for
        assume(False)
        raise


at_random = settings(max_examples=60, deadline=None)


@at_random
@given(lived=lives())
def test_branches_are_read_back_from_the_tree(lived: Lived) -> None:
    for branch in lived.branches:
        assert lived.read_back(branch.name) == branch.steps
        assert [each.round for each in branch.steps] == list(range(1, len(branch.steps) + 1))


@at_random
@given(lived=lives())
def test_shared_steps_run_once(lived: Lived) -> None:
    segments = [segment for segment, _ in lived.tree.walk()]
    total = sum(len(segment.steps) for segment in segments)
    assert total <= sum(len(branch.steps) for branch in lived.branches)
    # As few as possible: one step for each distinct beginning of a branch.
    beginnings = {branch.steps[:n] for branch in lived.branches for n in range(1, len(branch.steps) + 1)}
    assert total == len(beginnings)


@at_random
@given(lived=lives())
def test_a_common_prefix_lies_in_common_segments(lived: Lived) -> None:
    for one in lived.branches:
        for two in lived.branches:
            pairs = zip(one.steps, two.steps, strict=False)
            common = next(
                (n for n, (a, b) in enumerate(pairs) if a != b), min(len(one.steps), len(two.steps))
            )
            both = [segment for segment in lived.path(one.name) if two.name in segment.branches]
            assert sum(len(segment.steps) for segment in both) == common


@at_random
@given(lived=lives())
def test_segments_are_whole_and_can_be_stored_apart(lived: Lived) -> None:
    places = [(segment.end, segment.owner) for segment, parent in lived.tree.walk() if parent is not None]
    assert len(set(places)) == len(places)
    for segment, parent in lived.tree.walk():
        if parent is not None:
            assert segment.start == parent.end
            assert segment.steps
            assert set(segment.branches) <= set(parent.branches)


@at_random
@given(lived=lives())
def test_nobody_trains_who_is_not_there(lived: Lived) -> None:
    """Checked against the written events: who joined and neither left nor was forgotten since."""
    scopes = {request.number: request.scope for request in lived.life.requests}
    for branch in lived.branches:
        there: set[int] = set()
        for each in branch.steps:
            for event in lived.life.at(each.round - 1):
                asked = event.kind == "forget" and scopes[event.request or 0] == "client"
                if event.kind in ("join", "rejoin"):
                    there |= set(event.clients)
                elif event.kind == "leave" or (asked and branch.name != "keep"):
                    there -= set(event.clients)
            assert set(clients(each)) <= there


@at_random
@given(lived=lives())
def test_forgotten_records_are_never_used_again_unless_brought_back(lived: Lived) -> None:
    for branch in lived.branches:
        if branch.name == "keep":
            continue
        for request in lived.life.requests:
            back = [e.round for e in lived.life.events if e.kind == "rejoin" and e.client == request.client]
            until = min((round_ for round_ in back if round_ >= request.round), default=lived.life.horizon)
            after = [each for each in branch.steps if request.round < each.round <= until]
            assert_unused(after, request.client, request.record_ids)


@at_random
@given(lived=lives())
def test_references_never_saw_what_was_granted(lived: Lived) -> None:
    """retrain#k up to the request: none of the data, unless they left by an earlier request and came back."""
    for prefix in range(1, len(lived.life.requests) + 1):
        for request in lived.life.requests[:prefix]:
            before = lived.steps(f"retrain#{prefix}")[: request.round]
            assert_unused(before, request.client, request.record_ids)


def assert_unused(steps: Iterable[Step], client: int, record_ids: tuple[str, ...]) -> None:
    for each in steps:
        for participant in each.cohort:
            if participant.client == client:
                assert set(record_ids) <= set(participant.without)


@at_random
@given(lived=lives())
def test_retrain_shares_everything_before_the_first_participation(lived: Lived) -> None:
    if not lived.life.requests:
        return
    request = lived.life.requests[0]
    keep, retrain = lived.steps("keep"), lived.steps("retrain#1")
    took_part = [each.round for each in keep if request.client in clients(each)]
    first = min(took_part, default=lived.life.horizon + 1)
    shared = min(first - 1, request.round)
    assert retrain[:shared] == keep[:shared]
    replay = replay_from(lived.branches, lived.life)
    assert replay[1] == min(first, request.round + 1)
    assert all(1 <= replay[each.number] <= each.round + 1 for each in lived.life.requests)


@at_random
@given(lived=lives())
def test_unlearning_rounds_are_consecutive_and_complete(lived: Lived) -> None:
    for name, rounds in (("npo", 2), ("grad_ascent", 1)):
        marks = [each.unlearning for each in lived.steps(name) if each.unlearning is not None]
        assert [(mark.request, mark.index) for mark in marks] == [
            (request.number, index) for request in lived.life.requests for index in range(rounds)
        ]
        starts = {
            mark.request: r.round for r in lived.steps(name) if (mark := r.unlearning) and mark.index == 0
        }
        assert all(starts[request.number] > request.round for request in lived.life.requests)
    assert all(each.unlearning is None for name in ("keep", "leave") for each in lived.steps(name))


@at_random
@given(lived=lives(), every=st.integers(1, 4))
def test_probes_come_around_events_and_at_the_end(lived: Lived, every: int) -> None:
    chosen = probe_rounds(lived.branches, lived.life, (), every)
    horizon = lived.life.horizon
    wanted = {0, horizon, *range(0, horizon + 1, every)}
    wanted |= {round_ for event in lived.life.events for round_ in (event.round, event.round + 1)}
    wanted = {round_ for round_ in wanted if round_ <= horizon}
    seen: list[int] = []
    for branch in lived.branches:
        if branch.name.startswith("retrain#"):
            assert min(chosen[branch.name], default=horizon) >= branch.observed_from
            seen.extend(chosen[branch.name])
        else:
            assert chosen[branch.name] == wanted
    # The reference is measured once at each of these rounds from the first request on.
    first = min((request.round for request in lived.life.requests), default=horizon + 1)
    assert sorted(seen) == sorted(round_ for round_ in wanted if round_ >= first)


@at_random
@given(moves_=moves, gone=st.integers(0, MOST - 1), rule=rules, seed=st.integers(0, 9))
def test_a_clients_absence_changes_nobody_elses_participation(
    moves_: list[tuple[str, int, int]], gone: int, rule: float | FixedCohort, seed: int
) -> None:
    """Two lives, with and without one client: the same rounds for the others, place by place."""
    if isinstance(rule, FixedCohort):
        rule = FixedCohort(cohort=rule.cohort, replacement="none")
    roster = list(range(MOST))
    draw = Participation(seed=seed, rule=rule)
    for round_ in range(1, 20):
        full = draw.cohort(round_, roster, roster)
        fewer = draw.cohort(round_, [client for client in roster if client != gone], roster)
        assert fewer == [client for client in full if client != gone]
    if isinstance(rule, float):
        timeline = written(moves_)
        shorter = [event for event in timeline if gone not in named(event)]
        shorter = [leaving_out(event, gone) for event in shorter]
        try:
            one, two = (
                live(each, records_of(MOST, 3), participation=rule, seed=seed) for each in (timeline, shorter)
            )
        except ScenarioError:
            assume(False)
        for full_step, fewer_step in zip(one.steps("leave"), two.steps("leave"), strict=True):
            assert fewer_step.cohort == tuple(each for each in full_step.cohort if each.client != gone)


def named(event: dict[str, Any]) -> set[int]:
    """The client of an event about one client."""
    ((kind, value),) = event.items()
    if kind == "join":
        return {value["clients"]} if isinstance(value["clients"], int) else set()
    return {value["client"]} if "client" in value else set()


def leaving_out(event: dict[str, Any], gone: int) -> dict[str, Any]:
    if isinstance(event.get("join", {}).get("clients"), list):
        return {"join": {"clients": [client for client in event["join"]["clients"] if client != gone]}}
    return event


def test_next_replacement_does_change_others() -> None:
    """The negative control: with replacement, somebody takes the empty place."""
    draw = Participation(seed=1, rule=FixedCohort(cohort=2))
    roster = list(range(5))
    pairs = [(draw.cohort(r, roster, roster), draw.cohort(r, roster[1:], roster)) for r in range(1, 30)]
    assert any(fewer != [client for client in full if client != 0] for full, fewer in pairs)


@pytest.mark.parametrize("participation", [EVERYBODY, FixedCohort(cohort=3)])
def test_a_segment_is_a_value(participation: float | FixedCohort) -> None:
    """The same life gives the same tree, so that a killed run finds its checkpoints."""
    one, two = (live(BACK, RECORDS, participation=participation).tree for _ in range(2))
    assert isinstance(one, Segment)
    assert one == two


def test_a_cohort_with_a_rate_is_drawn_independently_and_cut_at_its_size() -> None:
    everybody = list(range(40))
    capped = Participation(seed=3, rule=FixedCohort(cohort=5, rate=0.3))
    free = Participation(seed=3, rule=0.3)
    sizes = set()
    for round_ in range(1, 30):
        drawn = free.cohort(round_, everybody, everybody)
        kept = capped.cohort(round_, everybody, everybody)
        assert set(kept) <= set(drawn)
        assert len(kept) == min(len(drawn), 5)
        sizes.add(len(drawn))
    assert max(sizes) > 5


def test_who_falls_silent_is_part_of_the_step() -> None:
    lived = live(
        [
            {"join": {"clients": "0-3"}},
            {"train": {"rounds": 1}},
            {"drop": {"clients": "1-2", "stage": "after_keys", "rounds": 2}},
            {"drop": {"clients": 2, "stage": "after_masking"}},
            {"train": {"rounds": 3}},
        ],
        records_of(4),
        participation=1.0,
    )
    early, late = (FallsSilent(stage="after_keys"),), (FallsSilent(stage="after_masking"),)
    conditions = [step.conditions for step in lived.steps("keep")]
    assert conditions == [(), ((1, early), (2, late)), ((1, early), (2, early)), ()]


def test_only_those_who_are_asked_can_fall_silent() -> None:
    events = [{"join": {"clients": "0-9"}}, {"drop": {"clients": "0-9"}}, {"train": {"rounds": 1}}]
    (step,) = live(events, records_of(10), participation=0.5).steps("keep")
    assert {client for client, _ in step.conditions} == {participant.client for participant in step.cohort}


def test_rosters_say_who_could_have_been_drawn() -> None:
    lived = live(
        [
            {"join": {"clients": "0-2"}},
            {"train": {"rounds": 1}},
            {"forget": {"client": 1}},
            {"train": {"rounds": 1}},
        ],
        records_of(3),
        participation=0.01,
    )
    rosters = {branch.name: branch.rosters for branch in lived.branches}
    assert rosters == {
        "keep": ((0, 1, 2), (0, 1, 2)),
        "leave": ((0, 1, 2), (0, 2)),
        "retrain#1": ((0, 2), (0, 2)),
    }
