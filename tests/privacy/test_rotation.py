import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard

from privacy.rotation import padded, rotate, rotate_back


def test_lengths():
    assert [padded(n) for n in (1, 2, 3, 4, 5, 1000)] == [1, 2, 4, 4, 8, 1024]


def test_against_the_matrix():
    vector = np.random.default_rng(0).normal(size=16)
    signs = rotate(np.eye(16)[0], sign_key=("k",)) * 4  # the first column tells the first sign only
    assert np.allclose(np.abs(signs), 1)
    matrix = np.stack([rotate(column, sign_key=("k",)) for column in np.eye(16)], axis=1)
    assert np.allclose(np.abs(matrix), 0.25)
    assert np.allclose(matrix @ vector, rotate(vector, sign_key=("k",)))
    assert {tuple(np.sign(c)) for c in matrix.T} <= {
        tuple(sign * column) for sign in (1, -1) for column in hadamard(16).T
    }


@given(st.integers(1, 70), st.integers(0, 2**31), st.integers(0, 9))
def test_there_and_back_keeps_lengths(size, seed, key):
    vector = np.random.default_rng(seed).normal(size=size)
    turned = rotate(vector, sign_key=("s", key))
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(vector))
    assert np.allclose(rotate_back(turned, sign_key=("s", key), dimension=size), vector)


def test_another_key_is_another_rotation():
    vector = np.arange(8.0)
    assert not np.allclose(rotate(vector, sign_key=(1,)), rotate(vector, sign_key=(2,)))


def test_it_spreads_what_sticks_out():
    spike = np.zeros(1024)
    spike[5] = 1.0
    assert np.abs(rotate(spike, sign_key=())).max() == pytest.approx(1 / 32)
