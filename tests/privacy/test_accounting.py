import logging
import time
from collections import Counter

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import (
    ACCOUNTED_NOISE,
    FAINT_NOISE,
    LEAST_NOISE,
    MOST_NOISE,
    VACUOUS,
    Mechanism,
    calibrate_noise,
    epsilon,
    group_guarantee,
)


def step(noise=1.0, rate=0.1, **fields):
    return Mechanism(noise_multiplier=noise, sampling_rate=rate, **fields)


def test_published_settings():
    """q=.1, sigma=1, T=50, delta=1e-3: RDP 4.02, PRV (tight) 3.32; Gaussian DP's 2.86 lies below both."""
    composition = ((step(), 50),)
    assert epsilon(composition, delta=1e-3, accountant="rdp") == pytest.approx(4.02, abs=5e-3)
    assert epsilon(composition, delta=1e-3) == pytest.approx(3.31, abs=1e-2)
    assert epsilon(composition, delta=1e-3) > 2.86


def test_without_sampling():
    """sigma=1, T=50, delta=1e-3, no amplification: RDP 49.4, PLD 46.0 (dp-accounting, default grid)."""
    composition = ((step(rate=1.0), 50),)
    assert epsilon(composition, delta=1e-3, accountant="rdp") == pytest.approx(49.4, abs=0.05)
    assert epsilon(composition, delta=1e-3) == pytest.approx(46.0, abs=0.05)


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), [(1.3, 0.25, 40, 1e-5), (0.9, 0.05, 200, 1e-4)])
def test_against_dp_accounting_on_its_own_grid(noise, rate, steps, delta):
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise)), steps
    )
    composition = ((step(noise, rate), steps),)
    tight = pld.PLDAccountant().compose(event).get_epsilon(delta)
    loose = rdp.RdpAccountant().compose(event).get_epsilon(delta)
    assert tight - 1e-9 <= epsilon(composition, delta=delta) <= tight + 1e-3
    assert epsilon(composition, delta=delta, accountant="rdp") == pytest.approx(loose, rel=1e-9)
    assert tight < loose


def test_mixed_mechanisms_against_dp_accounting():
    parts = ((step(1.0, 0.1), 30), (step(1.5, 0.3), 20))
    accountant = pld.PLDAccountant()
    for mechanism, count in parts:
        accountant.compose(mechanism.event(), count)
    assert epsilon(parts, delta=1e-5) == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-3)


def test_no_release_costs_nothing():
    assert epsilon((), delta=1e-5) == 0.0


def test_huge_losses_fall_back_to_the_rdp_bound_without_a_jump_down():
    values = [epsilon(((step(0.5, 0.5), n),), delta=1e-5) for n in (1, 2, 4, 8, 16, 64, 256)]
    assert values == sorted(values)
    assert values[-1] > VACUOUS


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([0.8, 1.0, 2.0]), st.sampled_from([0.05, 0.3, 1.0]), st.integers(1, 30))
def test_more_steps_or_less_noise_never_cost_less(noise, rate, steps):
    here = epsilon(((step(noise, rate), steps),), delta=1e-5)
    assert epsilon(((step(noise, rate), steps + 1),), delta=1e-5) >= here - 1e-9
    assert epsilon(((step(noise * 1.25, rate), steps),), delta=1e-5) <= here + 1e-9


ADDED = [  # each kind of noise and of draw, from what excludes nothing to next to nothing
    step(FAINT_NOISE / 2, 0.1),
    step(0.3, 0.01),
    step(1.0, 0.1),
    *(Mechanism(noise_multiplier=noise, sampling="none") for noise in (0.105, 0.5, 4.0)),
    *(
        Mechanism(
            noise_multiplier=noise,
            sampling="truncated_poisson",
            sampling_rate=rate,
            population=24,
            sample_size=12,
        )
        for noise, rate in ((0.2, 0.5), (1.0, 0.1), (50.0, 0.5))
    ),
]
EXCHANGED = [
    *(step(noise, rate, neighbours="replace_one") for noise, rate in ((0.2, 1.0), (0.5, 0.3), (50.0, 0.5))),
    Mechanism(noise_multiplier=1.0, sampling="none", neighbours="replace_one"),
    Mechanism(
        noise_multiplier=2.0,
        sampling="without_replacement",
        population=24,
        sample_size=12,
        neighbours="replace_one",
    ),
]
RELEASES = st.sampled_from([ADDED, EXCHANGED]).flatmap(
    lambda kinds: st.lists(st.tuples(st.sampled_from(kinds), st.sampled_from([1, 8])), min_size=2, max_size=4)
)


@settings(max_examples=20, deadline=None)
@given(RELEASES, st.sampled_from(["pld", "rdp"]), st.sampled_from([1e-3, 1e-5]))
def test_no_release_on_top_lowers_epsilon(releases, accountant, delta):
    total, before = Counter(), 0.0
    for mechanism, steps in releases:
        total[mechanism] += steps
        after = epsilon(tuple(sorted(total.items())), delta=delta, accountant=accountant)
        assert after >= before - 1e-9
        before = after


