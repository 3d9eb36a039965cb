"""Canaries: does the claimed epsilon hold?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from fedsim.audits.protocol import AuditConfig, FinishedLife, Row
from fedsim.config import Float, Int


class CanaryAudit(AuditConfig):
    """Tests the claimed epsilon with canaries, each included with probability 1/2."""

    summary: ClassVar[str] = "test claimed epsilons with canary records and canary clients"

    audit: Literal["canaries"] = "canaries"
    records: Int = Field(default=20_000, ge=100, le=1_000_000)
    """Canary records, for what protects examples."""
    clients: Int = Field(default=1000, ge=50, le=20_000)
    """Canary clients, for what protects clients; at most 200 under masks."""
    games: Int = Field(default=200, ge=20, le=10_000)
    """Steps played with the run's own loss, to see whether records change each other's gradients."""
    confidence: Float = Field(default=0.99, gt=0.5, lt=1)
    """Probability that a correct claim is not reported as broken."""

    def rows(self, life: FinishedLife, part: int) -> Iterator[Row]:
        from fedsim.audits.claims import canary_rows

        return canary_rows(life.context, self, life.note)

    def warning(self, row: Row) -> str | None:
        if not row["broken"]:
            return None
        return (
            f"the claim of {row['stage']} is BROKEN: audited epsilon {row['audited_epsilon']:.3g} above the "
            f"claimed {row['claimed_epsilon']:.3g}"
        )
