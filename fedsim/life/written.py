"""How clients and records are named in a scenario.

Clients are named as their data name them; what a name stands for is known once there are data (see
``fedsim.data.names``).

>>> parse_clients("0-2, clinic-a")
('0-2, clinic-a',)
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from fedsim.config import Rule


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
