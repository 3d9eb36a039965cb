import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privacy.clipping import clip
from privacy.errors import ClientUpdateError

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_three_four_five_triangle():
    vector = np.array([3.0, 4.0], dtype=np.float32)
    clipped, metrics = clip(vector, norm=1.0)
    np.testing.assert_allclose(clipped, [0.6, 0.8], rtol=1e-6)
    assert metrics == {"norm": 5.0, "clipped": 1.0}
    assert vector.tolist() == [3.0, 4.0]


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=finite), st.floats(1e-6, 1e6))
def test_norm_is_never_exceeded_and_short_vectors_are_untouched(vector, norm):
    clipped, metrics = clip(vector, norm=norm)
    assert np.linalg.norm(clipped.astype(np.float64)) <= norm
    if not metrics["clipped"]:
        assert clipped.tobytes() == vector.tobytes()


def test_rounding_to_fp32_alone_would_exceed_the_norm():
    """Negative control: scaling without rounding towards zero goes above the norm."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 50)).astype(np.float32)
    naive = [(v * np.float32(1.0 / np.linalg.norm(v))).astype(np.float64) for v in vectors]
    assert max(np.linalg.norm(v) for v in naive) > 1.0
    assert max(np.linalg.norm(clip(v, norm=1.0)[0].astype(np.float64)) for v in vectors) <= 1.0


def test_zero_update_passes():
    clipped, metrics = clip(np.zeros(5, dtype=np.float32), norm=1.0)
    assert not clipped.any()
    assert metrics == {"norm": 0.0, "clipped": 0.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_raises(bad):
    with pytest.raises(ClientUpdateError, match="NaN or infinity"):
        clip(np.array([1.0, bad], dtype=np.float32), norm=1.0)


@pytest.mark.parametrize("norm", [0.0, -1.0, np.inf, np.nan])
def test_norm_must_be_positive(norm):
    with pytest.raises(ValueError, match="norm="):
        clip(np.ones(2, dtype=np.float32), norm=norm)
