"""How many canaries to name under "one_run", decided from the claim alone, before any score is seen.

Few guesses in the far tails are often right but few; many are less often right. The best number depends on
the breach to be found. Here it is the one that makes the claim least plausible if the noise is half of what
is claimed, for scores that are Gaussian and as easy to tell apart as that mechanism's.

>>> from privacy.accounting import Mechanism
>>> claim = Claim(composition=((Mechanism(noise_multiplier=3.73), 1),), delta=1e-5)
>>> planned_guesses(claim, 20_000)
592
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from privacy.audit import bounds
from privacy.audit.claims import RATIO, Claim

HALF_NOISE = round(math.log(0.5) / math.log(RATIO))
"""Index in the claim's family of the breach that is planned for."""


def planned_guesses(claim: Claim, canaries: int) -> int:
    """An even number of guesses from 2 to ``canaries``. A plan only: every number is valid, if fixed before.

    *Edge cases.* Fewer than two canaries: ``ValueError``. A claim that not even perfect guesses could refute:
    whatever comes closest.
    """
    if canaries < 2:
        raise ValueError(f"canaries={canaries} must be at least 2")
    separation = 2 * float(stats.norm.ppf(min(claim.accuracy(HALF_NOISE), 1 - 1e-9)))
    plans = {}
    for threshold in np.arange(separation / 2, separation / 2 + 4.0, 0.25):
        hit, miss = stats.norm.sf([threshold - separation, threshold])
        guesses = max(2, int(canaries * (hit + miss) / 2) * 2)
        if guesses <= canaries:
            plans[guesses] = _plausibility(claim, canaries, guesses, float(hit / (hit + miss)))
    return min(plans, key=lambda guesses: (plans[guesses], -guesses), default=2)


def _plausibility(claim: Claim, canaries: int, guesses: int, accuracy: float) -> float:
    """What the claim's p-value would be if luck were two standard deviations below the mean."""
    likely = guesses * accuracy - 2 * math.sqrt(guesses * accuracy * (1 - accuracy))
    return bounds.p_value(
        canaries=canaries,
        guesses=guesses,
        correct=max(0, math.floor(likely)),
        epsilon=claim.epsilon,
        delta=claim.delta,
    )
