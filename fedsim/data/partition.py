"""Regroup records into clients: by subject, independently, or with Dirichlet skew.

Each record lands in exactly one client, as a pure function of the seed, its own key and the number of
clients. Removing a record therefore moves no other, and a client may end up with none; clients without
records are left out, and the others keep their numbers.

Dirichlet skew is that of Hsu, Qi and Brown (2019, arXiv:1909.06335): each class (a subject, or a
relation) spreads over the clients by its own draw of shares. Small ``alpha`` is strong skew.

>>> from fedsim.data.authors import load_authors
>>> records = load_authors(clients=6).clients
>>> pooled = [record for client in records.values() for record in client]
>>> sorted(by_subject(pooled, subjects_per_client=2))
[0, 1, 2]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from fedsim.data.records import Record
from fedsim.rng import stream, uniform

Clients = Mapping[int, tuple[Record, ...]]


def by_subject(records: Sequence[Record], *, subjects_per_client: int = 1) -> Clients:
    """Consecutive subjects, in order of first appearance, share a client.

    With every record of a subject gone, later subjects would move; remove records after partitioning.
    """
    _at_least_one("subjects_per_client", subjects_per_client)
    rank = {subject: place for place, subject in enumerate(dict.fromkeys(r.subject for r in records))}
    return _assign(records, lambda record: rank[record.subject] // subjects_per_client)


def iid(records: Sequence[Record], *, clients: int, seed: int) -> Clients:
    """Every record goes to a client drawn by its record id, all clients being equally likely."""
    _at_least_one("clients", clients)
    return _assign(records, lambda r: int(uniform(seed, "partition", "iid", r.record_id) * clients))


def dirichlet(
    records: Sequence[Record],
    *,
    clients: int,
    alpha: float,
    seed: int,
    over: Literal["subject", "relation"] = "subject",
) -> Clients:
    """Each class has shares ~ Dirichlet(alpha) over the clients; each record draws from its class's.

    The relation of a record is what follows the last ``/`` of its record id.
    """
    _at_least_one("clients", clients)
    if not alpha > 0:
        raise ValueError(f"alpha={alpha} of a Dirichlet partition must be > 0; 0.1 is strong skew, 100 none")
    if over not in ("subject", "relation"):
        raise ValueError(f"over={over!r} of a Dirichlet partition must be 'subject' or 'relation'")
    bounds: dict[str, np.ndarray] = {}

    def choose(record: Record) -> int:
        label = record.subject if over == "subject" else record.record_id.rsplit("/", 1)[-1]
        if label not in bounds:
            shares = stream(seed, "partition", "shares", over, label).dirichlet([alpha] * clients)
            bounds[label] = np.cumsum(shares)[:-1]
        point = uniform(seed, "partition", "dirichlet", record.record_id)
        return int(np.searchsorted(bounds[label], point, side="right"))

    return _assign(records, choose)


def _assign(records: Sequence[Record], choose: Callable[[Record], int]) -> Clients:
    grouped: dict[int, list[Record]] = {}
    for record in records:
        grouped.setdefault(choose(record), []).append(record)
    return {client: tuple(grouped[client]) for client in sorted(grouped)}


def _at_least_one(field: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{field}={number} of a partition must be >= 1; nearest: 1")
