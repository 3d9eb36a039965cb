"""A client asks to be forgotten: all of it, some of its records, or a fraction of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from fedsim.config import Float
from fedsim.life.events.protocol import EventConfig
from fedsim.life.written import ClientId, RecordNames
from fedsim.rng import uniform
from fedsim.unlearning.request import Request

if TYPE_CHECKING:
    from fedsim.life.reading import Reader
    from fedsim.life.roster import Roster
    from fedsim.life.script import LifeEvent
    from fedsim.places import KeyPath


class Forget(EventConfig):
    """A client asks to be forgotten: all of it, some of its records, or a fraction of them."""

    name: ClassVar[str] = "forget"
    changes_roster: ClassVar[bool] = True

    client: ClientId
    records: RecordNames | None = None
    """Ids of the records to forget; the client stays with the others."""
    fraction: Float | None = Field(default=None, gt=0, lt=1)
    """Share of the client's records to forget, drawn by a keyed stream; the client stays."""

    @model_validator(mode="after")
    def _one_scope(self) -> Forget:
        if self.records is not None and self.fraction is not None:
            raise ValueError("give records or fraction, not both; leave both out to forget the whole client")
        return self

    def enter(self, reader: Reader, key: KeyPath) -> None:
        client = reader.find((*key, "client"), self.client)
        if not reader.status.get(client, "").startswith("already left"):
            reader.must_be_present((*key, "client"), client, "be forgotten")
        gone = reader.forgotten.setdefault(client, set())
        held = [name for name in reader.records[client] if name not in gone]
        if not held:
            raise reader.source.error(
                (*key, "client"), f"{reader.names.text(client)} holds no records to forget"
            )
        number = len(reader.requests) + 1
        chosen = self._chosen(reader, key, client, held)
        scope: Literal["client", "records"] = "records" if len(chosen) < len(held) else "client"
        since = reader.since[client]
        if scope == "client":
            del reader.since[client]
            reader.status[client] = f"was already forgotten, after round {reader.round}"
        gone.update(chosen)
        what = "to be forgotten" if scope == "client" else f"to forget {len(chosen)} of {len(held)} records"
        reader.add("forget", (client,), f"{reader.names.text(client)} asks {what}", request=number)
        reader.grant(
            Request(
                number=number,
                client=client,
                round=reader.round,
                scope=scope,
                record_ids=tuple(chosen),
                since=since,
            )
        )

    def _chosen(self, reader: Reader, key: KeyPath, client: int, held: list[str]) -> list[str]:
        if self.records is not None:
            for name in self.records:
                reader.must_hold((*key, "records"), client, name, held)
            return list(dict.fromkeys(self.records))
        if self.fraction is None:
            return held
        if len(held) == 1:
            raise reader.source.error(
                (*key, "fraction"),
                f"{reader.names.text(client)} holds one record only; leave fraction out to forget the client",
            )
        count = min(max(1, round(self.fraction * len(held))), len(held) - 1)
        priority = {name: uniform(reader.seed, "forget", client, name) for name in held}
        chosen = set(sorted(held, key=lambda name: priority[name])[:count])
        return [name for name in held if name in chosen]

    @classmethod
    def change(cls, event: LifeEvent, roster: Roster) -> None:
        assert event.request is not None
        roster.answer(event.request)

    @classmethod
    def milestones(cls, event: LifeEvent) -> frozenset[int]:
        return frozenset({event.round, event.round + 1})