@pytest.mark.parametrize(("accountant", "noise"), [("pld", 0.105), ("rdp", 0.5)])
def test_a_bound_that_was_taken_stays_beside_what_it_cannot_amplify(accountant, noise):
    """The Gaussian's RDP bound by dp-accounting; its privacy loss distribution gives less."""
    event = dp_accounting.GaussianDpEvent(noise)
    alone = rdp.RdpAccountant().compose(event).get_epsilon(1e-3)
    assert pld.PLDAccountant().compose(event).get_epsilon(1e-3) < alone - 0.5
    gaussian = (Mechanism(noise_multiplier=noise, sampling="none"), 1)
    assert epsilon((gaussian,), delta=1e-3, accountant=accountant) == pytest.approx(alone)
    hardly = Mechanism(
        noise_multiplier=50.0, sampling="truncated_poisson", sampling_rate=0.5, population=24, sample_size=12
    )
    both = tuple(sorted((gaussian, (hardly, 1))))
    assert alone - 1e-9 <= epsilon(both, delta=1e-3, accountant=accountant) <= alone + 0.5


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_calibration_is_within_and_tight(accountant):
    noise = calibrate_noise(((step(rate=0.2), 60),), target_epsilon=4.0, delta=1e-5, accountant=accountant)
    at = epsilon(((step(noise, 0.2), 60),), delta=1e-5, accountant=accountant)
    below = epsilon(((step(noise - 1e-3, 0.2), 60),), delta=1e-5, accountant=accountant)
    assert at <= 4.0 < below


def test_calibrating_each_round_afresh_breaks_the_budget():
    """Trap: epsilon=4 per round is not 4 after ten rounds."""
    per_round = calibrate_noise(((step(rate=0.2), 10),), target_epsilon=4.0, delta=1e-5)
    whole_life = calibrate_noise(((step(rate=0.2), 100),), target_epsilon=4.0, delta=1e-5)
    assert epsilon(((step(per_round, 0.2), 100),), delta=1e-5) > 8.0
    assert epsilon(((step(whole_life, 0.2), 100),), delta=1e-5) <= 4.0


def test_accounting_logs_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        epsilon(((step(0.77, 0.31), 3),), delta=1e-5)
    assert not caplog.records


@pytest.mark.parametrize("wrong", [{"delta": 0.0}, {"delta": 1.0}, {"delta": 1e-5, "accountant": "gdp"}])
def test_bad_arguments(wrong):
    with pytest.raises(ValueError, match=r"delta|gdp"):
        epsilon(((step(), 1),), **wrong)
    for noise in (0.0, 1e-200, ACCOUNTED_NOISE / 2, float("inf")):
        with pytest.raises(ValueError, match=f"noise_multiplier={noise} must be finite and at least"):
            Mechanism(noise_multiplier=noise)
    with pytest.raises(ValueError, match="sampling_rate"):
        Mechanism(noise_multiplier=1.0, sampling_rate=1.5)


def test_group_guarantee():
    pair = group_guarantee(epsilon=1.0, delta=1e-6, size=2)
    assert pair.epsilon == 2.0
    assert pair.delta == pytest.approx(1e-6 * (1 + 2.718281828), rel=1e-6)
    assert not pair.vacuous
    assert group_guarantee(epsilon=8.0, delta=1e-5, size=20).vacuous
    assert group_guarantee(epsilon=300.0, delta=1e-5, size=1000).vacuous
    assert group_guarantee(epsilon=0.0, delta=1e-5, size=3).delta == pytest.approx(3e-5)


def test_queries_are_fast():
    """24 clients, each round: one new count per client, the rest remembered."""
    mechanism = step(1.1, 0.4)
    epsilon(((mechanism, 1),), delta=1e-5)
    begin = time.perf_counter()
    for steps in range(2, 12):
        for _ in range(24):
            epsilon(((mechanism, steps),), delta=1e-5)
    assert (time.perf_counter() - begin) / 240 < 0.05


def life(rounds=50, **fields):
    return ((Mechanism(noise_multiplier=fields.pop("noise", 1.0), **fields), rounds),)


