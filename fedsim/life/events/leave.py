"""A client leaves; nothing is erased."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fedsim.life.events.protocol import EventConfig
from fedsim.life.written import ClientId

if TYPE_CHECKING:
    from fedsim.life.reading import Reader
    from fedsim.life.roster import Roster
    from fedsim.life.script import LifeEvent
    from fedsim.places import KeyPath


class Leave(EventConfig):
    """A client leaves; nothing is erased."""

    name: ClassVar[str] = "leave"
    changes_roster: ClassVar[bool] = True

    client: ClientId

    def enter(self, reader: Reader, key: KeyPath) -> None:
        client = reader.find((*key, "client"), self.client)
        reader.must_be_present((*key, "client"), client, "leave")
        reader.status[client] = f"already left, after round {reader.round}"
        reader.add("leave", (client,), f"{reader.names.text(client)} leaves")

    @classmethod
    def change(cls, event: LifeEvent, roster: Roster) -> None:
        roster.present.pop(event.clients[0], None)
