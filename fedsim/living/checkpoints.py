"""Where a life's branches stand on disk: state, adapter and rows, whole or not at all.

``checkpoints/<variant>/<seed>/round-NNNN/<branch>/`` holds a PEFT directory of the adapter, the rest of the
federation's state, the rows that its segment has produced so far, and a manifest of these files: a checkpoint
that is not as it was written is not used.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from fedsim.federation.state import Federation
from fedsim.federation.strategies.protocol import StrategyConfig
from fedsim.life.tree import Segment
from fedsim.model.adapter import AdapterModel
from fedsim.model.saving import load_adapter, save_adapter
from fedsim.storage.manifest import damage, seal
from fedsim.storage.tables import TABLES, Row, write_table
from fedsim.storage.whole import folder_name, whole_directory

SCHEMAS = {name: TABLES[name] for name in ("metrics", "items", "answers", "costs", "timings")}


def branch_folder(name: str) -> str:
    """The folder of a branch.

    >>> branch_folder("sisa/0/retrain#2"), branch_folder("npo")
    ('sisa~0~retrain-2', 'npo')
    """
    return folder_name(name.replace("#", "-").replace("/", "~"))


@dataclass(kw_only=True)
class Rows:
    """Rows of one segment so far, by table."""

    tables: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in SCHEMAS})

    def save(self, directory: Path) -> None:
        for name, rows in self.tables.items():
            write_table(directory / f"{name}.parquet", rows, SCHEMAS[name])

    @classmethod
    def load(cls, directory: Path) -> Rows:
        tables = {
            name: pq.read_table(directory / f"{name}.parquet", partitioning=None).to_pylist()
            for name in SCHEMAS
        }
        return cls(tables=tables)


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one life under ``root``."""

    root: Path
    model: AdapterModel
    algorithm: StrategyConfig

    def path(self, segment: Segment, round_: int) -> Path:
        return self.root / f"round-{round_:04d}" / branch_folder(segment.owner)

    def history(self, segment: Segment) -> Path:
        """Where what is stored of a segment's rounds lies."""
        return self.root / "history" / branch_folder(segment.owner)

    def exists(self, segment: Segment, round_: int) -> bool:
        return self.path(segment, round_).exists()

    def damage(self, segment: Segment, round_: int) -> str | None:
        """What of a checkpoint is not as it was written, with its place; None when it is whole."""
        path = self.path(segment, round_)
        found = damage(path)
        return None if found is None else f"{path}: {found}"

    def save(self, segment: Segment, round_: int, federation: Federation, rows: Rows) -> None:
        """Write a segment's state after a round; one that is there already is replaced."""
        with whole_directory(self.path(segment, round_)) as temporary:
            save_adapter(self.model, federation.adapter, temporary / "adapter")
            federation.save(temporary)
            rows.save(temporary)
            seal(temporary)

    def federation(self, segment: Segment, round_: int) -> Federation:
        path = self.path(segment, round_)
        return Federation.load(path, self.algorithm, load_adapter(self.model, path / "adapter"))

    def rows(self, segment: Segment, round_: int) -> Rows:
        return Rows.load(self.path(segment, round_))

    def keep_only(self, kept: Collection[tuple[Segment, int]]) -> None:
        """Delete every other checkpoint of this life: what an attempt that was killed has left behind."""
        paths = {self.path(segment, round_) for segment, round_ in kept}
        for round_folder in sorted(self.root.glob("round-*")):
            for path in sorted(round_folder.iterdir()):
                if path not in paths:
                    shutil.rmtree(path)
            if not any(round_folder.iterdir()):
                round_folder.rmdir()

    def remove(self, segment: Segment, round_: int) -> None:
        """Delete a checkpoint that a later one replaces, and its round's folder when that is empty."""
        path = self.path(segment, round_)
        if not path.exists():
            return
        shutil.rmtree(path)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
