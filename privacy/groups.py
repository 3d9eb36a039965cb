"""What a promise to one unit means for several together, at the delta of the promise.

Epsilon and delta of k units follow from those of one (`accounting.group_guarantee`), but a pair whose delta
has grown says little. So it is started from a smaller delta of one unit, such that what it grows to is the
delta that was asked for.

>>> from privacy.accounting import Mechanism
>>> spent = ((Mechanism(noise_multiplier=20.0, sampling="none"), 10),)
>>> [round(group_epsilon([spent], size=k, delta=1e-5), 1) for k in (1, 2, 4)]
[0.6, 1.3, 2.9]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from privacy.accounting import Accountant, Composition, epsilon, group_guarantee

LEAST_EXPONENT = -200.0
"""Decimal exponent of the smallest delta of one unit that is tried."""
STEPS = 40


def group_epsilon(
    spent: Sequence[Composition], *, size: int, delta: float, accountant: Accountant = "pld"
) -> float:
    """Epsilon in nats of ``size`` units together at ``delta``.

    Each unit's releases are one of ``spent``.

    *Guarantees.* An upper bound, by the RDP bound of one unit where ``size`` is more than 1. Infinite where
    no delta of one unit is small enough.

    *Edge cases.* Nothing spent: 0. ``size`` below 1, delta outside (0, 1): ``ValueError``.
    """
    if size < 1 or not 0 < delta < 1:
        raise ValueError(f"size={size} must be at least 1 and delta={delta} in (0, 1)")
    made = [composition for composition in spent if composition]
    if not made:
        return 0.0
    if size == 1:
        return max(epsilon(composition, delta=delta, accountant=accountant) for composition in made)

    def of_one(exponent: float) -> float:
        return max(epsilon(composition, delta=10.0**exponent, accountant="rdp") for composition in made)

    def holds(exponent: float) -> bool:
        return group_guarantee(epsilon=of_one(exponent), delta=10.0**exponent, size=size).delta <= delta

    low, high = LEAST_EXPONENT, math.log10(delta / size)
    if not holds(low):
        return math.inf
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return size * of_one(low)
