"""The audits that a scenario may ask for, as they are written.

>>> InversionAudit(audit="gradient_inversion", clients="0-2, clinic-a").clients
('0-2, clinic-a',)
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fedsim.config import Config, ConfigError, Float, Int
from fedsim.life.written import ClientIds
from privacy import StageConfig

ATTACKED = 3
"""Clients attacked where a scenario names none."""
OWN = "this run"
"""Name of the run's own pipeline among those that are attacked."""


class CanaryAudit(Config):
    """Tests the claimed epsilon with canaries, each included with probability 1/2."""

    audit: Literal["canaries"]
    records: Int = Field(default=20_000, ge=100, le=1_000_000)
    """Canary records, for what protects examples."""
    clients: Int = Field(default=1000, ge=50, le=20_000)
    """Canary clients, for what protects clients; at most 200 under masks."""
    games: Int = Field(default=200, ge=20, le=10_000)
    """Steps played with the run's own loss, to see whether records change each other's gradients."""
    confidence: Float = Field(default=0.99, gt=0.5, lt=1)
    """Probability that a correct claim is not reported as broken."""


def _others(under: dict[str, tuple[StageConfig, ...]]) -> dict[str, tuple[StageConfig, ...]]:
    if OWN in under:
        raise ConfigError(
            f"{OWN!r} is the run's own pipeline, which is always attacked; choose another name", OWN
        )
    return under


class InversionAudit(Config):
    """Reads clients' records off what the server sees of one step of training (DAGER)."""

    audit: Literal["gradient_inversion"]
    clients: ClientIds | None = None
    """Clients attacked: names or numbers, a range like 0-3, a list of these, or all; by default the first
    three that hold records. What the model knows by heart already leaves little trace; clients that never
    took part are attacked in their first step."""
    records: Int = Field(default=1, ge=1, le=64)
    """Records in the step."""
    cohort: Int = Field(default=8, ge=2, le=1000)
    """Clients of a masked round, if the pipeline asks for no more."""
    lr: Float = Field(default=0.05, gt=0)
    """Learning rate of the step, plain SGD; AdamW's first step hides the gradient."""
    under: Annotated[dict[str, tuple[StageConfig, ...]], AfterValidator(_others)] = Field(
        default_factory=dict
    )
    """Other pipelines to attack by the side, by name; the run's own always is."""


AuditConfig = Annotated[CanaryAudit | InversionAudit, Field(discriminator="audit")]
