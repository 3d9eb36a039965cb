"""Membership attacks: scores by hand, AUC against an independent oracle, intervals that cover."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from fedsim.metrics import membership


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_scores_by_hand() -> None:
    assert membership.loss_score([2.0]).tolist() == [-2.0]
    assert membership.reference_score([1.0], [3.0]).tolist() == [2.0]
    size = len(zlib.compress(b"some text"))
    assert membership.zlib_score([2.0], ["some text"]) == pytest.approx([-2.0 / size])


def test_min_k_takes_the_least_likely_tokens() -> None:
    log_probs = np.array([[-1.0, -5.0, -3.0, -2.0, -4.0], [-7.0, -1.0, 0.0, 0.0, 0.0]])
    mask = np.array([[True] * 5, [True, True, False, False, False]])
    found = membership.min_k_score(log_probs, mask, fraction=0.4)
    assert found == pytest.approx([-4.5, -7.0])  # two of five; one of two
    whole = membership.min_k_score(log_probs, mask, fraction=1.0)
    assert whole == pytest.approx([-3.0, -4.0])
    assert np.isnan(membership.min_k_score(log_probs, np.zeros_like(mask))).all()


def test_min_k_plus_plus_is_min_k_of_standardised_values() -> None:
    log_probs = np.array([[-1.0, -5.0, 0.0]])
    mean = np.array([[-2.0, -3.0, 0.0]])
    deviation = np.array([[2.0, 1.0, 0.0]])
    mask = np.ones((1, 3), dtype=bool)
    found = membership.min_k_plus_plus_score(log_probs, mean, deviation, mask, fraction=1.0)
    assert found == pytest.approx([(0.5 - 2.0 + 0.0) / 3])


def test_auc_by_hand() -> None:
    assert membership.auc([3.0, 2.0], [1.0, 2.0]) == pytest.approx(3.5 / 4)
    assert membership.auc([1.0, np.nan], [0.0]) == 1.0
    assert membership.auc([0.0], [1.0]) == 0.0


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
)
def test_auc_agrees_with_scikit_learn_and_is_antisymmetric(members: list[int], others: list[int]) -> None:
    value = membership.auc(members, others)
    labels = [1] * len(members) + [0] * len(others)
    assert value == pytest.approx(roc_auc_score(labels, members + others))
    assert value + membership.auc(others, members) == pytest.approx(1.0)


def coverage(spread: float, repeats: int = 150) -> float:
    """How often the interval holds the true AUC of two normals, one of them shifted by 1."""
    truth = stats.norm.cdf(1.0 / np.sqrt(2.0))
    draws = rng(1)
    inside = 0
    for repeat in range(repeats):
        result = membership.attack_auc(
            draws.normal(1.0, 1.0, 40), draws.normal(0.0, 1.0, 40), rng=rng(repeat), resamples=200
        )
        half = spread * (result.high - result.low) / 2
        middle = (result.high + result.low) / 2
        inside += middle - half <= truth <= middle + half
    return inside / repeats


def test_interval_covers_the_true_auc() -> None:
    assert coverage(1.0) > 0.88  # nominal 0.95; binomial error at 150 repeats is about 0.02
    assert coverage(0.3) < 0.75  # the control: an interval that is too narrow fails


def test_members_like_any_others_score_chance() -> None:
    draws = rng(2)
    result = membership.attack_auc(draws.normal(size=400), draws.normal(size=400), rng=rng())
    assert result.low < 0.5 < result.high
    shifted = membership.attack_auc(draws.normal(0.5, 1.0, 400), draws.normal(size=400), rng=rng())
    assert shifted.low > 0.5


def test_interval_is_a_function_of_the_generator() -> None:
    members, others = rng(3).normal(1.0, 1.0, 20), rng(4).normal(0.0, 1.0, 20)
    first, again = (membership.attack_auc(members, others, rng=rng(5)) for _ in range(2))
    assert first == again
    assert first != membership.attack_auc(members, others, rng=rng(6))


def test_complete_separation_claims_no_certainty() -> None:
    result = membership.attack_auc(np.arange(10, 18), np.arange(8), rng=rng())
    assert (result.auc, result.high, result.n_members) == (1.0, 1.0, 8)
    assert result.low == pytest.approx(0.025 ** (1 / 8))
    turned = membership.attack_auc(np.arange(8), np.arange(10, 18), rng=rng())
    assert (turned.low, turned.high) == pytest.approx((0.0, 1.0 - 0.025 ** (1 / 8)))


def test_one_member_against_many_says_nothing() -> None:
    result = membership.attack_auc([1.5], [0.0, 1.0, 2.0, 3.0], rng=rng())
    assert (result.auc, result.low, result.high) == (0.5, 0.0, 1.0)


def test_tpr_at_low_fpr_by_hand() -> None:
    members, others = [5.0, 3.0, 1.0, 0.0], [4.0, 2.0]
    assert membership.tpr_at_fpr(members, others, max_fpr=0.0) == 0.25
    assert membership.tpr_at_fpr(members, others, max_fpr=0.5) == 0.5
    assert membership.tpr_at_fpr(members, others, max_fpr=1.0) == 1.0
    assert membership.tpr_at_fpr([1.0], [1.0], max_fpr=0.0) == 0.0


def test_privacy_leak_by_hand() -> None:
    assert membership.privacy_leak(1.0, 0.5) == 100.0
    assert membership.privacy_leak(0.4, 0.5) == pytest.approx(-20.0)
    with pytest.raises(ValueError, match="auc_retrain"):
        membership.privacy_leak(1.0, 0.0)


def test_what_cannot_be_computed_is_refused() -> None:
    with pytest.raises(ValueError, match="members has no values"):
        membership.auc([np.nan], [1.0])
    with pytest.raises(ValueError, match="fraction=0"):
        membership.min_k_score([[-1.0]], [[True]], fraction=0.0)
    with pytest.raises(ValueError, match="max_fpr=2"):
        membership.tpr_at_fpr([1.0], [1.0], max_fpr=2.0)
    with pytest.raises(ValueError, match="confidence=95"):
        membership.attack_auc([1.0], [1.0], rng=rng(), confidence=95)
    with pytest.raises(ValueError, match="one text per item"):
        membership.zlib_score([1.0, 2.0], ["one"])
