"""How a cohort is drawn, as the accountant sees it."""

from __future__ import annotations

from typing import Literal

from fedsim.life.config import FixedCohort
from privacy import Draw


def draw_of(rule: float | FixedCohort, *, here: int, nominal: int) -> Draw:
    """How cohorts are drawn, as the accountant sees it.

    ``here`` is how many could be drawn, ``nominal`` how many could be had nobody been forgotten. The latter
    is the public one; a fixed cohort is filled up from the former unless places stay empty.
    """
    if isinstance(rule, FixedCohort) and rule.rate is not None:
        return Draw(
            kind="truncated_poisson",
            rate=rule.rate,
            population=max(here, 1),
            size=rule.cohort,
            nominal=nominal,
        )
    if isinstance(rule, FixedCohort):
        population = nominal if rule.replacement == "none" else here
        return Draw(
            kind="without_replacement", population=max(population, 1), size=rule.cohort, nominal=nominal
        )
    kind: Literal["none", "poisson"] = "none" if rule == 1.0 else "poisson"
    return Draw(kind=kind, rate=rule, population=nominal, nominal=nominal)
