"""The life's part of a scenario that is no event: cohorts of a fixed size."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedsim.config import Config, Float, Int


class FixedCohort(Config):
    """A fixed number of clients a round, by keyed priorities; with a rate, at most that number."""

    cohort: Int = Field(ge=1)
    """Clients a round."""
    rate: Float | None = Field(default=None, gt=0, le=1)
    """Probability with which each client is drawn, independently; of those, at most ``cohort`` take part."""
    replacement: Literal["next", "none"] = "next"
    """Without a rate: whether the next in order takes the place of one that is gone, or it stays empty."""
