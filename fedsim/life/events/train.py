"""Rounds of federated training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fedsim.config import Int
from fedsim.life.events.protocol import EventConfig

if TYPE_CHECKING:
    from fedsim.life.reading import Reader
    from fedsim.places import KeyPath


class Train(EventConfig):
    """Rounds of federated training."""

    name: ClassVar[str] = "train"

    rounds: Int = Field(ge=1, le=100_000)

    def enter(self, reader: Reader, key: KeyPath) -> None:
        if not reader.present():
            raise reader.source.error(
                key, f"nobody is there to train in round {reader.round + 1}; let clients join"
            )
        reader.round += self.rounds
