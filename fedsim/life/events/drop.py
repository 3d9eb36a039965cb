"""Clients fall silent in the next rounds, if they take part."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fedsim.config import Int
from fedsim.life.events.protocol import Condition, EventConfig, Moment
from fedsim.life.written import ClientIds

if TYPE_CHECKING:
    from fedsim.life.reading import Reader
    from fedsim.places import KeyPath


class FallsSilent(Condition):
    """Nothing more is heard of the client from a step of the round on."""

    kind: Literal["falls_silent"] = "falls_silent"
    stage: Moment

    def silent_from(self) -> Moment | None:
        return self.stage


class Drop(EventConfig):
    """Clients fall silent in the next rounds, if they take part."""

    name: ClassVar[str] = "drop"
    condition_type: ClassVar[type[Condition] | None] = FallsSilent

    clients: ClientIds
    """Names or numbers, a range like 0-19, a list of these, or all."""
    stage: Moment = "after_masking"
    """The step of a round before which nothing more is heard of them."""
    rounds: Int = Field(default=1, ge=1, le=100_000)
    """For how many rounds."""

    def enter(self, reader: Reader, key: KeyPath) -> None:
        clients = reader.find_present((*key, "clients"), self.clients, "drop out")
        who, when = reader.names.range_text(clients), self.stage.replace("_", " ")
        text = f"{who} drop{'s' if len(clients) == 1 else ''} out {when}"
        silent = FallsSilent(stage=self.stage)
        reader.add("drop", clients, text, condition=silent, lasts=self.rounds)
