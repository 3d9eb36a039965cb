"""A report as tables: on a terminal, or as Markdown to paste."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.harness import Ratio, Report


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table in plain text; all columns but the first are numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grids(report: Report) -> list[Grid]:
    """Ratios against goals, medians with their range, and facts; what is empty is left out."""
    ratios = tuple(
        (
            one.name,
            number(one.value),
            f"{number(one.lowest)}..{number(one.highest)}",
            _goal(one),
            _verdict(one),
        )
        for one in report.ratios
    )
    medians = tuple(
        (name, number(statistics.median(values)), number(min(values)), number(max(values)), str(len(values)))
        for name, values in report.samples.items()
    )
    facts = tuple(
        (name, value if isinstance(value, str) else number(value)) for name, value in report.facts.items()
    )
    every = [
        Grid(columns=("ratio", "of medians", "over turns", "goal", "met"), rows=ratios),
        Grid(columns=(report.unit, "median", "lowest", "highest", "n"), rows=medians),
        Grid(columns=("fact", "value"), rows=facts),
    ]
    return [grid for grid in every if grid.rows]


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _goal(one: Ratio) -> str:
    bounds = [f">= {one.at_least:g}"] if one.at_least is not None else []
    bounds += [f"<= {one.at_most:g}"] if one.at_most is not None else []
    return " and ".join(bounds) or "-"


def _verdict(one: Ratio) -> str:
    return {None: "-", True: "yes", False: "no"}[one.met]


def show(report: Report, console: Console) -> None:
    """Print a report on a terminal."""
    console.print(f"\n[bold]{escape(report.title)}[/bold]")
    console.print(escape(", ".join(f"{key}={value}" for key, value in report.settings.items())))
    for grid in grids(report):
        table = Table()
        for place, column in enumerate(grid.columns):
            table.add_column(escape(column), justify="left" if place == 0 else "right")
        for row in grid.rows:
            table.add_row(*map(escape, row))
        console.print(table)


def markdown(report: Report) -> str:
    """The same tables in Markdown."""
    settings = ", ".join(f"{key}={value}" for key, value in report.settings.items())
    return "\n\n".join([f"## {report.title}", settings, *map(_markdown_table, grids(report))]) + "\n"


def _markdown_table(grid: Grid) -> str:
    rule = ("---", *("---:" for _ in grid.columns[1:]))
    return "\n".join(_line(row) for row in (grid.columns, rule, *grid.rows))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
