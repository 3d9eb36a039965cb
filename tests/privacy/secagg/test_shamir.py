"""Secret sharing, in a field small enough to try every case."""

from collections import Counter
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.secagg.shamir import MERSENNE, Shamir

SMALL = Shamir(prime=7)


def test_a_line_by_hand():
    field = Shamir(prime=257)
    assert field.split(42, points=[1, 2, 3], coefficients=[7]) == {1: 49, 2: 56, 3: 63}
    assert field.join({1: 49, 2: 56}) == field.join({3: 63, 1: 49}) == 42


@given(st.data())
def test_any_threshold_of_shares_gives_the_secret_back(data):
    secret = data.draw(st.integers(0, MERSENNE - 1))
    count = data.draw(st.integers(1, 12))
    needed = data.draw(st.integers(1, count))
    coefficients = [data.draw(st.integers(0, MERSENNE - 1)) for _ in range(needed - 1)]
    shares = Shamir().split(secret, points=range(1, count + 1), coefficients=coefficients)
    kept = data.draw(st.permutations(sorted(shares)))[: data.draw(st.integers(needed, count))]
    assert Shamir().join({point: shares[point] for point in kept}) == secret


def test_fewer_shares_are_consistent_with_every_secret_equally():
    """Every polynomial of degree 2 modulo 7: any two shares leave all seven secrets equally likely."""
    points = [1, 2, 3, 4]
    for seen in combinations(points, 2):
        secrets: dict[tuple[int, ...], Counter[int]] = {}
        for secret, a, b in product(range(7), repeat=3):
            shares = SMALL.split(secret, points=points, coefficients=[a, b])
            secrets.setdefault(tuple(shares[point] for point in seen), Counter())[secret] += 1
        assert len(secrets) == 49
        assert all(set(counts.values()) == {1} and len(counts) == 7 for counts in secrets.values())


def test_three_shares_pin_the_secret_down():
    """Negative control of the test above: one more share leaves one secret."""
    for secret, a, b in product(range(7), repeat=3):
        shares = SMALL.split(secret, points=[1, 2, 3, 4], coefficients=[a, b])
        assert SMALL.join({point: shares[point] for point in (1, 3, 4)}) == secret


@pytest.mark.parametrize(
    ("secret", "points", "coefficients", "message"),
    [
        (7, [1, 2], [1], "secret"),
        (-1, [1, 2], [1], "secret"),
        (3, [1, 8], [1], "distinct"),
        (3, [0, 2], [1], "distinct"),
        (3, [1, 2], [1, 2], "threshold"),
    ],
)
def test_what_cannot_be_shared(secret, points, coefficients, message):
    with pytest.raises(ValueError, match=message):
        SMALL.split(secret, points=points, coefficients=coefficients)
