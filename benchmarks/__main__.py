"""Runs benchmarks: ``make bench`` all, ``make bench ONLY=NAME`` one; ``python -m benchmarks --help``.

Each runs in a process of its own, so that none inherits another's memory. Numbers go to
``benchmarks/results/NAME.json``, tables to the terminal.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import transformers
from rich.console import Console

from benchmarks.children import QUIET
from benchmarks.harness import FOLDER, ROOT, Options, Report
from benchmarks.tables import markdown, show

NAMES = (
    "messages",
    "lora_round",
    "efficiency",
    "instruct",
    "privacy_cost",
    "secure_aggregation",
    "branches",
    "scaling",
    "gpu",
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)}; default all")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of each variant")
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=[1, 2],
        metavar="N",
        help="threads of torch to try; the fastest counts",
    )
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    parser.add_argument("--out", type=Path, default=FOLDER / "results", help="folder of the JSON files")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in NAMES]
    if unknown or given.repeat < 1:
        parser.error(f"no benchmark {unknown[0]!r}" if unknown else f"--repeat {given.repeat} must be >= 1")
    names = given.names or list(NAMES)
    if len(names) == 1:
        return _run(names[0], given)
    options = ["--repeat", str(given.repeat), "--out", str(given.out), "--threads", *map(str, given.threads)]
    options += ["--small"] * given.small + ["--markdown"] * given.markdown
    codes = [
        subprocess.run([sys.executable, "-m", "benchmarks", name, *options], cwd=ROOT, check=False).returncode
        for name in names
    ]
    return max(codes)


def _run(name: str, given: argparse.Namespace) -> int:
    """Run one benchmark here."""
    os.environ.update(QUIET)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    run = importlib.import_module(f"benchmarks.{name}").run
    logging.getLogger("flwr").setLevel(logging.ERROR)  # importing it has set its level
    console = Console()
    console.print(f"{name}: running", highlight=False)
    report: Report | None = run(Options(repeat=given.repeat, small=given.small, threads=tuple(given.threads)))
    if report is None:
        return 0
    path = report.write(given.out)
    if given.markdown:
        print(markdown(report))
    else:
        show(report, console)
    console.print(f"raw data: {path}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
