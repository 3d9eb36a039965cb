"""Group privacy at a fixed delta, against Gaussian noise on a sum that a group moves k times as far."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from privacy.accounting import Mechanism, epsilon
from privacy.groups import group_epsilon


def exact(noise: float, steps: int, size: int, delta: float) -> float:
    """Balle and Wang (2018): the epsilon of Gaussian noise for a shift of ``size``, by its exact profile."""
    shift = size * math.sqrt(steps) / noise

    def excess(eps: float) -> float:
        log_second = eps + norm.logcdf(-shift / 2 - eps / shift)
        return norm.cdf(shift / 2 - eps / shift) - math.exp(log_second) - delta

    return brentq(excess, 0.0, 200.0)


def spent(noise: float, steps: int):
    return ((Mechanism(noise_multiplier=noise, sampling="none"), steps),)


@settings(max_examples=40, deadline=None)
@given(st.floats(10.0, 40.0), st.integers(1, 20), st.integers(2, 6), st.sampled_from([1e-3, 1e-5]))
def test_a_group_of_gaussian_releases(noise: float, steps: int, size: int, delta: float) -> None:
    """Never below the exact value, and of its size: the bound knows of no Gaussian."""
    found = group_epsilon([spent(noise, steps)], size=size, delta=delta)
    true = exact(noise, steps, size, delta)
    assert found >= true
    assert found <= 2.0 * true + 0.5


@given(st.floats(5.0, 40.0), st.integers(1, 5))
def test_more_units_cost_more_and_one_what_it_cost(noise: float, size: int) -> None:
    one, delta = spent(noise, 3), 1e-4
    assert group_epsilon([one], size=1, delta=delta) == epsilon(one, delta=delta)
    assert group_epsilon([one], size=size + 1, delta=delta) > group_epsilon([one], size=size, delta=delta)


def test_edges() -> None:
    assert group_epsilon([(), ()], size=3, delta=1e-5) == 0.0
    assert group_epsilon([spent(0.01, 1)], size=2, delta=1e-5) > 50
    weak, strong = spent(5.0, 1), spent(50.0, 1)
    assert group_epsilon([strong, weak], size=2, delta=1e-5) == group_epsilon([weak], size=2, delta=1e-5)
    for wrong in ({"size": 0, "delta": 1e-5}, {"size": 2, "delta": 0.0}, {"size": 2, "delta": 1.0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            group_epsilon([weak], **wrong)
