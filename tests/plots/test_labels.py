"""Placing labels: apart, in order, moved as little as possible."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plots import style, words
from plots.labels import spread, stack


def test_two_at_one_place_part_evenly() -> None:
    assert spread([5.0, 5.0], 2.0, 0.0, 10.0) == [4.0, 6.0]


def test_what_is_apart_stays() -> None:
    assert spread([9.0, 1.0, 4.0], 2.0, 0.0, 10.0) == [9.0, 1.0, 4.0]


def test_the_edge_pushes_back() -> None:
    assert spread([10.0, 10.0], 1.0, 0.0, 10.0) == [9.0, 10.0]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12))
def test_spread_is_apart_inside_and_in_order(wanted: list[float]) -> None:
    places = spread(wanted, 0.5, 0.0, 10.0)
    ordered = sorted(places)
    assert all(b - a >= 0.5 - 1e-9 for a, b in pairwise(ordered))
    assert ordered[0] >= -1e-9
    assert ordered[-1] <= 10 + 1e-9
    by_wish = [place for _, place in sorted(zip(wanted, places, strict=True))]
    assert by_wish == pytest.approx(ordered)


def test_stack_uses_a_new_row_only_on_overlap() -> None:
    assert stack([(0, 2), (3, 5), (1, 4)]) == [0, 0, 1]


def test_balanced_keeps_every_word() -> None:
    text = "one two three four five six seven eight nine ten eleven twelve"
    lines = style.balanced(text, 30)
    assert " ".join(lines) == text
    assert max(map(len, lines)) <= 30


@pytest.mark.parametrize(
    ("p", "text"), [(0.4, "0.40"), (6e-12, "6·10⁻¹²"), (0.0, "0"), (None, "–"), (float("nan"), "–")]
)
def test_p_values(p: float | None, text: str) -> None:
    assert words.p_value(p) == text


def test_numbers_read_well() -> None:
    assert words.number(-0.001) == "0.00"
    assert words.number(0.034, sign=True) == "+0.03"
    assert words.percent(0.0831) == "8.3 %"
    assert words.inside("Gradient ascent") == "gradient ascent"
    assert words.inside("SimNPO") == "SimNPO"
    assert words.listing(["a", "b", "c", "d"]) == "a, b and 2 others"
