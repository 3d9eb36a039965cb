"""Forget quality and model utility: cases by hand, properties, a statistical control."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.metrics.forget_quality import forget_quality
from fedsim.metrics.utility import model_utility


def test_forget_quality_by_hand() -> None:
    result = forget_quality([0.0, 1.0, np.nan], [2.0, 3.0])
    assert result.ks_distance == 1.0
    assert result.p_value == pytest.approx(1 / 3)  # 2 of the 6 ways to split four ranks
    assert result.wasserstein == pytest.approx(2.0)
    assert (result.n_unlearned, result.n_retrain) == (2, 2)


@pytest.mark.filterwarnings("error")
def test_samples_that_hardly_differ_are_compared_without_a_word() -> None:
    """Of 23 and 23 values whose distance is 1/23 SciPy's exact p-value comes out above 1."""
    values = np.arange(23.0)
    result = forget_quality(values, values + 0.5)
    assert (result.p_value, result.ks_distance) == (1.0, pytest.approx(1 / 23))


def test_p_values_are_uniform_under_equality_and_small_otherwise() -> None:
    draws = np.random.default_rng(0)
    same = [forget_quality(draws.random(60), draws.random(60)).p_value for _ in range(200)]
    other = [forget_quality(draws.random(60), draws.random(60) + 0.4).p_value for _ in range(50)]
    assert 0.01 <= np.mean(np.array(same) < 0.1) <= 0.17
    assert np.mean(np.array(other) < 0.1) > 0.8


def test_infinite_ratios_leave_the_test_and_void_the_distance() -> None:
    result = forget_quality([np.inf, 1.0], [1.0, 2.0])
    assert result.ks_distance == 0.5
    assert np.isnan(result.wasserstein)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="retrain has no values"):
        forget_quality([1.0], [np.nan])


def test_utility_by_hand() -> None:
    assert model_utility({"a": 1.0, "b": 0.5, "c": 0.25}) == (
        pytest.approx(3 / 7),
        {"a": 1.0, "b": 0.5, "c": 0.25},
    )
    assert model_utility({"a": 1.0, "b": 0.0})[0] == 0.0


@pytest.mark.parametrize("components", [{}, {"a": float("nan")}, {"a": -0.1}, {"a": 1.1}])
def test_utility_refuses_what_is_no_share(components: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="component"):
        model_utility(components)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=9))
def test_utility_lies_between_the_worst_component_and_the_mean(values: list[float]) -> None:
    value, _ = model_utility({str(index): item for index, item in enumerate(values)})
    assert min(values) - 1e-12 <= value <= np.mean(values) + 1e-12
