import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.audit.bounds import LARGEST, audited_epsilon, highest_certifiable, p_value


def test_p_value_by_hand():
    """Three guesses, all right, q = 1/2: 1/8, and max(3/8, 6/16, 7/24) = 3/8 times 2 m delta = 0.2."""
    known = {"canaries": 10, "guesses": 3, "correct": 3, "epsilon": 0.0}
    assert p_value(**known, delta=0.0) == pytest.approx(1 / 8)
    assert p_value(**known, delta=0.01) == pytest.approx(1 / 8 + 0.2 * 3 / 8)
    assert p_value(**known | {"epsilon": math.log(3)}, delta=0.0) == pytest.approx((3 / 4) ** 3)
    assert p_value(**known | {"correct": 0}, delta=0.0) == 1.0


@given(
    guesses=st.integers(1, 40),
    correct=st.integers(1, 40),
    epsilon=st.floats(0, 5),
    delta=st.sampled_from([0.0, 1e-6, 1e-3]),
)
def test_p_value_is_the_sum_over_outcomes(guesses, correct, epsilon, delta):
    """The formula again, outcome by outcome, with binomial coefficients."""
    correct = min(correct, guesses)
    q = 1 / (1 + math.exp(-epsilon))
    law = [math.comb(guesses, k) * q**k * (1 - q) ** (guesses - k) for k in range(guesses + 1)]
    lifted = max(sum(law[correct - i : correct]) / i for i in range(1, correct + 1))
    expected = min(1.0, sum(law[correct:]) + 2 * 60 * delta * lifted)
    got = p_value(canaries=60, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("guesses", [5, 50, 500])
def test_perfect_guesses_in_closed_form(guesses):
    """q^r = 1 - confidence, solved for epsilon."""
    q = 0.01 ** (1 / guesses)
    got = highest_certifiable(canaries=guesses, guesses=guesses, delta=0.0, confidence=0.99)
    assert got == pytest.approx(max(0.0, math.log(q / (1 - q))), abs=1e-9)


def test_nothing_can_be_said():
    for correct in (0, 40, 50):
        assert audited_epsilon(canaries=100, guesses=100, correct=correct, delta=0.0, confidence=0.95) == 0.0
    assert audited_epsilon(canaries=100, guesses=0, correct=0, delta=0.0, confidence=0.95) == 0.0
    assert highest_certifiable(canaries=10**6, guesses=10, delta=1e-3, confidence=0.99) == 0.0


counts = st.tuples(st.integers(1, 300), st.integers(0, 300), st.integers(0, 500))
deltas = st.sampled_from([0.0, 1e-6, 1e-5, 1e-4])


@settings(max_examples=20, deadline=None)
@given(counts=counts, delta=deltas, confidence=st.floats(0.6, 0.999))
def test_monotone_and_within_the_certifiable(counts, delta, confidence):
    guesses, correct, more = counts[0], min(counts[0] - 1, counts[1]), counts[2]
    known = {"canaries": guesses + more, "guesses": guesses, "delta": delta, "confidence": confidence}
    found = audited_epsilon(**known, correct=correct)
    slack = found + 1e-9
    assert 0 <= found <= highest_certifiable(**known) + 1e-9 <= LARGEST
    assert found <= audited_epsilon(**known, correct=correct + 1) + 1e-9
    assert audited_epsilon(**known | {"confidence": (1 + confidence) / 2}, correct=correct) <= slack
    assert audited_epsilon(**known | {"delta": delta * 2 + 1e-6}, correct=correct) <= slack
    assert audited_epsilon(**known | {"canaries": guesses + more + 100}, correct=correct) <= slack


def test_certifiable_grows_with_guesses():
    reach = [
        highest_certifiable(canaries=5000, guesses=r, delta=1e-6, confidence=0.99)
        for r in (10, 50, 250, 1250)
    ]
    assert reach == sorted(reach)
    assert reach[0] < reach[-1] - 2


def test_randomised_response_is_not_accused_and_a_leakier_one_is():
    """The mechanism for which the bound is tight; the leakier one is the negative control."""
    rng = np.random.default_rng(0)
    honest, leaky = (rng.binomial(1000, stats.logistic.cdf(epsilon), size=400) for epsilon in (1.0, 1.4))

    def accused(corrects):
        lows = {
            int(v): audited_epsilon(canaries=1000, guesses=1000, correct=int(v), delta=0.0, confidence=0.95)
            for v in set(corrects)
        }
        return np.mean([lows[int(v)] > 1.0 for v in corrects])

    assert 0.0 < accused(honest) <= 0.08
    assert accused(leaky) > 0.95


@pytest.mark.parametrize(
    "wrong",
    [
        {"correct": 11},
        {"guesses": 21},
        {"correct": -1},
        {"confidence": 1.0},
        {"confidence": 0.3},
        {"delta": 2.0},
    ],
)
def test_bad_numbers(wrong):
    known = {"canaries": 20, "guesses": 10, "correct": 5, "delta": 0.0, "confidence": 0.95}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        audited_epsilon(**known | wrong)
    with pytest.raises(ValueError, match="epsilon=-1"):
        p_value(canaries=20, guesses=10, correct=5, epsilon=-1, delta=0.0)
