"""The command line: run, resume, validate, list, report, schema.

Exit codes: 0 done, 2 the input cannot be used (one clear message, nothing changed), 1 anything else.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedsim.results import RunDirectory, write_json
from fedsim.scenario_file import ScenarioError, json_schema, load_scenario

if TYPE_CHECKING:
    from fedsim.build import Simulation

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A simulation-first federated testbed for unlearning, with a pluggable privacy layer.",
)

ScenarioFile = Annotated[Path, typer.Argument(help="Scenario YAML.", metavar="FILE")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE, for example federation.local.lr=1e-3.")
]


@app.command()
def run(
    file: ScenarioFile,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/NAME when left out.")] = None,
    set_: Overrides = None,
) -> None:
    """Run a scenario and write its evidence, figures and report."""
    with user_errors():
        from fedsim import build

        _quiet_libraries()
        loaded = load_scenario(file, set_ or [])
        directory = RunDirectory(out or Path("runs") / loaded.scenario.name)
        simulation = build.prepare(loaded, directory)
    _finish(simulation, directory)


@app.command()
def resume(
    directory: Annotated[Path, typer.Argument(help="Run directory of an interrupted run.", metavar="RUN")],
) -> None:
    """Go on with a run that was interrupted; the results are those of an uninterrupted run."""
    with user_errors():
        from fedsim import build

        _quiet_libraries()
        where = RunDirectory(directory)
        simulation = build.reopen(where)
    _finish(simulation, where)


@app.command()
def validate(file: ScenarioFile, set_: Overrides = None) -> None:
    """Check a scenario, its data and its base model, and say what would run and who would see what."""
    with user_errors():
        from fedsim import build

        _quiet_libraries()
        for line in build.describe(load_scenario(file, set_ or [])):
            print(line)


@app.command("list")
def list_() -> None:
    """Scenarios, methods, stages, strategies, metrics and data sources, a line each."""
    from fedsim import build

    console = Console(soft_wrap=True)
    for title, rows in build.catalogue().items():
        table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, summary in rows:
            table.add_row(f"  {name}", summary)
        console.print(table)


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")],
) -> None:
    """Draw the figures and the report of a finished run again."""
    from plots.report import write_report

    with user_errors():
        if not (directory / "verdict.json").exists():
            raise ScenarioError(
                f"{directory}: no finished run here (verdict.json is missing); finish it with "
                f"fedsim resume {directory}, or start one with fedsim run FILE --out {directory}"
            )
        print(write_report(directory))


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option(help="File to write; standard output when left out.")] = None,
) -> None:
    """The JSON schema of scenario files."""
    import json

    if out is None:
        print(json.dumps(json_schema(), indent=2, sort_keys=True))
    else:
        write_json(out, json_schema())


def _quiet_libraries() -> None:
    """Keep libraries' own logs, bars and notices off the terminal; faults are reported by the run."""
    import flwr  # noqa: F401  (sets up its logger on import, so its level is set afterwards)
    import transformers

    logging.getLogger("flwr").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _finish(simulation: Simulation, directory: RunDirectory) -> None:
    """Run to the end, draw, and print the verdict."""
    from fedsim import build
    from fedsim.progress import make_progress
    from fedsim.verdict_table import print_verdict
    from plots.report import write_report

    console = Console() if sys.stdout.isatty() else Console(width=110)
    progress = make_progress(Console(stderr=True))
    try:
        build.execute(simulation, directory, progress)
    finally:
        progress.close()
    page = write_report(directory.path)
    print_verdict(directory, console)
    console.print(f"report: {page}", soft_wrap=True)


@contextmanager
def user_errors() -> Iterator[None]:
    """Before training starts, whatever cannot be used ends as one message and exit code 2."""
    try:
        yield
    except ValueError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {error}", markup=False)
        raise typer.Exit(2) from None


def main() -> None:
    """Entry point."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    try:
        app()
    except KeyboardInterrupt:
        print("interrupted; go on with: fedsim resume RUN", file=sys.stderr)
        raise SystemExit(130) from None
