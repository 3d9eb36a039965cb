"""The tables of a run: their columns, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fedsim.storage.whole import whole_file

Row = Mapping[str, Any]

_WHO = [("variant", pa.string()), ("branch", pa.string()), ("seed", pa.int64()), ("round", pa.int64())]
METRICS = pa.schema(
    [
        *_WHO,
        ("event", pa.string()),
        ("subject", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)
ITEMS = pa.schema(
    [
        *_WHO,
        ("event", pa.string()),
        ("subject", pa.string()),
        ("record", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)
ANSWERS = pa.schema(
    [
        *_WHO,
        ("event", pa.string()),
        ("subject", pa.string()),
        ("record", pa.string()),
        ("question", pa.string()),
        ("right", pa.string()),
        ("said", pa.string()),
    ]
)
TRAJECTORIES = pa.schema(
    [
        *_WHO,
        ("request", pa.int64()),
        ("metric", pa.string()),
        ("excess", pa.float64()),
        ("forgetting_fraction", pa.float64()),
        ("method_effect", pa.float64()),
    ]
)
COSTS = pa.schema(
    [
        *_WHO,
        ("kind", pa.string()),
        ("request", pa.int64()),
        ("targets", pa.int64()),
        ("client_steps", pa.int64()),
        ("tokens", pa.int64()),
        ("bytes_down", pa.int64()),
        ("bytes_up", pa.int64()),
        ("clients", pa.int64()),
        ("failures", pa.int64()),
        ("stored_bytes", pa.int64()),
    ]
)
TIMINGS = pa.schema([*_WHO, ("phase", pa.string()), ("seconds", pa.float64())])

TABLES = {
    "metrics": METRICS,
    "items": ITEMS,
    "answers": ANSWERS,
    "trajectories": TRAJECTORIES,
    "costs": COSTS,
    "timings": TIMINGS,
}


def write_table(path: Path, rows: Sequence[Row], schema: pa.Schema) -> None:
    """Write rows as Parquet in the given order; a row with a missing or extra column is a KeyError."""
    names = set(schema.names)
    for row in rows:
        if set(row) != names:
            raise KeyError(f"columns {sorted(set(row) ^ names)} do not fit the table {path.name}")
    with whole_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), temporary)
