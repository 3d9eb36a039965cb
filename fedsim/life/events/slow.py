"""Clients do less in the next rounds: stragglers that send what they have."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fedsim.config import ConfigError, Int
from fedsim.life.events.protocol import Condition, EventConfig
from fedsim.life.written import ClientIds

if TYPE_CHECKING:
    from fedsim.life.reading import Reader
    from fedsim.places import KeyPath
    from fedsim.training.config import LocalConfig


class Hurried(Condition):
    """The client makes fewer passes over its records than it is asked for."""

    kind: Literal["hurried"] = "hurried"
    epochs: int

    def local(self, local: LocalConfig) -> LocalConfig:
        return local.model_copy(update={"epochs": min(local.epochs, self.epochs)})


class Slow(EventConfig):
    """Clients do less in the next rounds, if they take part; their updates count as ever."""

    name: ClassVar[str] = "slow"
    condition_type: ClassVar[type[Condition] | None] = Hurried

    clients: ClientIds
    """Names or numbers, a range like 0-19, a list of these, or all."""
    epochs: Int = Field(default=1, ge=1, le=1000)
    """Most passes over their records that they make in a round."""
    rounds: Int = Field(default=1, ge=1, le=100_000)
    """For how many rounds."""

    def check(self, local: LocalConfig) -> None:
        if self.epochs >= local.epochs:
            raise ConfigError(
                f"{self.epochs} slows nobody, as federation.local.epochs is {local.epochs}; choose fewer",
                "slow",
                "epochs",
            )

    def enter(self, reader: Reader, key: KeyPath) -> None:
        clients = reader.find_present((*key, "clients"), self.clients, "be slow")
        does = "does" if len(clients) == 1 else "do"
        passes = f"{self.epochs} pass{'' if self.epochs == 1 else 'es'} at most"
        text = f"{reader.names.range_text(clients)} {does} {passes}"
        hurried = Hurried(epochs=self.epochs)
        reader.add("slow", clients, text, condition=hurried, lasts=self.rounds)
