"""Fixed point: real numbers as integers modulo 2^32, so that sums under masks are exact.

A number x becomes rint(x / step) modulo 2^32; negative numbers sit in the upper half. A sum of at most
``max_terms`` such integers is read back without ambiguity as long as it stays below 2^31 in size, which
is checked when the coder is built, for the worst case. Steps are powers of two, so that reading back
rounds nothing and whole numbers stay whole where there is room.

>>> import numpy as np
>>> coder = FixedPoint.fit(bound=1.0, max_terms=10)
>>> codes = coder.encode(np.array([0.5, -0.25]))
>>> coder.decode(codes + codes).tolist()
[1.0, -0.5]
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.errors import ClientUpdateError, OverflowRiskError

MODULUS_BITS = 32
HALF_RANGE = 2 ** (MODULUS_BITS - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedPoint:
    """Coder for numbers in [-bound, bound] in units of ``step``, of which up to ``max_terms`` are added.

    *Guarantees.* decode(sum of encode(x_i)) = sum of rint(x_i / step) * step exactly, for up to
    ``max_terms`` terms; its distance from the sum of x_i is at most terms * step / 2, or terms * step if
    rounded towards zero.

    *Edge cases.* Numbers beyond the bound by more than half a step, and NaN, raise
    `ClientUpdateError`; they never wrap around. A step too fine for the range raises
    `OverflowRiskError` at construction.
    """

    bound: float
    step: float
    max_terms: int

    def __post_init__(self) -> None:
        if not 0 < self.bound < math.inf or not 0 < self.step < math.inf:
            raise ValueError(f"bound={self.bound} and step={self.step} must be positive and finite")
        if self.max_terms < 1:
            raise ValueError(f"max_terms={self.max_terms} must be at least 1")
        if self.max_terms * self.largest_code >= HALF_RANGE:
            raise OverflowRiskError(
                f"max_terms={self.max_terms} numbers up to bound={self.bound} in steps of step={self.step} "
                f"can reach {self.max_terms * self.largest_code}, not below 2^31; use a coarser "
                "step, a smaller bound or a smaller cohort"
            )

    @property
    def largest_code(self) -> int:
        """Largest size of one encoded number."""
        return math.floor(self.bound / self.step + 0.5)

    @classmethod
    def fit(cls, *, bound: float, max_terms: int, coarsest: float | None = None) -> FixedPoint:
        """The finest power-of-two step that cannot overflow.

        Raises `OverflowRiskError` if that step is coarser than ``coarsest`` (same unit as ``bound``).
        """
        if not 0 < bound < math.inf or max_terms < 1:
            raise ValueError(f"bound={bound} must be positive and finite, max_terms={max_terms} at least 1")
        exponent = math.floor(math.log2(bound) + math.log2(max_terms)) - MODULUS_BITS
        while max_terms * math.floor(bound / 2.0**exponent + 0.5) >= HALF_RANGE:
            exponent += 1
        step = 2.0**exponent
        if coarsest is not None and step > coarsest:
            raise OverflowRiskError(
                f"max_terms={max_terms} numbers up to bound={bound} leave room for steps of {step} only, "
                f"coarser than the {coarsest} that keeps the mean accurate; lower max_weight or max_cohort"
            )
        return cls(bound=bound, step=step, max_terms=max_terms)

    def encode(self, values: NDArray[np.float64], *, towards_zero: bool = False) -> NDArray[np.uint32]:
        """Float64 (n,) -> uint32 (n,), rounded to the nearest step, ties to even.

        Or rounded so that no number grows.
        """
        codes = (np.trunc if towards_zero else np.rint)(values / self.step)
        if not np.all(np.abs(codes) <= self.largest_code):
            worst = float(np.max(np.abs(values)))
            raise ClientUpdateError(
                f"value {worst} is outside [-{self.bound}, {self.bound}]; clip before encoding"
            )
        return codes.astype(np.int64).astype(np.uint32)

    def decode(self, codes: NDArray[np.uint32]) -> NDArray[np.float64]:
        """A sum of codes, uint32 (n,) -> float64 (n,)."""
        return codes.astype(np.uint32).view(np.int32).astype(np.float64) * self.step
