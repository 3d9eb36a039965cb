"""Trajectories: cases by hand, and a method that does nothing is ranked as doing nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedsim.metrics import trajectories as tr

KEEP = np.array([0.9, 0.9, 0.8])
RETRAIN = np.array([0.1, 0.1, 0.2])
SERIES = arrays.arrays(np.float64, 6, elements=st.floats(0.0, 1.0))


def test_series_by_hand() -> None:
    unlearned = np.array([0.9, 0.5, 0.1])
    assert tr.excess(unlearned, RETRAIN) == pytest.approx([0.8, 0.4, -0.1])
    assert tr.method_effect([0.9, 0.8, 0.6], unlearned) == pytest.approx([0.0, 0.3, 0.5])
    fraction = tr.forgetting_fraction(unlearned, KEEP, RETRAIN, gap_error_R=0.1)
    assert fraction == pytest.approx([0.0, 0.5, 0.7 / 0.6])  # the last is not clipped


@given(SERIES, SERIES)
def test_doing_nothing_is_ranked_as_doing_nothing(keep: np.ndarray, retrain: np.ndarray) -> None:
    assert np.array_equal(tr.excess(keep, retrain), keep - retrain)
    fraction = tr.forgetting_fraction(keep, keep, retrain, gap_error_R=0.01)
    shown = ~np.isnan(fraction)
    assert (fraction[shown] == 0.0).all()
    assert np.array_equal(shown, np.abs(keep - retrain) > 0.02)


@given(SERIES, SERIES)
def test_retraining_has_no_excess_and_forgets_all(keep: np.ndarray, retrain: np.ndarray) -> None:
    assert (tr.excess(retrain, retrain) == 0.0).all()
    fraction = tr.forgetting_fraction(retrain, keep, retrain, gap_error_R=0.01)
    assert (fraction[~np.isnan(fraction)] == 1.0).all()


def test_fraction_is_hidden_where_the_gap_is_within_two_standard_errors() -> None:
    found = tr.forgetting_fraction([0.5] * 3, [1.0] * 3, [0.0] * 3, gap_error_R=[0.4, 0.5, np.inf])
    assert found[0] == 0.5
    assert np.isnan(found[1:]).all()


def test_gap_error_is_that_of_the_paired_difference() -> None:
    keep = np.array([[1.0, 2.0, 6.0, np.nan], [1.0, np.nan, np.nan, np.nan]])
    found = tr.gap_standard_error(keep, np.zeros_like(keep))
    assert found[0] == pytest.approx(np.std([1.0, 2.0, 6.0], ddof=1) / np.sqrt(3))
    assert found[1] == np.inf


def hold(series: list[float], rounds: list[int] | None = None, **options: float) -> int | None:
    settings = {"request_round": 2, "tolerance": 0.1, "hold_rounds": 2, **options}
    return tr.time_to_reference(rounds or list(range(len(series))), series, **settings)


def test_time_to_reference_by_hand() -> None:
    assert hold([0, 0, 0.5, 0.05, 0.4, -0.1, 0.1, 0.0]) == 5
    assert hold([0, 0, 0.0, 0.0]) == 2
    assert hold([0, 0, 0.5, 0.0]) is None  # it may not have lasted
    assert hold([0, 0, 0.5, -0.4, -0.4]) is None  # over-forgetting is no agreement
    assert hold([0, 0, 0.0, np.nan, 0.0, 0.0]) == 4
    assert hold([0.5, 0.0, 0.05, 0.0], [2, 4, 6, 8], hold_rounds=4) == 4


def test_exposure_by_hand() -> None:
    series = [9.0, 0.5, -0.3, 0.25]
    assert tr.exposure([0, 1, 2, 3], series, request_round=1, horizon_round=3) == 0.75
    assert tr.exposure([0, 1, 2, 3], series, request_round=1, horizon_round=2) == 0.5
    assert tr.exposure([0, 2, 4, 6], series, request_round=2, horizon_round=7) == 2 * 0.5 + 2 * 0.25
    assert np.isnan(tr.exposure([1, 2], [0.1, np.nan], request_round=1, horizon_round=2))


def test_resurgence_by_hand() -> None:
    series = [0.9, 0.1, 0.05, 0.4, 0.2]
    assert tr.resurgence(range(5), series, since_round=1) == pytest.approx(0.3)
    assert tr.resurgence(range(5), series, since_round=3) == pytest.approx(-0.2)
    assert np.isnan(tr.resurgence(range(5), series, since_round=4))


def test_collateral_by_hand() -> None:
    found = tr.collateral([0.9, 0.5, np.nan, 0.8], [0.9, 0.8, 0.1, 0.7])
    assert (found.mean, found.worst) == pytest.approx((-0.2 / 3, -0.3))
    assert found.worst_client == 1


def test_backward_transfer_and_forgetting_by_hand() -> None:
    scores = [[0.8, 0.1, 0.0], [0.9, 0.7, 0.2], [0.5, 0.6, 0.9]]
    assert tr.backward_transfer(scores) == pytest.approx(((0.5 - 0.8) + (0.6 - 0.7)) / 2)
    assert tr.forgetting_measure(scores) == pytest.approx(((0.9 - 0.5) + (0.7 - 0.6)) / 2)
    assert tr.backward_transfer(scores, learned_row_I=[1, 2, 2]) == pytest.approx(0.5 - 0.9)
    assert np.isnan(tr.forgetting_measure([[0.5]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tr.excess([1.0], [1.0, 2.0]), "equal shapes"),
        (lambda: tr.resurgence([1, 1], [0.0, 0.0], since_round=1), "strictly increasing"),
        (lambda: tr.resurgence([1, 2], [0.0], since_round=1), "one value per round"),
        (lambda: tr.exposure([1, 3], [0.0, 0.0], request_round=2, horizon_round=3), "was not probed"),
        (lambda: tr.exposure([1, 3], [0.0, 0.0], request_round=3, horizon_round=1), "horizon_round=1"),
        (lambda: hold([0.0], hold_rounds=0), "hold_rounds=0"),
        (lambda: tr.collateral([np.nan], [1.0]), "no client"),
        (lambda: tr.backward_transfer([0.1]), "times, tasks"),
        (lambda: tr.backward_transfer([[0.1, 0.2]], learned_row_I=[0, 1]), "one row of"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
