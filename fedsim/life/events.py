"""The events of a scenario's timeline, as they are written.

Clients are named as their data name them; what a name stands for is known once there are data (see
``fedsim.data.names``).

>>> Join(clients="0-2, clinic-a").clients
('0-2, clinic-a',)
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from fedsim.config import Config, Float, Int, Rule


def parse_clients(value: object) -> tuple[int | str, ...]:
    """A number, a name, a range like ``0-19``, ``all``, or a list of these, as a tuple."""
    items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not items:
        raise ValueError("found []; name at least one client, or write all")
    return tuple(parse_client(item) for item in items)


def parse_client(value: object) -> int | str:
    """What may name a client: a whole number from 0, or text."""
    if (type(value) is int and value >= 0) or (isinstance(value, str) and value.strip()):
        return value
    raise ValueError(
        f"found {value!r}; must be a client's name, or its number from 0; put a name in quotes where "
        "YAML takes it for something else"
    )


ClientIds = Annotated[
    tuple[int | str, ...],
    BeforeValidator(parse_clients, json_schema_input_type=int | str | list[int | str]),
]
ClientId = Annotated[int | str, BeforeValidator(parse_client, json_schema_input_type=int | str)]
RecordNames = Annotated[tuple[str, ...], Field(min_length=1), Rule("a list of one or more record ids")]


class Join(Config):
    """Clients enter the federation."""

    clients: ClientIds
    """Names or numbers, a range like 0-19, a list of these, or all."""


class Train(Config):
    """Rounds of federated training."""

    rounds: Int = Field(ge=1, le=100_000)


class Forget(Config):
    """A client asks to be forgotten: all of it, some of its records, or a fraction of them."""

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


class Leave(Config):
    """A client leaves; nothing is erased."""

    client: ClientId


class Rejoin(Config):
    """A client that left or was forgotten comes back with the data named here."""

    client: ClientId
    records: RecordNames | Literal["all"] = "all"
    """Ids of the records it brings, or all."""


DropStage = Literal["before_keys", "after_keys", "after_shares", "after_masking", "during_unmasking"]
"""When a client falls silent: before it advertises its keys, then, once it has shared its secrets, once its
update is masked (and lost on the way), or when the masks are to be taken off. Without secure aggregation:
before it trains, or once it has trained."""


class Drop(Config):
    """Clients fall silent in the next rounds, if they take part."""

    clients: ClientIds
    """Names or numbers, a range like 0-19, a list of these, or all."""
    stage: DropStage = "after_masking"
    """The step of a round before which nothing more is heard of them."""
    rounds: Int = Field(default=1, ge=1, le=100_000)
    """For how many rounds."""


class ProbeEvent(Config):
    """Measure now, items and generation included."""

    label: str = "probe"


class Event(Config):
    """One thing that happens; exactly one key."""

    join: Join | None = None
    train: Train | None = None
    forget: Forget | None = None
    leave: Leave | None = None
    rejoin: Rejoin | None = None
    drop: Drop | None = None
    probe: ProbeEvent | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Event:
        given = [name for name in Event.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"an event has exactly one of {', '.join(Event.model_fields)}; this one has "
                f"{' and '.join(given) if given else 'none'}"
            )
        return self
