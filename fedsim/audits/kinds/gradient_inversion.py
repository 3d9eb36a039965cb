"""Gradient inversion: what does a server read off one client's update?

>>> InversionAudit(audit="gradient_inversion", clients="0-2, clinic-a").clients
('0-2, clinic-a',)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from fedsim.audits.protocol import AuditConfig, CheckedLife, FinishedLife, Row
from fedsim.config import ConfigError, Float, Int
from fedsim.life.written import ClientIds
from privacy import StageConfig

if TYPE_CHECKING:
    from fedsim.data.names import ClientNames

ATTACKED = 3
"""Clients attacked where a scenario names none."""
OWN = "this run"
"""Name of the run's own pipeline among those that are attacked."""


def _others(under: dict[str, tuple[StageConfig, ...]]) -> dict[str, tuple[StageConfig, ...]]:
    if OWN in under:
        raise ConfigError(
            f"{OWN!r} is the run's own pipeline, which is always attacked; choose another name", OWN
        )
    return under


class InversionAudit(AuditConfig):
    """Reads clients' records off what the server sees of one step of training (DAGER)."""

    summary: ClassVar[str] = "read clients' records off what the server sees of one step (DAGER)"

    audit: Literal["gradient_inversion"] = "gradient_inversion"
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

    def victims(self, names: ClientNames, held: Sequence[int]) -> tuple[int, ...]:
        """The clients to attack, of those that hold records (sorted)."""
        return tuple(held[:ATTACKED]) if self.clients is None else names.read(self.clients, held)

    def check(self, life: CheckedLife) -> None:
        from fedsim.audits.attention_inputs import attention_sites
        from fedsim.audits.inversion import in_place_of
        from fedsim.federation.trials import check_per_sample

        held = sorted(client for client, records in life.runtime.records.items() if records)
        try:
            victims = self.victims(life.names, held)
        except ValueError as error:
            raise ConfigError(str(error), "clients") from None
        unknown = [client for client in victims if client not in held]
        if unknown:
            near = min(held, key=lambda other: abs(other - unknown[0]))
            raise ConfigError(
                f"{life.names.text(unknown[0])} holds no records to attack; "
                f"nearest that does is {life.names.name(near)}",
                "clients",
            )
        attention_sites(life.model)
        for name, stages in self.under.items():
            try:
                other = in_place_of(life.runtime.pipeline, stages)
                check_per_sample(replace(life.runtime, pipeline=other), life.model.arrays())
            except ValueError as error:
                raise ConfigError(str(error), "under", name) from None

    def rows(self, life: FinishedLife, part: int) -> Iterator[Row]:
        from fedsim.audits.inversion import inversion_rows

        return inversion_rows(life, self)
