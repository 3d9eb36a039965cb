"""Processes of their own: other runtimes, other virtual environments, and whatever's memory is measured.

python -m benchmarks.children MODULE:FUNCTION FOLDER
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import ROOT

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "OMP_NUM_THREADS": "1",
}


class ChildError(RuntimeError):
    """A child process failed; the message ends with what it said last."""


def run_child(
    command: Sequence[str], settings: Mapping[str, Any], files: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, Any]:
    """Run a command with a folder as last argument, and give what it wrote there as ``result.json``.

    The folder holds ``settings.json`` and ``files`` as NumPy files. Arrays that the child writes are added
    under their names. The child's torch has one thread unless it chooses otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="fedsim-bench-") as name:
        folder = Path(name)
        (folder / "settings.json").write_text(json.dumps(dict(settings)))
        for key, array in (files or {}).items():
            np.save(folder / f"{key}.npy", array)
        done = subprocess.run(
            [*command, str(folder)],
            cwd=ROOT,
            env={**os.environ, **QUIET},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        result = folder / "result.json"
        if done.returncode != 0 or not result.exists():
            last = "\n".join(done.stdout.splitlines()[-15:])
            raise ChildError(f"{' '.join(command)} ended with {done.returncode}:\n{last}")
        found: dict[str, Any] = json.loads(result.read_text())
        found |= {path.stem: np.load(path) for path in folder.glob("result-*.npy")}
        return found


def function(name: str) -> list[str]:
    """The command that calls ``package.module:function`` with the folder, in another process of this Python.

    The module is imported and not run as a script, so that what it defines can be sent on to Ray's actors.
    """
    return [sys.executable, "-m", "benchmarks.children", name]


def read_settings(folder: Path) -> dict[str, Any]:
    """What ``run_child`` was given, read in the child."""
    settings: dict[str, Any] = json.loads((folder / "settings.json").read_text())
    return settings


def write_result(folder: Path, result: Mapping[str, Any], **arrays: NDArray[Any]) -> None:
    """What the child found; arrays go to ``result-NAME.npy``."""
    for name, array in arrays.items():
        np.save(folder / f"result-{name}.npy", array)
    (folder / "result.json").write_text(json.dumps(dict(result)))


if __name__ == "__main__":
    module, name = sys.argv[1].split(":")
    getattr(importlib.import_module(module), name)(Path(sys.argv[2]))
