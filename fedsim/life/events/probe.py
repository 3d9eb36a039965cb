"""Measure now."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fedsim.life.events.protocol import EventConfig

if TYPE_CHECKING:
    from fedsim.life.reading import Reader
    from fedsim.life.script import LifeEvent
    from fedsim.places import KeyPath


class ProbeEvent(EventConfig):
    """Measure now, items and generation included."""

    name: ClassVar[str] = "probe"

    label: str = "probe"

    def enter(self, reader: Reader, key: KeyPath) -> None:
        reader.add("probe", (), self.label)

    @classmethod
    def milestones(cls, event: LifeEvent) -> frozenset[int]:
        return frozenset({event.round, event.round + 1})
