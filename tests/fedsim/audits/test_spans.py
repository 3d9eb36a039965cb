"""Membership in a row space, by hand in three dimensions and against noise of known size."""

import numpy as np
import pytest

from fedsim.audits.spans import Span

PLANE = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2.0, 1.0, 0.0]])


def test_a_plane_in_space_by_hand():
    span = Span.of(PLANE)
    vectors = np.array([[1.0, 7.0, 0.0], [0.0, 0.0, 2.0], [3.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    assert span.rank == 2
    assert span.tells
    assert span.residuals(vectors) == pytest.approx([0.0, 1.0, 0.8, 1.0])
    assert span.noise == pytest.approx(0.0, abs=1e-15)


def test_scale_changes_nothing_but_the_unit_of_noise():
    noisy = PLANE + 1e-6 * np.random.default_rng(0).normal(size=PLANE.shape)
    one, scaled = Span.of(noisy), Span.of(-1e-3 * noisy)
    vectors = np.array([[1.0, 7.0, 0.0], [3.0, 0.0, 4.0]])
    assert one.residuals(vectors) == pytest.approx(scaled.residuals(vectors))
    assert one.rounding(vectors) == pytest.approx(scaled.rounding(vectors))
    assert scaled.noise == pytest.approx(1e-3 * one.noise)


def test_zeros_have_no_span_and_noise_has_no_rank_below_full():
    assert Span.of(np.zeros((4, 3))).rank == 0
    assert not Span.of(np.zeros((4, 3))).tells
    noise = Span.of(np.random.default_rng(0).normal(size=(40, 6)))
    assert noise.rank == 6
    assert not noise.tells


def test_independent_rows_are_all_kept_when_nothing_drops():
    assert Span.of(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])).rank == 2


def test_the_expected_residual_is_what_members_leave_and_others_do_not():
    """Members against a noise of known size; strangers are the negative control."""
    draws = np.random.default_rng(0)
    members_NE, strangers_NE = draws.normal(size=(8, 60)), draws.normal(size=(8, 60))
    gradient = draws.normal(size=(30, 8)) * np.geomspace(1.0, 1e-2, 8) @ members_NE
    span = Span.of(gradient + 1e-5 * draws.normal(size=gradient.shape))
    assert span.rank == 8
    assert span.noise == pytest.approx(1e-5, rel=0.1)
    assert span.residuals(members_NE) / span.rounding(members_NE) == pytest.approx(np.ones(8), abs=0.4)
    assert (span.residuals(strangers_NE) / span.rounding(strangers_NE)).min() > 100.0
