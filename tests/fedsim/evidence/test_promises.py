"""What DP alone promises, and which sums tell too much; by hand."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.evidence.budgets import exhausted_rows, exhausted_sentences
from fedsim.evidence.differencing import Differing, differencing_sentences, differing
from fedsim.evidence.promises import promise_in_words
from fedsim.life.events.drop import FallsSilent
from fedsim.life.steps import Branch, Participant, Step, UnlearningStep


def branch_of(*cohorts: list[int]) -> Branch:
    steps = tuple(
        Step(round=round_, cohort=tuple(Participant(client=c) for c in cohort), nominal_size=9)
        for round_, cohort in enumerate(cohorts, start=1)
    )
    return Branch(name="leave", steps=steps)


def test_two_rounds_that_differ_by_one_client() -> None:
    branch = branch_of([0, 1, 2], [0, 1, 2], [0, 2], [0, 2, 3], [4, 5, 6])
    assert differing(branch, {}) == [
        Differing(branch="leave", rounds=(2, 3), client=1),
        Differing(branch="leave", rounds=(3, 4), client=3),
    ]


def test_who_drops_out_before_the_sum_is_not_in_it() -> None:
    steps = branch_of([0, 1, 2], [0, 1, 2]).steps
    gone = [(FallsSilent(stage=stage),) for stage in ("after_masking", "during_unmasking")]
    silent = replace(steps[1], conditions=((1, gone[0]), (2, gone[1])))
    branch = Branch(name="keep", steps=(steps[0], silent))
    assert differing(branch, {}) == [Differing(branch="keep", rounds=(1, 2), client=1)]


def test_the_target_of_an_unlearning_round_is_in_its_sum() -> None:
    """Everybody, then the others unlearn with client 3, then the others alone: the last two differ."""
    steps = branch_of([0, 1, 2, 3], [0, 1, 2], [0, 1, 2]).steps
    unlearning = replace(steps[1], unlearning=UnlearningStep(branch="npo", request=1, index=0))
    branch = Branch(name="npo", steps=(steps[0], unlearning, steps[2]))
    assert differing(branch, {1: 3}) == [Differing(branch="npo", rounds=(2, 3), client=3)]


def test_a_cohort_of_one_beside_nobody_is_no_pair() -> None:
    assert differing(branch_of([0], []), {}) == []
    assert differing(branch_of([0, 1], [0]), {}, apart=1) == [
        Differing(branch="leave", rounds=(1, 2), client=1)
    ]


def test_rounds_further_apart_are_found_on_request() -> None:
    branch = branch_of([0, 1], [5, 6, 7], [0])
    assert differing(branch, {}) == []
    assert [pair.rounds for pair in differing(branch, {}, apart=2)] == [(1, 3)]


@given(st.lists(st.lists(st.integers(0, 5), max_size=5, unique=True), max_size=6))
def test_every_pair_differs_by_its_client(cohorts: list[list[int]]) -> None:
    for pair in differing(branch_of(*cohorts), {}):
        one, other = (set(cohorts[round_ - 1]) for round_ in pair.rounds)
        assert one ^ other == {pair.client}


def row(rounds: tuple[int, int], client: int, **changes: object) -> dict[str, object]:
    return {
        "branch": "keep",
        "rounds": list(rounds),
        "client": client,
        "name": f"c{client}",
        "event": True,
        "covered_by": [],
    } | changes


def test_what_is_said_about_differences() -> None:
    told = differencing_sentences(
        [
            row((4, 5), 7),
            row((1, 2), 3, event=False),
            row((2, 3), 3, event=False),
            row((5, 6), 8, covered_by=["x"]),
        ]
    )
    assert told == [
        "Rounds 4 and 5 of keep differ by client c7 alone: the difference of their sums is close to its "
        "update.",
        "2 more pairs of rounds differ by one client by chance of the draw.",
    ]


def test_what_a_promise_compares_with() -> None:
    numbers = {"size": 1, "spent": 2.0, "epsilon": 2.0, "delta": 1e-5}
    told = {
        neighbours: promise_in_words(unit="client", neighbours=neighbours, **numbers)
        for neighbours in ("add_remove", "zero_out", "replace_one")
    }
    assert "unlearning" in told["add_remove"]
    assert "sent nothing" in told["zero_out"]
    assert "unlearning" not in told["replace_one"]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (
            {"size": 1, "spent": 2.0, "epsilon": 2.0, "delta": 1e-5},
            "(2, 1e-05)-unlearning of 1 client together",
        ),
        (
            {"size": 9, "spent": 8.0, "epsilon": 72.0, "delta": 1e-5},
            "vacuous: ε = 8 for one client, which says nothing of 9",
        ),
        (
            {"size": 9, "spent": 8.0, "epsilon": math.inf, "delta": 1e-5},
            "vacuous: ε = 8 for one client, which says nothing of 9",
        ),
        (
            {"size": 1, "spent": 51.0, "epsilon": 51.0, "delta": 1e-5},
            "vacuous: ε = 51 for one client excludes next to nothing",
        ),
        (
            {"size": 2, "spent": 0.0, "epsilon": 0.0, "delta": 2e-5},
            "nothing about the 2 clients was ever released",
        ),
    ],
)
def test_promises_in_words(numbers: dict[str, float], said: str) -> None:
    assert said in promise_in_words(unit="client", **numbers)


def test_when_budgets_were_spent() -> None:
    def event(kind: str, client: int, round_: int) -> dict[str, object]:
        return {
            "kind": kind,
            "variant": "base",
            "seed": 1,
            "branch": "keep",
            "client": client,
            "name": f"c{client}",
            "round": round_,
        }

    events = [event("budget_spent", 3, 9), event("budget_spent", 3, 7), event("budget_spent", 5, 8)]
    rows = exhausted_rows([event("started", 0, 0), *events])
    assert [(row["client"], row["round"]) for row in rows] == [(3, 7), (5, 8)]
    assert exhausted_sentences(rows) == [
        "base, keep: 2 clients had spent the budget, the first in round 7, and sat out."
    ]
