"""The verdict of a finished run as a table for the terminal; reads the run directory only."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fedsim.results import RunDirectory

Verdict = Mapping[str, Any]


def print_verdict(directory: RunDirectory, console: Console) -> None:
    """One table per variant and request, means over seeds, and whether the run is informative."""
    life, verdict = directory.json("life"), directory.json("verdict")
    titles = {branch["name"]: branch["title"] for branch in life["branches"]}
    if not life["requests"]:
        console.print("No forget request in this life: nothing to compare.")
    for variant in life["variants"]:
        for request in life["requests"]:
            rows = _chosen(verdict["rows"], variant["name"], request["request"])
            console.print(_table(rows, titles, _title(life, variant["name"], request)))
            for one in _chosen(verdict["informative"], variant["name"], request["request"]):
                mark = "[green]informative[/green]" if one["informative"] else "[red]NOT informative[/red]"
                console.print(f"  seed {one['seed']}: {mark}: {one['sentence']}", highlight=False)
            console.print()


def _chosen(rows: Sequence[Verdict], variant: str, request: int) -> list[Verdict]:
    return [row for row in rows if row["variant"] == variant and row["request"] == request]


def _title(life: Mapping[str, Any], variant: str, request: Mapping[str, Any]) -> str:
    of_variant = f" [{variant}]" if len(life["variants"]) > 1 else ""
    return f"Request {request['request']}{of_variant}: {request['text']} after round {request['round']}"


def _table(rows: Sequence[Verdict], titles: Mapping[str, str], title: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("branch")
    table.add_column("class")
    for name in (
        "knows",
        "excess",
        "forgotten",
        "rounds to\nreference",
        "forget\nquality p",
        "utility\nchange",
        "worst\nclient",
        "cost\n(retrain=1)",
    ):
        table.add_column(name, justify="right")
    for branch, title_ in titles.items():
        of_branch = [row for row in rows if row["branch"] == branch]
        if of_branch:
            table.add_row(title_, of_branch[0]["class"], *_cells(branch, of_branch))
    return table


def _cells(branch: str, rows: Sequence[Verdict]) -> list[str]:
    reference = branch == "retrain"
    forgotten = _mean(rows, "forgetting_fraction")
    reached = [row["time_to_reference"] for row in rows]
    rounds = (
        "-"
        if None in reached and branch == "keep"
        else "not yet"
        if None in reached
        else f"{_average(reached):.0f}"
    )
    return [
        _show(_mean(rows, "value")),
        "0 (ref.)" if reference else _show(_mean(rows, "excess"), sign=True),
        "-" if forgotten is None else f"{forgotten:.0%}",
        "-" if reference else rounds,
        _show(_mean(rows, "forget_quality_p"), digits=3),
        "-" if reference else _show(_mean(rows, "utility_excess"), sign=True, digits=3),
        "-" if reference else _show(_mean(rows, "collateral_worst"), sign=True),
        _show(_mean(rows, "cost_share")),
    ]


def _average(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _mean(rows: Sequence[Verdict], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return statistics.fmean(values) if values else None


def _show(value: float | None, *, sign: bool = False, digits: int = 2) -> str:
    if value is None:
        return "-"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
