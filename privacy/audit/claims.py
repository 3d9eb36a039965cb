"""What a ledger claims of a mechanism, as limits on what anybody can guess, and how to refute it.

An (epsilon, delta) pair says little about guessing all canaries. A ledger says more: which Gaussian
releases were made, at which noise and sampling rate. From their privacy loss distribution follows the total
variation distance between "one unit in" and "one unit out", and from that the best accuracy with which
anybody can tell a fair coin from the output: (1 + distance) / 2. Nasr et al., "Tight Auditing of
Differentially Private Machine Learning" (2023), refute a Gaussian mechanism's trade-off curve by the error
rates at one threshold; this is the point of the curve with the least sum of both errors.

To put a number on a refutation, the claim is one of a family: the same releases with all noise multipliers
scaled by s. The audited epsilon is that of the least noise (largest epsilon) in the family that is refuted.
So *audited above claimed* means exactly: guesses this good are improbable even if the noise were one step
of the family (1%) below what the ledger says. The number is an epsilon of this family; that claimed noise
was not there is a fact whatever the mechanism, but another mechanism as easy to guess may have another
epsilon.

>>> from privacy.accounting import Mechanism
>>> claim = Claim(composition=((Mechanism(noise_multiplier=1.0), 1),), delta=1e-5)
>>> round(claim.epsilon, 2), round(claim.accuracy(0), 3)
(4.38, 0.691)
>>> claim.audited_epsilon(guesses=1000, correct=691, confidence=0.99) < claim.epsilon
True
>>> claim.audited_epsilon(guesses=1000, correct=840, confidence=0.99) > claim.epsilon
True
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from scipy import stats

from privacy.accounting import Composition, epsilon, loss_of
from privacy.audit.bounds import LARGEST, check_confidence
from privacy.ledger import Ledger
from privacy.units import Unit

RATIO = 1.01
"""Noise multipliers of neighbours in the family."""
LEAST_NOISE = 0.1
"""Noise multiplier of a single release whose epsilon is above `LARGEST`, at any delta of interest."""
REACH = 400
"""Members on each side of the claim: noise from 1/53 to 53 times what is claimed, or to 53 if that is
more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """The releases that touched one unit, and the delta at which epsilon is quoted.

    *Assumes*, where `audited_epsilon` refutes it, that each guess is about a unit of its own with its own
    fair coin, that given the coins the scores are independent, and that a guess depends on its own score
    alone, by a rule that was fixed before. The number of right guesses is then binomial, or fewer. Canaries
    whose gradients are orthogonal fulfil this under noise that is independent by coordinate, which is part
    of the claim; so do separate runs.
    """

    composition: Composition
    delta: float

    @property
    def epsilon(self) -> float:
        """Nats at ``delta``, as the ledger counts them."""
        return epsilon(self.composition, delta=self.delta)

    @property
    def expected_shares(self) -> float:
        """How many releases a unit is part of, on average: the sum of sampling rates."""
        return sum(mechanism.sampling_rate * steps for mechanism, steps in self.composition)

    def member(self, index: int) -> Composition:
        """The family's member with noise ``RATIO ** index`` times what is claimed."""
        return tuple(
            (replace(mechanism, noise_multiplier=mechanism.noise_multiplier * RATIO**index), steps)
            for mechanism, steps in self.composition
        )

    def accuracy(self, index: int) -> float:
        """Best accuracy against a member, an upper bound. 1 where its epsilon is above `LARGEST`."""
        measure = measured(self.member(index), self.delta)
        return 1.0 if measure.epsilon > LARGEST else (1 + measure.total_variation) / 2

    def audited_epsilon(self, *, guesses: int, correct: int, confidence: float) -> float:
        """Epsilon (nats) of the least noise in the family that makes ``correct`` of ``guesses`` improbable.

        *Guarantees.* If the mechanism is a member of the family, or more private than one, its epsilon is
        below the result with probability at most 1 - ``confidence`` (Clopper and Pearson's limit on the
        accuracy). Rises with ``correct``.

        *Edge cases.* 0 if even the most noise of the family would explain the guesses. Never above `LARGEST`.
        """
        check_confidence(confidence)
        if not 0 <= correct <= guesses:
            raise ValueError(f"need 0 <= correct={correct} <= guesses={guesses}")

        def refuted(index: int) -> bool:
            return float(stats.binom.sf(correct - 1, guesses, self.accuracy(index))) <= 1 - confidence

        least = min((mechanism.noise_multiplier for mechanism, _ in self.composition), default=1.0)
        kept, out = -REACH - 1, REACH + max(0, math.ceil(-math.log(least, RATIO)))
        if not refuted(out):
            return 0.0
        while out - kept > 1:
            middle = (out + kept) // 2
            kept, out = (kept, middle) if refuted(middle) else (middle, out)
        found = self.member(out)
        return min(epsilon(found, delta=self.delta), measured(found, self.delta).epsilon)

    def highest_certifiable(self, *, guesses: int, confidence: float) -> float:
        """The epsilon that guesses without a mistake would prove."""
        return self.audited_epsilon(guesses=guesses, correct=guesses, confidence=confidence)


@dataclass(frozen=True, slots=True)
class Measure:
    """Upper bounds: the largest difference in probability of any event, and epsilon (nats) at a delta."""

    total_variation: float
    epsilon: float


@lru_cache(maxsize=16384)
def measured(composition: Composition, delta: float) -> Measure:
    """What one unit changes, from the privacy loss distribution of all releases together.

    Total variation is the delta at epsilon 0. Skellam noise counts as Gaussian of its variance. The grid is
    as fine as the number of releases asks for, so that its error is below 1e-3 of the distance.

    *Edge cases.* No releases: 0 and 0. Noise below `LEAST_NOISE` hides nothing: 1 and infinity, unmeasured.
    """
    if any(mechanism.noise_multiplier < LEAST_NOISE for mechanism, _ in composition):
        return Measure(1.0, math.inf)
    grid = math.sqrt(1e-3 / max(10, sum(steps for _, steps in composition)))
    whole = None
    for mechanism, steps in composition:
        part = loss_of(replace(mechanism, kind="gaussian", excess=0.0), grid=grid).self_compose(steps)
        whole = part if whole is None else whole.compose(part)
    if whole is None:
        return Measure(0.0, 0.0)
    distance = min(1.0, float(whole.get_delta_for_epsilon(0.0)))
    return Measure(distance, float(whole.get_epsilon_for_delta(delta)))


def claim_of(ledger: Ledger, clients: Iterable[str], *, unit: Unit, delta: float) -> Claim:
    """The weakest claim (largest epsilon) that a ledger makes about any of ``clients``.

    ``ValueError`` if it holds no release about them: no noise was charged, so nothing is claimed.
    """
    found = {ledger.composition(client, unit=unit) for client in clients}
    found.discard(())
    if not found:
        raise ValueError(f"the ledger holds no release of unit={unit!r}: there is no claim to audit")
    claims = (Claim(composition=composition, delta=delta) for composition in sorted(found))
    return max(claims, key=lambda claim: claim.epsilon)
