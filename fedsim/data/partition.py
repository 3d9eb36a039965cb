"""Regroup records into clients: by subject, independently, with Dirichlet skew, or in shards.

Each record lands in exactly one client, as a pure function of the seed, its own key and the number of
clients. Removing a record therefore moves no other (shards aside), and a client may end up with none; clients
without records are left out, and the others keep their numbers.

Dirichlet skew is that of Hsu, Qi and Brown (2019, arXiv:1909.06335): each class (a subject, a relation or a
label) spreads over the clients by its own draw of shares. Small ``alpha`` is strong skew. Shards are those of
McMahan et al. (2017, arXiv:1602.05629): data sorted by label are cut into equal pieces, and each client gets
a few.

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
from fedsim.rng import ordering, stream, uniform, uniforms

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
    dealt = iter(deal_iid([record.record_id for record in records], clients=clients, seed=seed))
    return _assign(records, lambda record: next(dealt))


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
    if over not in ("subject", "relation"):
        raise ValueError(f"over={over!r} of a Dirichlet partition must be 'subject' or 'relation'")
    labels = [r.subject if over == "subject" else r.record_id.rsplit("/", 1)[-1] for r in records]
    ids = [record.record_id for record in records]
    dealt = iter(deal_dirichlet(ids, labels, clients=clients, alpha=alpha, seed=seed, over=over))
    return _assign(records, lambda record: next(dealt))


def deal_iid(ids: Sequence[str], *, clients: int, seed: int) -> list[int]:
    """The client of each id, drawn by the id, all clients being equally likely."""
    _at_least_one("clients", clients)
    return [int(uniform(seed, "partition", "iid", key) * clients) for key in ids]


def deal_evenly(ids: Sequence[str], *, clients: int, seed: int) -> list[int]:
    """The client of each id, in an order drawn by id; clients differ by one at most.

    Raises:
        ValueError: there are fewer ids than clients.
    """
    _at_least_one("clients", clients)
    if len(ids) < clients:
        raise ValueError(f"{len(ids)} cannot be dealt to {clients} clients; use {len(ids)} or fewer")
    dealt = [0] * len(ids)
    for turn, position in enumerate(ordering(seed, "partition", "evenly", ids=ids)):
        dealt[position] = turn % clients
    return dealt


def deal_dirichlet(
    ids: Sequence[str], labels: Sequence[str], *, clients: int, alpha: float, seed: int, over: str = "label"
) -> list[int]:
    """The client of each id, drawn from the shares ~ Dirichlet(alpha) of its label.

    ``over`` says what labels are, so that classes of two kinds with one name have shares of their own.
    """
    _at_least_one("clients", clients)
    if not alpha > 0:
        raise ValueError(f"alpha={alpha} of a Dirichlet partition must be > 0; 0.1 is strong skew, 100 none")
    bounds = {}
    for label in dict.fromkeys(labels):
        shares = stream(seed, "partition", "shares", over, label).dirichlet([alpha] * clients)
        bounds[label] = np.cumsum(shares)[:-1]
    points = uniforms(seed, "partition", "dirichlet", ids=ids)
    return [
        int(np.searchsorted(bounds[label], point, side="right"))
        for label, point in zip(labels, points, strict=True)
    ]


def deal_shards(
    ids: Sequence[str], labels: Sequence[str], *, clients: int, shards_per_client: int, seed: int
) -> list[int]:
    """The client of each id, sorted by label and cut into ``clients * shards_per_client`` equal shards.

    Within a label the order is drawn by id, and so is which client gets which shard. Shards differ by one
    record at most.

    Raises:
        ValueError: there are fewer records than shards.
    """
    _at_least_one("clients", clients)
    _at_least_one("shards_per_client", shards_per_client)
    shards = clients * shards_per_client
    if len(ids) < shards:
        raise ValueError(
            f"{len(ids)} rows cannot be cut into {shards} shards, {shards_per_client} for each of {clients} "
            f"clients; use {len(ids) // shards_per_client} clients or fewer"
        )
    drawn = ordering(seed, "partition", "shards", "order", ids=ids)
    by_label = sorted(drawn, key=lambda position: labels[position])
    turns = ordering(seed, "partition", "shards", "dealt", ids=range(shards))
    client_of = {shard: turn % clients for turn, shard in enumerate(turns)}
    dealt = [0] * len(ids)
    for rank, position in enumerate(by_label):
        dealt[position] = client_of[rank * shards // len(ids)]
    return dealt


def _assign(records: Sequence[Record], choose: Callable[[Record], int]) -> Clients:
    grouped: dict[int, list[Record]] = {}
    for record in records:
        grouped.setdefault(choose(record), []).append(record)
    return {client: tuple(grouped[client]) for client in sorted(grouped)}


def _at_least_one(field: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{field}={number} of a partition must be >= 1; nearest: 1")
