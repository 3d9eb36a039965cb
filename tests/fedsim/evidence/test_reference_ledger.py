"""The ledger of a life whose requests are answered by retraining: by hand, and against any life."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.evidence.reference_ledger import Granted, reference_ledger
from privacy import Ledger, Release

STAY, GONE = "0", "1"
DELTA = 1e-3


def released(branch: str, rounds, clients=(STAY, GONE), **more) -> Ledger:
    return Ledger(
        Release(
            round_id=round_,
            branch=branch,
            clients=tuple(clients),
            unit="client",
            noise_multiplier=8.0,
            **more,
        )
        for round_ in rounds
    )


def asked(number: int, round_: int, replay_from: int, client: str = GONE, whole: bool = True) -> Granted:
    return Granted(number=number, client=client, round=round_, replay_from=replay_from, whole=whole)


def charged(ledger: Ledger, client: str) -> int:
    return sum(steps for _, steps in ledger.composition(client, unit="client"))


def test_rounds_before_the_request_stay_charged() -> None:
    """Rounds 1 to 4 with client 1, of which 3 and 4 are replayed without it, then 5 and 6."""
    keep, again = released("keep", range(1, 7)), released("retrain", range(1, 7), [STAY])
    found = reference_ledger(keep, {1: again}, [asked(1, 4, 3)], until=6)
    assert charged(found, STAY) == 4 + 4
    assert charged(found, GONE) == 4
    assert charged(reference_ledger(keep, {1: again}, [asked(1, 4, 3)], until=3), STAY) == 3
    assert charged(reference_ledger(keep, {1: again}, [asked(1, 4, 3)], until=4), STAY) == 4 + 2
    assert found.epsilon(STAY, unit="client", delta=DELTA) > again.epsilon(STAY, unit="client", delta=DELTA)


def test_a_second_request_replays_the_first_ones_replay() -> None:
    """Rounds 1-2; replay 1-4 without client 1; at round 4, replay 3-5 without client 2, too."""
    keep = released("keep", range(1, 6), [STAY, GONE, "2"])
    lives = {1: released("r1", range(1, 6), [STAY, "2"]), 2: released("r2", range(1, 6), [STAY])}
    found = reference_ledger(keep, lives, [asked(1, 2, 1), asked(2, 4, 3, "2")], until=5)
    assert charged(found, STAY) == 2 + 4 + 3
    assert charged(found, "2") == 2 + 4
    assert charged(found, GONE) == 2


FIXED = {"sampling": "without_replacement", "neighbours": "replace_one", "population": 4, "sample_size": 2}
FOUR = [STAY, GONE, "2", "3"]


@pytest.mark.parametrize(("refills", "population"), [(True, 3), (False, 4)])
def test_a_fixed_cohort_is_drawn_from_those_who_are_in_the_reference(refills: bool, population: int) -> None:
    """Rounds 1 and 2 are the reference's own: of 3 clients, 2 take part, not of 4."""
    keep = released("keep", range(1, 5), FOUR, **FIXED)
    again = released("retrain", range(1, 5), [STAY, "2", "3"], **{**FIXED, "population": 3})
    found = reference_ledger(keep, {1: again}, [asked(1, 3, 3)], until=4, refills=refills)
    by_round = {
        (release.round_id, release.branch, client): release.population
        for release in found.releases()
        for client in release.clients
    }
    assert {by_round[round_, "keep", STAY] for round_ in (1, 2)} == {population}
    assert {by_round[round_, "keep", GONE] for round_ in (1, 2, 3)} == {4}
    assert by_round[3, "keep", STAY] == 4, "made and made again: the first time with the client"
    assert {by_round[round_, "retrain", STAY] for round_ in (3, 4)} == {3}
    assert charged(found, STAY) == 3 + 2


def test_an_epsilon_of_fewer_is_larger() -> None:
    keep = released("keep", range(1, 9), FOUR, **FIXED)
    again = released("retrain", range(1, 9), [STAY, "2", "3"], **{**FIXED, "population": 3})
    request = [asked(1, 4, 5)]
    counted = [
        reference_ledger(keep, {1: again}, request, until=8, refills=refills).epsilon(
            STAY, unit="client", delta=DELTA
        )
        for refills in (False, True)
    ]
    assert counted[0] < counted[1]


def test_records_that_are_forgotten_leave_the_client_in_the_roster() -> None:
    keep = released("keep", range(1, 4), FOUR, **FIXED)
    found = reference_ledger(keep, {1: keep}, [asked(1, 2, 3, whole=False)], until=3, refills=True)
    assert {release.population for release in found.releases()} == {4}


lives = st.integers(1, 8).flatmap(
    lambda horizon: st.tuples(
        st.just(horizon),
        st.lists(st.integers(0, horizon), min_size=1, max_size=3, unique=True).map(sorted),
        st.data(),
    )
)


@given(lives)
def test_nobody_is_charged_less_than_for_any_round_that_was_made(drawn) -> None:
    """Never less than keep up to the first request, nor than the last retrained life from its replay on; and
    what was charged by one round stays charged by the next."""
    horizon, moments, data = drawn
    granted = [
        asked(number, round_, data.draw(st.integers(1, round_ + 1)), str(number))
        for number, round_ in enumerate(moments, start=1)
    ]
    everybody = ["0", "1", "2", "3"]
    keep = released("keep", range(1, horizon + 1), everybody)
    retrained = {
        request.number: released(f"r{request.number}", range(1, horizon + 1), everybody)
        for request in granted
    }
    totals = [
        charged(reference_ledger(keep, retrained, granted, until=until), "0") for until in range(horizon + 1)
    ]
    assert totals == sorted(totals)
    replayed = sum(
        (granted[index + 1].round if index + 1 < len(granted) else horizon) - request.replay_from + 1
        for index, request in enumerate(granted)
    )
    assert totals[-1] == granted[0].round + replayed
