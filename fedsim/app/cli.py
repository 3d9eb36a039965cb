"""The command line: run, resume, validate, list, report, schema.

Exit codes: 0 done, 2 the input cannot be used (one clear message, nothing changed), 1 anything else.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedsim.app.quiet import quiet_libraries
from fedsim.assembly.hub import go_offline_unless_reachable
from fedsim.engines.errors import EngineError
from fedsim.places import ScenarioError
from fedsim.scenario.file import LoadedScenario, json_schema, load_scenario
from fedsim.storage.directory import DamagedError, RunDirectory
from fedsim.storage.tables import TABLES
from fedsim.storage.whole import write_json

if TYPE_CHECKING:
    from fedsim.assembly.simulation import CheckedScenario


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A simulation-first federated testbed for unlearning, with a pluggable privacy layer.",
)
MOST_LINES = 20
"""Lines of one message; what is more is counted."""


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fedsim {importlib.metadata.version('fedsim')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Nothing but what comes before a command."""


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
        loaded = _load(file, set_)
        directory = RunDirectory(out or Path("runs") / loaded.scenario.name)
        if directory.path.is_file():
            raise ScenarioError(f"{directory.path}: is a file; give --out a directory that may be written")
        from fedsim.app import runs

        simulation = runs.prepare(loaded, directory)
    _finish(simulation, directory)


@app.command()
def resume(
    directory: Annotated[Path, typer.Argument(help="Run directory of an interrupted run.", metavar="RUN")],
) -> None:
    """Go on with a run that was interrupted; the results are those of an uninterrupted run."""
    with user_errors():
        where = RunDirectory(directory)
        if where.file("scenario.yaml").exists():
            _load(where.file("scenario.yaml"), None)
        from fedsim.app import runs

        simulation = runs.reopen(where)
    _finish(simulation, where)


@app.command()
def validate(
    file: ScenarioFile,
    set_: Overrides = None,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Check without base and data, and plan for a GPU's memory.")
    ] = False,
    memory: Annotated[str, typer.Option(help="That memory, with --stand-in.")] = "80GB",
) -> None:
    """Check a scenario, its data and its base model, and say what would run and who would see what."""
    with user_errors():
        loaded = _load(file, set_)
        if stand_in:
            from fedsim.app.stand_in import describe_stand_in

            lines = describe_stand_in(loaded, memory)
        else:
            from fedsim.app.catalogue import describe

            lines = describe(loaded)
        for line in lines:
            print(line)


@app.command("list")
def list_() -> None:
    """Scenarios, methods, stages, strategies, metrics and data sources, a line each."""
    from fedsim.app.catalogue import catalogue

    sections = catalogue()
    pad = max(len(name) for rows in sections.values() for name, _ in rows) + 4
    width = Console().width if sys.stdout.isatty() else 10_000
    for title, rows in sections.items():
        print(title)
        for name, summary in rows:
            lead = f"  {name}".ljust(pad)
            text = summary.replace("``", "")
            print(textwrap.fill(text, width, initial_indent=lead, subsequent_indent=" " * pad))


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
        missing = [name for name in TABLES if not RunDirectory(directory).file(f"{name}.parquet").exists()]
        if missing:
            raise ScenarioError(
                f"{directory / missing[0]}.parquet: is missing from this finished run; put it back, or run "
                "the scenario again with another --out"
            )
        print(write_report(directory))
    _warn_of_changes(RunDirectory(directory))


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


def _load(file: Path, overrides: list[str] | None) -> LoadedScenario:
    """Read and check the file alone, which is quick; then make the slow libraries ready."""
    loaded = load_scenario(file, overrides or [])
    go_offline_unless_reachable(variant.scenario for variant in loaded.variants)
    quiet_libraries()
    return loaded


def _finish(simulation: CheckedScenario, directory: RunDirectory) -> None:
    """Run to the end, draw, and print the verdict."""
    from fedsim.app import runs
    from fedsim.app.verdict_table import print_verdict
    from fedsim.storage.progress import make_progress
    from plots.report import write_report

    console = Console() if sys.stdout.isatty() else Console(width=110)
    progress = make_progress(Console(stderr=True))
    with run_errors(directory.path):
        try:
            runs.execute(simulation, directory, progress)
        finally:
            progress.close()
    _warn_of_changes(directory)
    with run_errors(directory.path):
        try:
            said = f"report: {write_report(directory.path)}"
        except OSError as error:  # the verdict of a finished run can be shown wherever it lies
            said = f"report: not written: {_reason(error)}"
        except (ValueError, KeyError) as error:
            said = f"report: not written: {error}"
    with user_errors():
        try:
            print_verdict(directory, console)
        except KeyError as error:
            raise DamagedError(f"{directory.file('verdict.json')}: lacks {error}") from error
        finally:
            print(said)
        nobody = runs.nobody_contributed(directory)
    if nobody:
        print(
            "error: no client ever contributed, so nothing was trained and nothing here is evidence; "
            f"{directory.file('events.jsonl')} says why each one failed",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _warn_of_changes(directory: RunDirectory) -> None:
    """Say which result of a finished run is not as the run wrote it."""
    from fedsim.storage.manifest import damage

    changed = damage(directory.path) if directory.file("manifest.json").exists() else None
    if changed is not None:
        print(f"warning: {directory.path}: {changed} since the run ended", file=sys.stderr)


@contextmanager
def run_errors(directory: Path) -> Iterator[None]:
    """While a run is under way, what stops it ends as one message that says how to go on."""
    try:
        yield
    except (ScenarioError, DamagedError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except EngineError as error:
        print(f"error: {error}; go on with: fedsim resume {directory}", file=sys.stderr)
        raise typer.Exit(1) from None
    except OSError as error:
        print(f"error: {_reason(error)}; go on with: fedsim resume {directory}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(f"interrupted; go on with: fedsim resume {directory}", file=sys.stderr)
        raise typer.Exit(130) from None


def _reason(error: OSError) -> str:
    """What the system says, and of which file."""
    path = error.filename2 or error.filename
    return f"{path}: {error.strerror}" if path and error.strerror else str(error) or type(error).__name__


@contextmanager
def user_errors() -> Iterator[None]:
    """Before training starts, whatever cannot be used ends as one message and exit code 2."""
    try:
        yield
    except ValueError as error:
        message = str(error)
    except OSError as error:
        message = _reason(error)
    except KeyboardInterrupt:
        print("interrupted before the run began; nothing was lost", file=sys.stderr)
        raise typer.Exit(130) from None
    else:
        return
    print(f"error: {_capped(message)}", file=sys.stderr)
    raise typer.Exit(2)


def _capped(message: str) -> str:
    """At most so many lines of a message, and how many more there are."""
    lines = message.splitlines()
    if len(lines) <= MOST_LINES:
        return message
    return "\n".join([*lines[:MOST_LINES], f"and {len(lines) - MOST_LINES} more"])


def main() -> None:
    """Entry point."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    app()
