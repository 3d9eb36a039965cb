"""Secret sharing: of a secret's shares, any ``threshold`` give it back, and fewer say nothing about it.

Shamir, "How to Share a Secret" (1979), over the integers modulo a prime: the secret is a polynomial's value
at 0, a share its value elsewhere.

>>> field = Shamir(prime=257)
>>> shares = field.split(42, points=[1, 2, 3], coefficients=[7])     # a line: two shares are enough
>>> shares
{1: 49, 2: 56, 3: 63}
>>> field.join({3: 63, 1: 49})
42
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MERSENNE = 2**521 - 1
"""A prime with room for secrets of 64 bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shamir:
    """Sharing modulo ``prime``.

    *Guarantees.* With coefficients that are uniform and independent, ``len(coefficients)`` shares are
    consistent with every secret equally.

    *Edge cases.* Points must be distinct and not 0 modulo the prime; a secret outside [0, prime) is refused.
    """

    prime: int = MERSENNE

    def split(self, secret: int, *, points: Sequence[int], coefficients: Sequence[int]) -> dict[int, int]:
        """Shares by point; any ``len(coefficients) + 1`` of them give the secret back."""
        if not 0 <= secret < self.prime:
            raise ValueError("the secret must be from 0 to prime - 1")
        self._check(points)
        if len(coefficients) >= len(points):
            raise ValueError(f"{len(points)} shares can never reach the threshold {len(coefficients) + 1}")
        shares = {}
        for point in points:
            value = 0
            for coefficient in reversed(coefficients):
                value = (value + coefficient) * point % self.prime
            shares[point] = (value + secret) % self.prime
        return shares

    def join(self, shares: Mapping[int, int]) -> int:
        """The value at 0 of the polynomial of least degree through all shares, given by point."""
        points = list(shares)
        self._check(points)
        secret = 0
        for point in points:
            above, below = 1, 1
            for other in points:
                if other != point:
                    above = above * other % self.prime
                    below = below * (other - point) % self.prime
            secret += shares[point] * above * pow(below, -1, self.prime)
        return secret % self.prime

    def _check(self, points: Sequence[int]) -> None:
        reduced = {point % self.prime for point in points}
        if not points or 0 in reduced or len(reduced) != len(points):
            raise ValueError(f"points={list(points)} must be distinct and not 0")
