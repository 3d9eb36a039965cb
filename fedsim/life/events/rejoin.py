"""A client that left or was forgotten comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from fedsim.life.events.protocol import EventConfig
from fedsim.life.written import ClientId, RecordNames

if TYPE_CHECKING:
    from fedsim.life.reading import Reader
    from fedsim.life.roster import Roster
    from fedsim.life.script import LifeEvent
    from fedsim.places import KeyPath


class Rejoin(EventConfig):
    """A client that left or was forgotten comes back with the data named here."""

    name: ClassVar[str] = "rejoin"
    changes_roster: ClassVar[bool] = True

    client: ClientId
    records: RecordNames | Literal["all"] = "all"
    """Ids of the records it brings, or all."""

    def enter(self, reader: Reader, key: KeyPath) -> None:
        client = reader.find((*key, "client"), self.client)
        status = reader.status.get(client)
        if status is None or status == "present":
            how = "never joined; use join" if status is None else "is already there"
            raise reader.source.error(
                (*key, "client"),
                f"{reader.names.text(client)} cannot rejoin after round {reader.round}: it {how}",
            )
        held = reader.records[client]
        brings = held if self.records == "all" else tuple(dict.fromkeys(self.records))
        for name in brings:
            reader.must_hold((*key, "records"), client, name, held)
        reader.enters(client)
        reader.forgotten[client] = set(held) - set(brings)
        count = f"{len(brings)} record{'' if len(brings) == 1 else 's'}"
        reader.add("rejoin", (client,), f"{reader.names.text(client)} rejoins with {count}", brings=brings)

    @classmethod
    def change(cls, event: LifeEvent, roster: Roster) -> None:
        assert event.brings is not None
        client = event.clients[0]
        # In keep the client never left, so rejoining takes nothing away.
        kept = roster.present.get(client, set()) if roster.ignores else set()
        roster.enter(client, [name for name in roster.records[client] if name in {*event.brings, *kept}])

    @classmethod
    def milestones(cls, event: LifeEvent) -> frozenset[int]:
        """The round before it comes back, where what was forgotten is judged."""
        return frozenset({event.round})
