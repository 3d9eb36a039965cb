"""What both sides of an engine call the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

ROUTE = "route"
"""Name of the record that says for whom a message is: ``client``, ``variant`` and ``seed``."""
CLIENTS = "clients"
"""Key of a SuperNode's configuration: its clients, as ``0,2,4``."""


def write_nodes(nodes: Mapping[int, Sequence[int]]) -> str:
    """The clients of each SuperNode by its id, for the run's configuration.

    >>> write_nodes({7: [0, 2], 9: [1]})
    '{"7": [0, 2], "9": [1]}'
    """
    return json.dumps({str(node): list(clients) for node, clients in nodes.items()})


def read_nodes(text: str) -> dict[int, tuple[int, ...]]:
    """The inverse of ``write_nodes``."""
    return {int(node): tuple(clients) for node, clients in json.loads(text).items()}
