"""What is masked, where in the vector it stands, and the terms on which a sum is formed.

What is masked: [weight * update (d), weight, metrics, 1], each in fixed point modulo 2^32. The last entry
counts contributors and lets the server notice masks that did not cancel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.contexts import ClientContext, Nominal, RoundContext
from privacy.errors import CohortTooSmall, PipelineError, SumUnusable
from privacy.secagg.fixed_point import FixedPoint
from privacy.secagg.messages import digest
from privacy.stage import Wire
from privacy.transport import Contribution, Total, Vector

COARSEST_MEAN = 1e-3
"""Largest error of a mean's coordinate that rounding may cause, as a fraction of the clip norm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where things stand in the masked vector, and in which units."""

    update: FixedPoint
    weight: FixedPoint
    metrics: tuple[FixedPoint, ...]
    max_cohort: int
    weighted: bool = False
    """Whether updates come weighted, and on the grid of their integers."""
    norm: float = math.inf
    """Largest L2 norm of an update, which rounding does not lift."""

    @classmethod
    def plan(cls, incoming: Wire, nominal: Nominal) -> Layout:
        """Finest coders that cannot overflow; errors name what to lower."""
        bound, cohort, weight = incoming.l2_bound, nominal.max_cohort, nominal.max_weight
        if bound is None and incoming.kind != "grid":
            raise PipelineError(
                "secure_aggregation cannot rule out overflow of updates that nothing bounds; put clip before"
            )
        if cohort is None or weight is None:
            raise PipelineError(
                f"secure_aggregation cannot rule out overflow with max_cohort={cohort}, max_weight={weight}; "
                "give both"
            )
        weights = FixedPoint.fit(bound=weight, max_terms=cohort, coarsest=1.0)
        metrics = tuple(FixedPoint.fit(bound=m.bound, max_terms=cohort) for m in nominal.metrics)
        if incoming.kind == "grid":
            assert incoming.step is not None, "a grid has a step"
            assert incoming.largest is not None, "a grid has a largest size"
            update = FixedPoint(bound=incoming.largest, step=incoming.step, max_terms=cohort)
        else:
            assert bound is not None, "checked above"
            largest = weights.largest_code * weights.step  # a rounded weight may lie above max_weight
            coarsest = COARSEST_MEAN * bound
            update = FixedPoint.fit(bound=largest * bound, max_terms=cohort, coarsest=coarsest)
        return cls(
            update=update,
            weight=weights,
            metrics=metrics,
            max_cohort=cohort,
            weighted=incoming.kind == "grid",
            norm=math.inf if bound is None else bound,
        )

    @property
    def tail(self) -> int:
        """Entries after the update: weight, metrics, count."""
        return len(self.metrics) + 2

    def encode(self, contribution: Contribution) -> NDArray[np.uint32]:
        """Contribution -> uint32 (d + tail,).

        The update is scaled by the weight as it will be read, and rounded to the nearest step; towards zero
        where that would lift its norm above the bound.
        """
        weight_code = self.weight.encode(np.array([contribution.weight]))
        weight = float(self.weight.decode(weight_code)[0])
        values = zip(self.metrics, contribution.metrics, strict=True)
        numbers = [coder.encode(np.array([value])) for coder, value in values]
        count = np.ones(1, dtype=np.uint32)
        return np.concatenate([self._update(contribution.update, weight), weight_code, *numbers, count])

    def _update(self, update: Vector, weight: float) -> NDArray[np.uint32]:
        if self.weighted:
            return self.update.encode(update)
        codes = self.update.encode(update * weight)
        if np.linalg.norm(self.update.decode(codes)) <= self.norm * abs(weight):
            return codes
        return self.update.encode(update * weight, towards_zero=True)

    def decode(self, total: NDArray[np.uint32], contributors: tuple[str, ...]) -> Total:
        """The sum of encoded contributions -> numbers; `SumUnusable` if masks did not cancel."""
        size = total.size - self.tail
        if int(total[-1]) != len(contributors):
            raise SumUnusable("masks did not cancel: somebody masked for another roster", contributors)
        metrics = total[size + 1 : -1]
        return Total(
            update=self.update.decode(total[:size]),
            weight=float(self.weight.decode(total[size : size + 1])[0]),
            metrics=tuple(float(coder.decode(metrics[i : i + 1])[0]) for i, coder in enumerate(self.metrics)),
            contributors=contributors,
            error=0.0 if self.weighted else len(contributors) * self.update.step,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What both parties of secure aggregation know beforehand.

    A client's secrets are shared among its *holders*: its neighbours and itself. ``threshold`` is the share
    of them without whom nothing can be unmasked; above one half, so that no two groups of holders are enough
    of which the one is told that a client reported and the other that it dropped out.
    """

    layout: Layout
    min_cohort: int
    threshold: float
    dimension: int | None = None
    neighbours: int | None = None

    def shares_needed(self, holders: int) -> int:
        """Shares of a secret that give it back, out of as many as there are ``holders``."""
        return self.needed(self.threshold, holders)

    @staticmethod
    def needed(threshold: float, holders: int) -> int:
        """The least whole number that is at least the threshold's share, and more than half."""
        return max(math.ceil(threshold * holders - 1e-9), holders // 2 + 1)

    def check_size(self, clients: int) -> None:
        """`CohortTooSmall` unless a roster of this size may be masked for."""
        if not self.min_cohort <= clients <= self.layout.max_cohort:
            raise CohortTooSmall(
                f"{clients} clients are outside min_cohort={self.min_cohort} .. "
                f"max_cohort={self.layout.max_cohort}"
            )


def place_of(context: ClientContext | RoundContext, terms: Terms) -> bytes:
    """32 bytes that stand for session, round, branch, attempt, threshold and neighbours.

    A client has agreed to these: a server that unmasks on others finds no keys that fit.
    """
    return digest(
        "place",
        context.session,
        context.round_id,
        context.branch,
        context.attempt,
        terms.threshold.hex(),
        -1 if terms.neighbours is None else terms.neighbours,
    )
