"""Lists of whole numbers, as scenarios write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data.numbers import parse_numbers


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 20))))
def test_ranges_and_numbers_come_in_the_order_written(spans):
    expected = tuple(number for first, more in spans for number in range(first, first + more + 1))
    assert parse_numbers([f"{first}-{first + more}" for first, more in spans]) == expected
    assert parse_numbers(list(expected)) == expected
    if spans:
        assert parse_numbers(", ".join(f"{first} - {first + more}" for first, more in spans)) == expected


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (-1, "found -1; must be a whole number from 0, or a range such as 180-199"),
        (1.5, "found 1.5"),
        (True, "found True"),
        ("", "found ''"),
        ("3-", "found '3-'"),
        ("\u0663", "found '\u0663'"),
        ("5-3", "the range 5-3 is empty; write 3-5"),
        ("0-999999999", "has 1,000,000,000 numbers; at most 100,000"),
    ],
)
def test_what_is_no_number_is_named(written, message):
    with pytest.raises(ValueError, match=message):
        parse_numbers(written)
