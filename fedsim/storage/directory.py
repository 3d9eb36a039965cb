"""The run directory: the one place where a run's evidence lives, and the only module that knows its files.

Tables are Parquet in long form and byte-identical between two runs of one scenario on one machine;
clock times stand in a file of their own. Files appear whole or not at all (written beside, then
renamed). Reading needs no torch, so figures can be drawn anywhere.

==================  ============================================================================
scenario.yaml       the scenario as it was resolved, defaults filled in
scenario.json       the same, as the run began with it: an edited scenario.yaml is refused
life.json           horizon, events, requests and branches, with their rounds (see ``Life``)
data.json           of each variant and seed: clients' names, records per client, records in two places
provenance.json     versions, source state, hardware, seeds
events.jsonl        operational log, append-only: started, resumed, segment done, client failures
metrics.parquet     METRICS: one row per branch, round, subject and metric
items.parquet       ITEMS: the same per probe record, at the rounds that matter for statistics
answers.parquet     ANSWERS: what was said to a few questions, word by word, at the same rounds
trajectories.parquet  TRAJECTORIES: forgetting measured against keep, leave and retrain
costs.parquet       COSTS: what each round of each branch took, counted by instruments; null where clients
                    do not tell (steps and tokens in a deployment)
timings.parquet     TIMINGS: seconds
verdict.json        one row per branch and request, and whether the run is informative
ledger.json         every privacy-relevant release
checkpoints/        the state that lives through time, per variant, seed, round and branch
figures/ report.html  drawn from the above
audits.jsonl        what each audit found on each life, as they end; audits.json has it all
manifest.json       SHA-256 of the results, written last
logs/               what the programs of a deployment printed
==================  ============================================================================

Subjects: ``forget:K`` (the records of request K), ``retain`` (clients nobody asked to forget and who
stayed), ``holdout`` (never trained on), the names of the public probes, ``client:N``, and ``model``
for what concerns the whole model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fedsim.storage.tables import TABLES, Row, write_table
from fedsim.storage.whole import read_json, write_json


class DamagedError(ValueError):
    """A file of a run is not what the run wrote; the message names it."""


def _brief(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class RunDirectory:
    """Reads and writes one run; creating the object touches nothing on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, name: str) -> Path:
        return self.path / name

    def write_rows(self, table: str, rows: Sequence[Row]) -> None:
        """Write one of ``TABLES`` as a whole."""
        write_table(self.file(f"{table}.parquet"), rows, TABLES[table])

    def table(self, table: str) -> pa.Table:
        """One of ``TABLES`` as a pyarrow Table; empty with the right columns when the run has none yet."""
        path = self.file(f"{table}.parquet")
        if not path.exists():
            return TABLES[table].empty_table()
        try:
            found = pq.read_table(path, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise DamagedError(f"{path}: cannot be read as a table of this run ({_brief(error)})") from error
        if set(found.schema.names) != set(TABLES[table].names):
            raise DamagedError(f"{path}: has other columns than this run's table")
        return found

    def json(self, name: str) -> Any:
        """``life``, ``data``, ``provenance``, ``verdict`` or ``ledger``; FileNotFoundError without it."""
        path = self.file(f"{name}.json")
        try:
            return read_json(path)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DamagedError(f"{path}: cannot be read as JSON ({_brief(error)})") from error

    def write_json(self, name: str, value: Any) -> None:
        write_json(self.file(f"{name}.json"), value)

    def append(self, name: str, value: Mapping[str, Any]) -> None:
        """Append one line to a file of JSON lines; a line that a kill cut off is ended first."""
        self.path.mkdir(parents=True, exist_ok=True)
        line = json.dumps(dict(value), sort_keys=True) + "\n"
        with self.file(name).open("ab+") as handle:
            if handle.tell():
                handle.seek(-1, os.SEEK_END)
                line = line if handle.read(1) == b"\n" else f"\n{line}"
            handle.write(line.encode())

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a file of JSON lines; one that was cut off by a kill is left out."""
        path = self.file(name)
        found = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            with suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def log(self, kind: str, **fields: Any) -> None:
        """Append what happened to events.jsonl."""
        self.append("events.jsonl", {"kind": kind, **fields})

    def events(self) -> list[dict[str, Any]]:
        """What happened so far."""
        return self.lines("events.jsonl")
