"""Judgements against the retrained model: by hand, by simulation, and with nothing to find as the control."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsim.metrics.judgement import (
    Comparison,
    judge,
    membership,
    paired,
    smallest_visible_distance,
    together,
)
from fedsim.metrics.membership import auc


def compared(low: float, high: float, margin: float = 0.05) -> Comparison:
    middle = (low + high) / 2
    return Comparison(metric="m", difference=middle, low=low, high=high, margin=margin, n=9)


def test_a_paired_interval_is_the_librarys() -> None:
    mine, reference = np.array([1.0, 2.0, 4.0, 3.0]), np.array([0.5, 2.5, 2.0, 1.0])
    found = paired("m", mine, reference, margin=0.1)
    expected = stats.ttest_rel(mine, reference).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    turned = paired("nll", mine, reference, margin=0.1, known_is_lower=True)
    assert turned is not None
    assert (turned.low, turned.high) == pytest.approx((-expected.high, -expected.low))


def test_an_interval_of_membership_covers_what_it_should() -> None:
    """Over draws, the interval of an AUC's difference holds the true one in about 95 of 100."""
    draws = np.random.default_rng(0)
    truth = stats.norm.cdf(1 / np.sqrt(2)) - 0.5  # members a unit better known, against no difference
    inside = 0
    for _ in range(300):
        shared_I, shared_J = draws.normal(size=30), draws.normal(size=60)
        mine_I = 0.7 * shared_I + np.sqrt(1 - 0.49) * draws.normal(size=30) - 1.0
        mine_J = 0.7 * shared_J + np.sqrt(1 - 0.49) * draws.normal(size=60)
        found = membership(mine_I, shared_I, mine_J, shared_J, margin=0.1)
        assert found is not None
        assert found.difference == pytest.approx(auc(-mine_I, -mine_J) - auc(-shared_I, -shared_J))
        inside += found.low <= truth <= found.high
    assert 270 <= inside <= 297


def test_a_planted_shift_of_a_nat_is_named_and_nothing_is_not() -> None:
    """Nine records, as a client may have: retrain against retrain of other draws as the control."""
    draws = np.random.default_rng(1)
    shifted, nothing = 0, 0
    for _ in range(200):
        base = draws.normal(1.7, 0.6, size=9)
        again = base + draws.normal(0, 0.25, size=9)
        for gap in (0.0, 1.0):
            found = paired("nll", again + gap, base, margin=0.2, known_is_lower=True)
            assert found is not None
            kind = judge([found]).kind
            shifted += gap == 1.0 and kind == "below"
            nothing += gap == 0.0 and kind in ("above", "below")
    assert shifted >= 190
    assert nothing <= 4


def test_directions_by_hand() -> None:
    assert compared(0.06, 0.2).direction == "more"
    assert compared(-0.2, -0.06).direction == "less"
    assert compared(-0.05, 0.05).direction == "same"
    assert compared(-0.2, 0.2).direction == "open"
    assert compared(0.01, 0.2).direction == "open"


def test_one_metric_that_shows_it_overrides_those_that_cannot() -> None:
    """A probability near 0 cannot show overshoot; nats can."""
    assert judge([compared(-0.01, 0.01), compared(-1.4, -0.6)]).kind == "below"
    assert judge([compared(0.1, 0.3), compared(-1.4, -0.6)]).kind == "mixed"
    assert judge([compared(-0.01, 0.01), compared(-0.4, 0.4)]).kind == "open"
    assert judge([]).kind == "unknown"


@given(
    values=st.lists(st.floats(-3, 3), min_size=2, max_size=12),
    noise=st.floats(1.0, 5.0),
)
def test_more_noise_never_makes_equality(values: list[float], noise: float) -> None:
    """Widening the spread of the differences never turns what was open or shown into ``same``."""
    change = np.array(values)
    wider = change.mean() + noise * (change - change.mean())
    narrow, wide = (paired("m", one, np.zeros(len(one)), margin=0.5) for one in (change, wider))
    assert narrow is not None
    assert wide is not None
    assert not (wide.direction == "same" and narrow.direction != "same")


def test_one_record_shows_nothing() -> None:
    found = paired("m", [5.0], [0.0], margin=0.1)
    assert found is not None
    assert found.direction == "open"
    assert paired("m", [np.nan], [0.0], margin=0.1) is None


def test_other_records_are_refused() -> None:
    with pytest.raises(ValueError, match="same records"):
        paired("m", [1.0], [1.0, 2.0], margin=0.1)
    with pytest.raises(ValueError, match="same records"):
        membership([1.0], [1.0, 2.0], [1.0], [1.0], margin=0.1)


def test_several_seeds_together() -> None:
    assert together(["same", "same", "unknown"]) == "same"
    assert together(["same", "open"]) == "open"
    assert together(["same", "below"]) == "below"
    assert together(["above", "below"]) == "mixed"
    assert together([]) == "unknown"


@pytest.mark.parametrize(("n", "distance"), [(9, 6 / 9), (3, 4 / 3), (4, 1.0), (20, 9 / 20)])
def test_what_a_test_of_few_records_can_see(n: int, distance: float) -> None:
    """Two samples of nine reject from a distance of 6/9 on (exact tables of the two-sample test)."""
    assert smallest_visible_distance(n) == pytest.approx(distance)
