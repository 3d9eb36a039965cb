"""The events of a scenario's timeline, as they are written.

>>> Join(clients="0-2, 5").clients
(0, 1, 2, 5)
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from fedsim.config import Config, Float, Int, Rule

MOST_CLIENTS = 1_000_000


def parse_clients(value: object) -> tuple[int, ...]:
    """``3``, ``"0-19"``, ``"0-3, 7"`` or a list of these, as a tuple of ids."""
    ids: list[int] = []
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if type(item) is int and 0 <= item < MOST_CLIENTS:
            ids.append(item)
        elif isinstance(item, str):
            for part in item.split(","):
                ids.extend(_id_range(part.strip(), value))
        else:
            raise _not_clients(value)
    if not ids:
        raise _not_clients(value)
    return tuple(ids)


def _not_clients(value: object) -> ValueError:
    return ValueError(
        f"found {value!r}; must be an id from 0 to {MOST_CLIENTS - 1}, a range like 0-19, or a list of these"
    )


def _id_range(text: str, value: object) -> range:
    match = re.fullmatch(r"([0-9]{1,7})(?:\s*-\s*([0-9]{1,7}))?", text)
    if match is None:
        raise _not_clients(value)
    low, high = int(match[1]), int(match[2] or match[1])
    if high < low:
        raise ValueError(f"found {value!r}; the range {text} is empty; write {high}-{low}")
    if high >= MOST_CLIENTS:
        raise _not_clients(value)
    return range(low, high + 1)


ClientIds = Annotated[
    tuple[Int, ...],
    BeforeValidator(parse_clients, json_schema_input_type=int | str | list[int | str]),
]
ClientId = Annotated[Int, Field(ge=0, le=MOST_CLIENTS - 1)]
RecordNames = Annotated[tuple[str, ...], Field(min_length=1), Rule("a list of one or more record ids")]


class Join(Config):
    """Clients enter the federation."""

    clients: ClientIds
    """An id, a range like 0-19, or a list of these."""


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
    """An id, a range like 0-19, or a list of these."""
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
