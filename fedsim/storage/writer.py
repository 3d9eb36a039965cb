"""One writer for a run directory, and what a writer that was killed has left behind."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.places import ScenarioError

LOCK = ".writer"


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Hold a run directory for this process; the system lets go of it when the process ends, however it ends.

    Raises:
        ScenarioError: another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            who = handle.read().strip()
            by = f" (process {who})" if who else ""
            raise ScenarioError(
                f"{directory}: another fedsim{by} is writing this run; wait for it, or choose another "
                "directory with --out"
            ) from None
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        collect_leftovers(directory)
        yield


def collect_leftovers(directory: Path) -> None:
    """Remove what was being written when a writer was killed; what it was about to replace comes back."""
    for path in sorted(directory.rglob(".*.tmp")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in sorted(directory.rglob(".*.old")):
        original = path.parent / path.name[1:].rsplit(".", 2)[0]
        if original.exists():
            shutil.rmtree(path)
        else:
            os.replace(path, original)
