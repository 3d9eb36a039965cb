"""How much privacy loss a number of right guesses proves, when nothing is known of the mechanism.

Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run" (2023). Each of m canaries is in or
out of one run by its own fair coin; an auditor who sees the output names r of them as in or out, and v of the
names are right. Under pure epsilon-DP, v is at most as large as the number of right answers of r independent
guessers that are each right with probability e^epsilon / (1 + e^epsilon). Under (epsilon, delta)-DP a term is
added that grows with m times delta, since every one of the m canaries is a chance for delta to happen.

*Assumes* only that the coins are fair, independent and unseen by the auditor, and that r was fixed before
looking at the outcome. Which canaries are named may depend on the outcome in any way; canaries may influence
each other in any way.

>>> bound = audited_epsilon(canaries=1000, guesses=100, correct=95, delta=1e-5, confidence=0.95)
>>> round(bound, 2)
2.17
>>> round(highest_certifiable(canaries=1000, guesses=100, delta=1e-5, confidence=0.95), 2)
3.47
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

LARGEST = 50.0
"""Nats above which no lower bound is reported."""
STEPS = 50
"""Halvings of [0, LARGEST]; what is left is below 1e-13."""


def p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Upper bound on the probability of at least ``correct`` right guesses, were the run (epsilon, delta)-DP.

    P[W >= v] + 2 m delta max over i in 1..v of P[v - i <= W < v] / i, with W binomial of r trials.

    *Edge cases.* No right guess: 1. Counts out of order, epsilon below 0 or delta outside [0, 1]:
    ``ValueError``.
    """
    _check_counts(canaries=canaries, guesses=guesses, correct=correct)
    if not epsilon >= 0 or not 0 <= delta <= 1:
        raise ValueError(f"epsilon={epsilon} must be at least 0, delta={delta} in [0, 1]")
    if correct == 0:
        return 1.0
    law = stats.binom(guesses, 1 / (1 + math.exp(-epsilon)))
    reached = float(law.sf(correct - 1))
    if delta == 0.0 or reached == 1.0:
        return reached
    below = np.cumsum(law.pmf(np.arange(correct - 1, -1, -1)))
    lifted = float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, reached + 2 * canaries * delta * lifted)


def audited_epsilon(*, canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """Lower bound on epsilon (nats) at ``delta``, wrong with probability at most 1 - ``confidence``.

    *Guarantees.* The run is not (epsilon', delta)-DP for any epsilon' up to the result, or an event of
    probability at most 1 - ``confidence`` has happened. ``guesses`` must not have been chosen by the outcome.

    *Edge cases.* 0 if not even epsilon 0 is excluded. At most `LARGEST`. A confidence outside [0.5, 1):
    ``ValueError``.
    """
    check_confidence(confidence)
    _check_counts(canaries=canaries, guesses=guesses, correct=correct)

    def excluded(epsilon: float) -> bool:
        chance = p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
        return chance <= 1 - confidence

    if not excluded(0.0):
        return 0.0
    low, high = 0.0, LARGEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if excluded(middle) else (low, middle)
    return low


def highest_certifiable(*, canaries: int, guesses: int, delta: float, confidence: float) -> float:
    """The epsilon that guesses without a mistake would prove; a claim above it cannot be refuted."""
    return audited_epsilon(
        canaries=canaries, guesses=guesses, correct=guesses, delta=delta, confidence=confidence
    )


def check_confidence(confidence: float) -> None:
    """``ValueError`` unless 0.5 <= confidence < 1."""
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence={confidence} must be in [0.5, 1)")


def _check_counts(*, canaries: int, guesses: int, correct: int) -> None:
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"need 0 <= correct={correct} <= guesses={guesses} <= canaries={canaries}")
