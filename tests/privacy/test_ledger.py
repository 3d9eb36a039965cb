import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import Mechanism, epsilon
from privacy.errors import LedgerError
from privacy.ledger import Ledger, Release

BASE = Release(
    round_id=1, branch="main", clients=("a",), unit="example", noise_multiplier=1.0, sampling_rate=0.1
)

releases = st.builds(
    Release,
    round_id=st.integers(0, 5),
    branch=st.sampled_from(["main", "leave"]),
    clients=st.sampled_from([("a",), ("b",), ("a", "b")]),
    unit=st.sampled_from(["example", "client"]),
    noise_multiplier=st.sampled_from([1.0, 1.5]),
    sampling_rate=st.sampled_from([0.1, 0.25]),
    steps=st.integers(1, 20),
    attempt=st.integers(0, 1),
    delta=st.sampled_from([None, 1e-5]),
)


def test_epsilon_by_accounting():
    ledger = Ledger([replace(BASE, steps=20), replace(BASE, round_id=2, steps=30)])
    assert ledger.epsilon("a", unit="example", delta=1e-3) == pytest.approx(3.31, abs=1e-2)
    assert ledger.epsilon("a", unit="client", delta=1e-3) == 0.0
    assert ledger.epsilon("b", unit="example", delta=1e-3) == 0.0


def test_equal_steps_are_kept_as_one():
    ledger = Ledger([BASE] * 7)
    assert ledger.releases() == (replace(BASE, steps=7),)


def test_a_release_on_several_counts_for_each_of_them():
    ledger = Ledger([replace(BASE, clients=("a", "c"), unit="client", steps=3)])
    expected = epsilon(((Mechanism(noise_multiplier=1.0, sampling_rate=0.1), 3),), delta=1e-5)
    assert ledger.epsilon("a", unit="client", delta=1e-5) == expected
    assert ledger.epsilon("b", unit="client", delta=1e-5) == 0.0
    assert ledger.clients(unit="client") == ("a", "c")


@settings(max_examples=15, deadline=None)
@given(st.lists(releases, max_size=6))
def test_epsilon_never_decreases(items):
    ledger = Ledger()
    before = 0.0
    for release in items:
        ledger.append(release)
        after = ledger.epsilon("a", unit="example", delta=1e-5, accountant="rdp")
        assert after >= before - 1e-9
        before = after


def test_tight_epsilon_never_decreases():
    ledger, before = Ledger(), 0.0
    for round_id in range(8):
        ledger.append(replace(BASE, round_id=round_id, steps=5, sampling_rate=0.1 + 0.1 * (round_id % 2)))
        after = ledger.epsilon("a", unit="example", delta=1e-5)
        assert after >= before - 1e-9
        before = after


@given(st.lists(releases, max_size=8))
def test_json_round_trip_and_canonical_order(items):
    text = Ledger(items).to_json()
    again = Ledger.from_json(text)
    assert again.to_json() == text
    assert Ledger(reversed(items)).to_json() == text
    for client in ("a", "b"):
        for unit in ("example", "client"):
            assert again.composition(client, unit=unit) == Ledger(items).composition(client, unit=unit)


def test_anyone_can_account_again_from_the_json():
    """From the JSON alone, with dp-accounting and nothing of ours."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, pld

    ledger = Ledger([replace(BASE, steps=12), replace(BASE, round_id=2, steps=9, noise_multiplier=1.4)])
    accountant = pld.PLDAccountant()
    for row in json.loads(ledger.to_json())["releases"]:
        event = PoissonSampledDpEvent(row["sampling_rate"], GaussianDpEvent(row["noise_multiplier"]))
        accountant.compose(event, row["steps"])
    assert accountant.get_epsilon(1e-5) == pytest.approx(
        ledger.epsilon("a", unit="example", delta=1e-5), abs=1e-3
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 99, "releases": []}',
        '{"version": 2, "releases": [{"clients": ["a"]}]}',
        Ledger([BASE]).to_json().replace('["a"]', '"a"'),
        Ledger([BASE]).to_json().replace('["a"]', "[]"),
        Ledger([BASE]).to_json().replace('["a"]', '["a", "a"]'),
        Ledger([BASE]).to_json().replace("1.0", "-1.0"),
        Ledger([BASE]).to_json().replace('"steps": 1', '"steps": 0'),
        Ledger([BASE]).to_json().replace('"gaussian"', '"magic"'),
        Ledger([BASE]).to_json().replace('"noise_multiplier": 1.0', '"noise_multiplier": "1"'),
    ],
)
def test_damaged_json(text):
    with pytest.raises(LedgerError):
        Ledger.from_json(text)


def test_would_exceed_changes_nothing_and_is_sharp():
    ledger = Ledger([replace(BASE, steps=50)])
    before, now = ledger.to_json(), ledger.epsilon("a", unit="example", delta=1e-3)
    more = replace(BASE, round_id=2, steps=10)
    after = epsilon(((more.charge(), 60),), delta=1e-3)
    assert ledger.would_exceed(more, max_epsilon=after - 1e-6, delta=1e-3)
    assert not ledger.would_exceed(more, max_epsilon=after, delta=1e-3)
    assert ledger.to_json() == before
    assert ledger.epsilon("a", unit="example", delta=1e-3) == now


def test_forks_do_not_see_each_other():
    ledger = Ledger([BASE])
    branch = ledger.fork()
    branch.append(replace(BASE, branch="leave", steps=5))
    assert ledger.releases() == (BASE,)
    assert branch.composition("a", unit="example")[0][1] == 6


@given(st.lists(releases, max_size=12))
def test_a_clients_past_says_what_it_spent_and_nothing_of_others(items):
    ledger = Ledger(items)
    for client in ("a", "b", "c"):
        past = Ledger.from_json(ledger.past(client).to_json())
        for unit in ("example", "client"):
            assert past.composition(client, unit=unit) == ledger.composition(client, unit=unit)
        assert {name for release in past.releases() for name in release.clients} <= {client}


def test_a_past_does_not_grow_with_time():
    long = Ledger(replace(BASE, round_id=round_, clients=("a", "c")) for round_ in range(1, 50))
    assert long.past("a").releases() == (replace(BASE, round_id=0, branch="", clients=("a",), steps=49),)


def test_ledgers_agree_up_to_rounding_release_by_release():
    nearly, other = replace(BASE, noise_multiplier=1.0 + 1e-12), replace(BASE, unit="client")
    assert Ledger([BASE, other]).agrees_with(Ledger([other, nearly]))
    assert not Ledger([BASE, nearly]).agrees_with(Ledger([BASE, other])), "one twice, the other never"
    assert not Ledger([BASE]).agrees_with(Ledger([BASE, other]))
    assert not Ledger([BASE]).agrees_with(Ledger([replace(BASE, noise_multiplier=1.001)]))


def test_releases_travel_back_from_a_clients_own_ledger():
    server = Ledger([BASE])
    client = server.past("a")
    known = frozenset(client.releases())
    client.append(replace(BASE, round_id=2, steps=4))
    server.extend(client.since(known))
    assert server.composition("a", unit="example")[0][1] == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": 0.0},
        {"sampling_rate": 0.0},
        {"sampling": "none"},
        {"clients": ()},
        {"clients": ("a", "a")},
        {"sampling": "shuffled"},
        {"unit": "user"},
        {"steps": 0},
        {"steps": 1.5},
    ],
)
def test_bad_releases(wrong):
    with pytest.raises(LedgerError):
        replace(BASE, **wrong)
