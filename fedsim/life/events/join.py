"""Clients enter the federation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fedsim.life.events.protocol import EventConfig
from fedsim.life.written import ClientIds

if TYPE_CHECKING:
    from fedsim.life.reading import Reader
    from fedsim.life.roster import Roster
    from fedsim.life.script import LifeEvent
    from fedsim.places import KeyPath


class Join(EventConfig):
    """Clients enter the federation."""

    name: ClassVar[str] = "join"
    changes_roster: ClassVar[bool] = True

    clients: ClientIds
    """Names or numbers, a range like 0-19, a list of these, or all."""

    def enter(self, reader: Reader, key: KeyPath) -> None:
        key = (*key, "clients")
        waiting = [client for client in reader.records if client not in reader.status]
        clients = reader.find_all(key, self.clients, waiting)
        if not clients:
            raise reader.source.error(
                key, "all clients of the data have joined already; leave this event out"
            )
        for client in clients:
            status = reader.status.get(client)
            if status is not None:
                how = "is already there" if status == "present" else f"{status}; use rejoin to bring it back"
                raise reader.source.error(
                    key, f"{reader.names.text(client)} cannot join after round {reader.round}: it {how}"
                )
            reader.enters(client)
        joins = f"join{'s' if len(clients) == 1 else ''}"
        reader.add("join", clients, f"{reader.names.range_text(clients)} {joins}")

    @classmethod
    def change(cls, event: LifeEvent, roster: Roster) -> None:
        for client in event.clients:
            roster.enter(client, roster.records[client])
