import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import ClientUpdateError, OverflowRiskError
from privacy.secagg.fixed_point import FixedPoint


def test_by_hand():
    coder = FixedPoint(bound=1.0, step=0.25, max_terms=3)
    codes = coder.encode(np.array([0.5, -0.25, 0.3]))
    assert codes.tolist() == [2, 2**32 - 1, 1]
    assert coder.decode(codes).tolist() == [0.5, -0.25, 0.25]


def test_overflow_is_refused_at_construction():
    FixedPoint(bound=1.0, step=2.0**-30, max_terms=1)
    with pytest.raises(OverflowRiskError, match="max_terms=2"):
        FixedPoint(bound=1.0, step=2.0**-30, max_terms=2)


@given(st.floats(1e-6, 1e9), st.integers(1, 5000))
def test_fit_is_safe_and_finest(bound, terms):
    coder = FixedPoint.fit(bound=bound, max_terms=terms)
    assert terms * coder.largest_code < 2**31
    with pytest.raises(OverflowRiskError):
        FixedPoint(bound=bound, step=coder.step / 2, max_terms=terms)


@given(st.integers(1, 30), st.sampled_from([-1.0, 1.0]))
def test_extreme_sums_decode(terms, sign):
    coder = FixedPoint.fit(bound=1.0, max_terms=30)
    codes = coder.encode(np.array([sign]))
    total = np.zeros(1, dtype=np.uint32)
    for _ in range(terms):
        total += codes
    assert coder.decode(total).tolist() == [sign * terms]


@pytest.mark.parametrize("value", [1.01, -1.01, np.nan, np.inf])
def test_values_outside_the_bound_never_wrap(value):
    with pytest.raises(ClientUpdateError, match="outside"):
        FixedPoint.fit(bound=1.0, max_terms=4).encode(np.array([value]))
