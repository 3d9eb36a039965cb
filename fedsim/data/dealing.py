"""Rows without owners dealt out to clients, as a scenario asks."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.config import ConfigError
from fedsim.data.config import DirichletPartition, PartitionChoice, ShardsPartition
from fedsim.data.partition import deal_dirichlet, deal_iid, deal_shards
from fedsim.data.rows import Row, shown
from fedsim.data.tables import columns_of


def deal(
    table: Sequence[tuple[str, Row]], partition: PartitionChoice | None, *, clients: int, seed: int
) -> list[int]:
    """The client of each row, by the name that its records are called by.

    Raises:
        ConfigError: there is no such column of labels, or there are too few rows; its key is below ``data``.
    """
    ids = [called for called, _ in table]
    if not isinstance(partition, DirichletPartition | ShardsPartition):
        return deal_iid(ids, clients=clients, seed=seed)
    labels = _labels([row for _, row in table], partition.column)
    if isinstance(partition, DirichletPartition):
        return deal_dirichlet(ids, labels, clients=clients, alpha=partition.alpha, seed=seed)
    try:
        return deal_shards(
            ids, labels, clients=clients, shards_per_client=partition.shards_per_client, seed=seed
        )
    except ValueError as error:
        raise ConfigError(str(error), "clients") from error


def _labels(rows: Sequence[Row], column: str) -> list[str]:
    """The label of each row, as text."""
    has = columns_of(rows)
    if column not in has:
        raise ConfigError(
            f"{rows[0].path} has no column {column!r} to deal its rows by; its columns are {', '.join(has)}",
            "partition",
            "column",
        )
    for row in rows:
        if not isinstance(row.fields.get(column), str | int | float):
            raise ValueError(
                f"{row.where}: {column}={shown(row.fields.get(column))} must be a text or a number "
                "to deal rows by"
            )
    return [str(row.fields[column]) for row in rows]
