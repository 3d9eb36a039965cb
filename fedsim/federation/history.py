"""What a server stores of past rounds for methods that look back: updates one by one, and adapters.

A round is a sealed folder that appears whole. Segments that part share what lies before; each appends to a
folder of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from fedsim.model.vectors import Arrays, Layout, from_vector
from fedsim.storage.directory import DamagedError
from fedsim.storage.manifest import damage, seal
from fedsim.storage.whole import whole_directory
from fedsim.unlearning.desk import Sent

ADAPTER, UPDATES = "adapter.safetensors", "updates.safetensors"


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Rounds ``first`` to ``last`` of a life, stored below one folder."""

    folder: Path
    first: int
    last: int


@dataclass(frozen=True)
class StoredHistory:
    """The stored rounds that lead to one segment; its own are the last of ``stretches``."""

    stretches: tuple[Stretch, ...]

    def append(self, round_: int, adapter: Arrays, updates: Mapping[int, Sent]) -> None:
        """Store the adapter before a round and what its contributors sent; what was there is replaced."""
        sent = {f"{client}": Layout.of(one.update).join(one.update) for client, one in updates.items()}
        weights = {f"{client}/weight": np.array([one.weight]) for client, one in updates.items()}
        with whole_directory(self._path(round_)) as temporary:
            save_file(
                {name: np.ascontiguousarray(value) for name, value in adapter.items()}, temporary / ADAPTER
            )
            save_file({**sent, **weights}, temporary / UPDATES)
            seal(temporary)

    def adapter(self, round_: int) -> Arrays:
        """The adapter before a round.

        Raises:
            DamagedError: the round's files are not as they were written.
        """
        return dict(sorted(load_file(self._whole(round_) / ADAPTER).items()))

    def updates(self, round_: int) -> dict[int, Sent]:
        """What each contributor to a round sent; errors as for ``adapter``."""
        path = self._whole(round_)
        like, stored = load_file(path / ADAPTER), load_file(path / UPDATES)
        return {
            int(name): Sent(update=from_vector(vector, like), weight=float(stored[f"{name}/weight"][0]))
            for name, vector in sorted(stored.items())
            if name.isdigit()
        }

    def stored_bytes(self, until: int, stored: Callable[[int], bool]) -> int:
        """Bytes of those rounds up to ``until`` that a method has ``stored``."""
        rounds = (r for part in self.stretches for r in range(part.first, min(part.last, until) + 1))
        paths = (self._path(round_) for round_ in rounds if stored(round_))
        files = (path / name for path in paths for name in (ADAPTER, UPDATES))
        return sum(file.stat().st_size for file in files if file.exists())

    def _path(self, round_: int) -> Path:
        part = next(part for part in self.stretches if part.first <= round_ <= part.last)
        return part.folder / f"round-{round_:04d}"

    def _whole(self, round_: int) -> Path:
        path = self._path(round_)
        fault = damage(path)
        if fault is not None:
            raise DamagedError(f"{path}: {fault}; the method that looks back at round {round_} cannot go on")
        return path
