"""Progress from a process that nobody looks at to one that has a terminal: a file of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedsim.storage.progress import Progress


class RelayedProgress:
    """Writes down what it is told, a line each; ``finished`` is the last."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def start(self, total_rounds: int) -> None:
        self._write("start", total_rounds)

    def round(self, branch: str, round_: int, clients: int) -> None:
        self._write("round", branch, round_, clients)

    def note(self, text: str) -> None:
        self._write("note", text)

    def close(self) -> None:
        pass

    def finished(self, error: str | None) -> None:
        """The process is done, or it failed for this reason."""
        self._write("finished", error)

    def _write(self, *line: Any) -> None:
        with self.file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")


class Replay:
    """Reads such a file as it grows and tells a progress of this process."""

    def __init__(self, file: Path, progress: Progress) -> None:
        self.file, self.progress = file, progress
        self.done = False
        self.error: str | None = None
        self._read = 0

    def catch_up(self) -> None:
        """Tell what was written since the last time; ``done`` and ``error`` say how it ended."""
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        for line in lines[self._read :]:
            kind, *values = json.loads(line)
            if kind == "finished":
                self.done, self.error = True, values[0]
            else:
                getattr(self.progress, kind)(*values)
        self._read = len(lines)
