"""Where a run's numbers came from: versions, source state, hardware, resolved choices."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "flwr",
    "transformers",
    "peft",
    "opacus",
    "dp-accounting",
    "cryptography",
    "numpy",
    "scipy",
)


def provenance(*, seeds: tuple[int, ...], resolved: dict[str, Any]) -> dict[str, Any]:
    """All that is needed to say what was run, as plain data; no clock times and no user names."""
    return {
        "fedsim": importlib.metadata.version("fedsim"),
        "git": _git_state(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "seeds": list(seeds),
        "resolved": resolved,
    }


def _git_state(root: Path) -> dict[str, Any] | None:
    """Commit of the source and whether it was changed since; None outside a checkout."""
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": bool(changed)}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu() -> str:
    """The processor's model name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
