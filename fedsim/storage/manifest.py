"""A manifest: the SHA-256 of every file of a directory, by which a change is noticed before it is used.

It tells accidents (a flipped bit, a truncated or missing file), not forgeries: who can change a file can
write its manifest anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

NAME = "manifest.json"


def seal(directory: Path, names: Sequence[str] | None = None) -> None:
    """Write the manifest of some files of a directory, or of all below it, into the directory."""
    files = _files(directory) if names is None else [name for name in names if (directory / name).is_file()]
    digests = {name: _digest(directory / name) for name in files}
    (directory / NAME).write_text(json.dumps(digests, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def damage(directory: Path) -> str | None:
    """What of a sealed directory is not as it was written, in words; None when all of it is."""
    try:
        digests = json.loads((directory / NAME).read_text(encoding="utf-8"))
        expected = {str(name): str(digest) for name, digest in digests.items()}
    except FileNotFoundError:
        return f"{NAME} is missing"
    except (OSError, ValueError, AttributeError):
        return f"{NAME} cannot be read"
    for name, digest in sorted(expected.items()):
        try:
            if _digest(directory / name) != digest:
                return f"{name} is not as it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _files(directory: Path) -> list[str]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(directory)) for path in found if path.name != NAME)


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