@pytest.mark.parametrize(
    ("composition", "accountant", "expected"),
    [
        (life(sampling="none"), "rdp", 49.4),
        (life(sampling="none"), "pld", 46.0),
        (life(sampling_rate=0.1), "pld", 3.31),
        (
            life(sampling="truncated_poisson", sampling_rate=0.1, population=100, sample_size=20),
            "pld",
            3.47,
        ),
        (life(sampling_rate=0.1, neighbours="replace_one"), "pld", 5.07),
        (
            life(
                noise=2.0,
                sampling="without_replacement",
                population=100,
                sample_size=10,
                neighbours="replace_one",
            ),
            "rdp",
            7.13,
        ),
        (
            life(sampling="without_replacement", population=100, sample_size=10, neighbours="replace_one"),
            "rdp",
            42.4,
        ),
    ],
    ids=["none rdp", "none pld", "poisson", "capped", "poisson exchange", "fixed z=1", "fixed z=0.5"],
)
def test_cohorts_of_clients_by_how_they_were_drawn(composition, accountant, expected):
    """n=100, m=10, T=50, sigma=1 (2 in one row), delta=1e-3; computed by dp-accounting 0.6 apart from this
    code."""
    assert epsilon(composition, delta=1e-3, accountant=accountant) == pytest.approx(expected, abs=0.05)


def test_exchanging_a_unit_doubles_the_sensitivity_once_whichever_accountant():
    exchange = life(5, noise=4.0, sampling="none", neighbours="replace_one")
    halved = life(5, noise=2.0, sampling="none")
    for accountant in ("rdp", "pld"):
        ours = epsilon(exchange, delta=1e-5, accountant=accountant)
        assert ours == pytest.approx(epsilon(halved, delta=1e-5, accountant=accountant), abs=2e-3)


def test_a_sample_of_everybody_is_no_sample():
    whole = life(sampling="without_replacement", population=10, sample_size=10, neighbours="replace_one")
    bare = life(sampling="none", neighbours="replace_one")
    assert epsilon(whole, delta=1e-5) == epsilon(bare, delta=1e-5)


def test_skellam_noise_against_dp_accounting_over_whole_orders():
    """zCDP with rho = 1 / (2 z^2) and xi, by the RDP accountant over whole orders alone."""
    ours = epsilon(life(20, noise=3.0, sampling="none", kind="skellam", excess=1e-3), delta=1e-5)
    orders = [order for order in rdp.RdpAccountant().orders if order == int(order) and order >= 2]
    accountant = rdp.RdpAccountant(orders).compose(dp_accounting.ZCDpEvent(1 / 18, 1e-3), 20)
    assert ours == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)
    assert ours > epsilon(life(20, noise=3.0, sampling="none"), delta=1e-5)


def test_neighbours_do_not_mix():
    with pytest.raises(ValueError, match="do not compose"):
        epsilon((*life(sampling="none"), *life(sampling="none", neighbours="replace_one")), delta=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling": "shuffled"}, "sampling='shuffled'"),
        ({"neighbours": "friends"}, "neighbours='friends'"),
        ({"kind": "laplace"}, "kind='laplace'"),
        ({"sampling": "none", "sampling_rate": 0.5}, "sampling_rate=0.5"),
        ({"sampling": "without_replacement", "population": 5, "sample_size": 2}, "replace_one"),
        ({"sampling": "truncated_poisson", "sampling_rate": 0.5}, "bounded size"),
        ({"population": 5}, "bounded size"),
        ({"kind": "skellam", "excess": 0.1}, "skellam"),
        ({"kind": "skellam", "sampling": "none"}, "excess=0"),
        ({"excess": 0.1}, "excess=0.1"),
    ],
)
def test_mechanisms_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Mechanism(noise_multiplier=1.0, **fields)


def test_a_cap_that_hardly_ever_binds_costs_hardly_anything():
    fields = {"sampling": "truncated_poisson", "sampling_rate": 0.1, "population": 100}
    free, capped = life(sampling_rate=0.1), life(sample_size=30, **fields)
    assert epsilon(free, delta=1e-3) <= epsilon(capped, delta=1e-3) <= epsilon(free, delta=1e-3) + 0.02
    assert epsilon(life(sample_size=12, **fields), delta=1e-3) > epsilon(free, delta=1e-3) + 0.1


DRAWS = [
    {"sampling": "none"},
    {"sampling_rate": 0.5},
    {"sampling_rate": 0.5, "neighbours": "replace_one"},
    {"sampling": "truncated_poisson", "sampling_rate": 0.5, "population": 24, "sample_size": 12},
    {"sampling": "without_replacement", "population": 24, "sample_size": 12, "neighbours": "replace_one"},
]


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize("fields", DRAWS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_the_faintest_noise_is_accounted_at_once(fields, accountant):
    """Where a privacy loss distribution is not worth its time. Fifty releases cost more than 1 / (2 z^2)."""
    begin = time.perf_counter()
    for noise in (ACCOUNTED_NOISE, LEAST_NOISE, 1e-3, 0.099):
        found = epsilon(life(noise=noise, **fields), delta=1e-5, accountant=accountant)
        assert 0.5 / noise**2 < found < float("inf")
    assert time.perf_counter() - begin < 5.0
    assert epsilon(life(1, noise=MOST_NOISE, **fields), delta=1e-5, accountant=accountant) < 1e-2
