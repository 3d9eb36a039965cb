"""The probes' part of a scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fedsim.config import Config, Float, Int
from fedsim.metrics.registry import DEFAULT_HEADLINE, HEADLINES

if TYPE_CHECKING:
    Headline = str
else:
    Headline = Literal[HEADLINES]


AtLeastTwo = Annotated[Int, Field(ge=2)]
MOST_PUBLIC = 24
"""Records of a public probe of which the scenario says nothing."""


class ProbesConfig(Config):
    """What is measured, and how often."""

    every: Int = Field(default=1, ge=1)
    """Rounds between two probes; rounds with events and the last are always probed."""
    records_per_client: Int = Field(default=2, ge=1)
    """Records of each retained client in the retain probe."""
    max_retain: Int = Field(default=40, ge=2)
    """Most records in the retain probe."""
    max_holdout: Int = Field(default=24, ge=2)
    """Most records in the holdout probe."""
    max_public: AtLeastTwo | dict[str, AtLeastTwo] = MOST_PUBLIC
    """Most records in each public probe, and in each of records that are asked about alone; or by the probe's
    name, such as ``{world: 70}``, and 24 in those that are not named."""
    generate: Literal["always", "events", "never"] = "always"
    """When answers are generated (ROUGE-L): each probe, around events and at the end, or never."""
    max_new_tokens: Int = Field(default=64, ge=1)
    """Longest generated answer, in tokens; never longer than the longest answer probed."""
    shown: Int = Field(default=3, ge=0, le=20)
    """Records of each request, and of public knowledge, whose answers are written out in words: at the start,
    at events and at the end."""
    headline: Headline = DEFAULT_HEADLINE
    """The metric that titles and verdicts quote."""
    tolerance: Float = Field(default=0.05, gt=0)
    """Excess within which a branch counts as having reached the reference."""
    window: Int = Field(default=2, ge=1)
    """Rounds in a row that the excess must stay within the tolerance."""

    def most_public(self, name: str) -> int:
        """Most records in a public probe."""
        if isinstance(self.max_public, dict):
            return self.max_public.get(name, MOST_PUBLIC)
        return self.max_public
