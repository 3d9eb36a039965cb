"""From scores of canaries to a verdict: guess, count, compare with the claim.

Two rules of guessing, both fixed before any score is seen:

==========  ==================================================  =======================================
bound       guesses                                             what it assumes
==========  ==================================================  =======================================
accuracy    all canaries: in if the score is above a threshold  independent scores (`claims.Claim`)
one_run     the r/2 highest as in, the r/2 lowest as out        nothing of the mechanism (`bounds`)
==========  ==================================================  =======================================

"accuracy" refutes far smaller breaches with the same canaries; "one_run" holds even where canaries interfere.

>>> import numpy as np
>>> from privacy.accounting import Mechanism
>>> claim = Claim(composition=((Mechanism(noise_multiplier=4.0), 1),), delta=1e-5)
>>> included = np.arange(2000) % 2 == 0
>>> told = judge(included.astype(float), included, level="example", claim=claim, threshold=0.5)
>>> told.correct, told.broken, told.claimed_epsilon < 1.0 < told.audited_epsilon
(2000, True, True)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from privacy.audit import bounds
from privacy.audit.claims import Claim
from privacy.audit.planning import planned_guesses
from privacy.units import Unit

Bound = Literal["accuracy", "one_run"]
CONFIDENCE = 0.99


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditResult:
    """What a game found. Epsilons are nats at ``delta``.

    ``audited_epsilon`` is a lower bound at ``confidence`` under the assumptions of ``bound``;
    ``claimed_epsilon`` is what the game's own ledger says of the same releases. ``broken``: audited above
    claimed. Where ``certifiable_epsilon``, the reach of perfect guesses, is below the claim, the game could
    not have failed, and says nothing.
    """

    level: Unit
    bound: Bound
    canaries: int
    guesses: int
    correct: int
    delta: float
    confidence: float
    audited_epsilon: float
    claimed_epsilon: float
    certifiable_epsilon: float
    broken: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "broken", self.audited_epsilon > self.claimed_epsilon)


def tails_correct(scores_M: NDArray[np.float64], included_M: NDArray[np.bool_], guesses: int) -> int:
    """Right guesses if the highest ``guesses / 2`` are named in and the lowest out; ties by position."""
    if guesses % 2 or not 0 < guesses <= len(scores_M):
        raise ValueError(f"guesses={guesses} must be even, from 2 to {len(scores_M)} canaries")
    order_M = np.argsort(scores_M, kind="stable")
    lowest, highest = order_M[: guesses // 2], order_M[len(order_M) - guesses // 2 :]
    return int((~included_M[lowest]).sum() + included_M[highest].sum())


def judge(
    scores_M: NDArray[np.float64],
    included_M: NDArray[np.bool_],
    *,
    level: Unit,
    claim: Claim,
    threshold: float,
    confidence: float = CONFIDENCE,
    bound: Bound = "accuracy",
    guesses: int | None = None,
) -> AuditResult:
    """Turn scores (M,), higher for canaries that took part, and the coins (M,) into a result.

    ``threshold`` is used by "accuracy", ``guesses`` by "one_run" (default `planning.planned_guesses`); both
    must come from public numbers and never from ``scores_M``.
    """
    canaries = len(scores_M)
    if bound == "accuracy":
        if guesses not in (None, canaries):
            raise ValueError(f"guesses={guesses}: bound='accuracy' names all canaries; leave guesses out")
        named = canaries
        correct = int(((scores_M > threshold) == included_M).sum())
    elif bound == "one_run":
        named = planned_guesses(claim, canaries) if guesses is None else guesses
        correct = tails_correct(scores_M, included_M, named)
    else:
        raise ValueError(f"bound={bound!r} is unknown; choose 'accuracy' or 'one_run'")
    audited, most = (
        _audited(claim, bound, canaries=canaries, guesses=named, correct=right, confidence=confidence)
        for right in (correct, named)
    )
    return AuditResult(
        level=level,
        bound=bound,
        canaries=canaries,
        guesses=named,
        correct=correct,
        delta=claim.delta,
        confidence=confidence,
        audited_epsilon=audited,
        claimed_epsilon=claim.epsilon,
        certifiable_epsilon=most,
    )


def _audited(
    claim: Claim, bound: Bound, *, canaries: int, guesses: int, correct: int, confidence: float
) -> float:
    """The epsilon that so many correct guesses prove."""
    if bound == "accuracy":
        return claim.audited_epsilon(guesses=guesses, correct=correct, confidence=confidence)
    return bounds.audited_epsilon(
        canaries=canaries, guesses=guesses, correct=correct, delta=claim.delta, confidence=confidence
    )
