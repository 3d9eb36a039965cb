"""Exact memorisation and extraction strength: cases by hand, then against a plain loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.metrics.memorisation import exact_memorisation, extraction_strength


@pytest.mark.parametrize(
    ("hits", "memorised", "strength"),
    [
        ([1, 1, 1, 1], 1.0, 1.0),
        ([0, 1, 1, 1], 0.75, 0.75),
        ([1, 1, 0, 1], 0.75, 0.25),
        ([1, 1, 1, 0], 0.75, 0.0),
        ([0, 0, 0, 0], 0.0, 0.0),
    ],
)
def test_by_hand(hits: list[int], memorised: float, strength: float) -> None:
    mask = np.ones((1, 4), dtype=bool)
    assert exact_memorisation([hits], mask).tolist() == [memorised]
    assert extraction_strength([hits], mask).tolist() == [strength]


def test_padding_counts_for_nothing() -> None:
    hits = np.array([[True, True, False], [False, True, True], [True, True, True]])
    mask = np.array([[True, True, False], [True, False, False], [False, False, False]])
    assert exact_memorisation(hits, mask)[:2].tolist() == [1.0, 0.0]
    assert extraction_strength(hits, mask)[:2].tolist() == [1.0, 0.0]
    assert np.isnan(extraction_strength(hits, mask)[2])
    with pytest.raises(ValueError, match="equal"):
        extraction_strength(hits, mask[:2])


def strength_by_loop(hits: list[bool]) -> float:
    for k in range(len(hits)):
        if all(hits[k:]):
            return 1.0 - k / len(hits)
    return 0.0


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=7), min_size=1, max_size=6))
def test_ragged_items_agree_with_the_definition(items: list[list[bool]]) -> None:
    hits = np.zeros((len(items), 7), dtype=bool)
    mask = np.zeros_like(hits)
    for row, item in enumerate(items):
        hits[row, : len(item)] = item
        mask[row, : len(item)] = True
    strength = extraction_strength(hits, mask)
    assert strength == pytest.approx([strength_by_loop(item) for item in items])
    assert (strength <= exact_memorisation(hits, mask) + 1e-12).all()
