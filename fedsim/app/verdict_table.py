"""The verdict of a finished run as a table for the terminal; reads the run directory only."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fedsim.metrics.judgement import together
from fedsim.storage.directory import RunDirectory

Verdict = Mapping[str, Any]

COLUMNS = {
    "class": "class",
    "knows": "knows",
    "excess": "excess",
    "forgotten": "forgot",
    "rounds": "rounds\nto ref.",
    "nll": "NLL\nexcess",
    "membership": "member\nAUC",
    "quality": "quality\nD",
    "judged": "shown",
    "utility": "utility\nchange",
    "worst": "worst\nclient",
    "cost": "cost",
}
DISPENSABLE = ("class", "quality", "rounds", "forgotten", "utility", "nll")
"""Columns that a narrow terminal does without, the first one first."""


def print_verdict(directory: RunDirectory, console: Console) -> None:
    """One table per variant and request, means over seeds, and whether the run is informative."""
    life, verdict = directory.json("life"), directory.json("verdict")
    faults = _faults(directory.events())
    if faults:
        console.print(Text(faults, style="yellow"))
    titles = {branch["name"]: branch["title"] for branch in life["branches"]}
    if not life["requests"]:
        console.print("No forget request in this life: nothing to compare.")
        return
    for variant in life["variants"]:
        for request in life["requests"]:
            checks = _chosen(verdict["informative"], variant["name"], request["request"])
            rows = _readable(_chosen(verdict["rows"], variant["name"], request["request"]), checks)
            at = {row["round"] for row in rows} or {life["horizon"]}
            console.print(Text(_title(life, variant["name"], request), style="bold"))
            console.print(
                Text(f"  judged after round {', '.join(map(str, sorted(at)))}; {_n_of(checks, rows)}")
            )
            console.print(_table(rows, titles, console))
            for one in checks:
                console.print(Padding(_informative(one), (0, 0, 0, 2)))
            console.print()
        for one in verdict["summary"]:
            if one["variant"] == variant["name"]:
                _print_summary(one, console)
    console.print(Text(_legend(life["headline"]), style="dim"))


def _readable(rows: list[Verdict], checks: Sequence[Verdict]) -> list[Verdict]:
    """Rows of the informative seeds; all rows where no seed is informative."""
    good = {one["seed"] for one in checks if one["informative"]}
    return [row for row in rows if row["seed"] in good] if good else rows


def _n_of(checks: Sequence[Verdict], rows: Sequence[Verdict]) -> str:
    """How many seeds and records the numbers rest on."""
    seeds = len({row["seed"] for row in rows})
    good = sum(bool(one["informative"]) for one in checks)
    n = min((one["n"] for one in checks), default=0)
    note = f"mean of {good} informative of {len(checks)} seeds" if good else f"{seeds} not informative"
    return f"{note}, n = {n} records" if len(checks) > 1 else f"one seed, n = {n} records"


def _print_summary(one: Verdict, console: Console) -> None:
    """What the run shows, and what else it says."""
    title = one["title"] or "Not informative: this run cannot show forgetting"
    console.print(Text(f"{title}.", style="bold"))
    for note in one["notes"]:
        console.print(Text(note))


FAULTS = {
    "client_failed": "client failures",
    "empty_round": "empty rounds",
    "budget_spent": "rounds sat out on a spent privacy budget",
    "probe_failed": "rounds that could not be measured",
}


def _faults(events: Sequence[Mapping[str, Any]]) -> str:
    """What went wrong on the way, counted once each (a resumed run may have logged it twice)."""
    where = ("kind", "variant", "seed", "branch", "round", "client")
    seen = {tuple(event.get(key) for key in where) for event in events if event["kind"] in FAULTS}
    kinds = [kind for kind, *_ in seen]
    told = [f"{kinds.count(kind)} {name}" for kind, name in FAULTS.items() if kind in kinds]
    return f"On the way: {', '.join(told)}; events.jsonl has each one." if told else ""


def _chosen(rows: Sequence[Verdict], variant: str, request: int) -> list[Verdict]:
    return [row for row in rows if row["variant"] == variant and row["request"] == request]


def _title(life: Mapping[str, Any], variant: str, request: Mapping[str, Any]) -> str:
    of_variant = f" [{variant}]" if len(life["variants"]) > 1 else ""
    return f"Request {request['request']}{of_variant}: {request['text']} after round {request['round']}"


def _informative(one: Verdict) -> Text:
    mark = ("informative", "green") if one["informative"] else ("NOT informative", "red")
    return Text.assemble(f"seed {one['seed']}: ", mark, f": {one['sentence']}")


def _legend(headline: str) -> str:
    return (
        f"knows: {headline.replace('_', ' ')} of the forgotten facts at the end; excess, utility change: "
        "difference to retrain; worst client: difference to retrain for the client that lost most; "
        "NLL excess: nats a token above retrain's, positive knows less; "
        "member AUC: of telling forgotten from unseen records, as good an attack below .5 as above; "
        "quality D: distance of truth ratios from retrain's (Kolmogorov-Smirnov); "
        "shown: knows more or less than retrain; cost: share of retraining's"
    )


def _table(rows: Sequence[Verdict], titles: Mapping[str, str], console: Console) -> Table:
    """The widest table that fits the console without cutting a word; without what was measured nowhere."""
    lines = {}
    for branch, title in titles.items():
        if of_branch := [row for row in rows if row["branch"] == branch]:
            lines[title] = _cells(branch, of_branch)
    known = [name for name in COLUMNS if any(cells[name] != "-" for cells in lines.values())]
    for dropped in range(len(DISPENSABLE) + 1):
        shown = [name for name in known if name not in DISPENSABLE[:dropped]]
        table = _table_of(lines, shown)
        if Measurement.get(console, console.options.update(width=10_000), table).maximum <= console.width:
            break
    return table


def _table_of(lines: Mapping[str, Mapping[str, str]], shown: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("branch", overflow="fold")
    for name in shown:
        table.add_column(COLUMNS[name], justify="left" if name == "class" else "right", no_wrap=True)
    for title, cells in lines.items():
        table.add_row(Text(title), *(cells[name] for name in shown))
    return table


def _cells(branch: str, rows: Sequence[Verdict]) -> dict[str, str]:
    reference = rows[0]["reference"] == branch
    own = reference and branch != "retrain"
    forgotten = _mean(rows, "forgetting_fraction")
    return {
        "class": str(rows[0]["class"]),
        "knows": _show(_mean(rows, "value")),
        "excess": "-" if reference else _show(_mean(rows, "excess"), sign=True),
        "forgotten": "-" if forgotten is None or own else f"{forgotten:.0%}",
        "rounds": "-" if reference else _rounds([row["time_to_reference"] for row in rows]),
        "nll": "-" if reference else _show(_nll(rows), sign=True),
        "membership": _show(_mean([row["judgement"] for row in rows], "membership_auc")),
        "quality": "-" if reference else _show(_mean(rows, "forget_quality_d")),
        "judged": "-" if reference else SHOWN[together([row["judgement"]["kind"] for row in rows])],
        "utility": "-" if reference else _show(_mean(rows, "utility_excess"), sign=True, digits=3),
        "worst": "-" if reference else _show(_worst(rows), sign=True),
        "cost": _show(_mean(rows, "cost_share")),
    }


SHOWN = {
    "above": "more",
    "below": "less",
    "mixed": "both",
    "same": "equal",
    "open": "nothing",
    "unknown": "-",
}


def _worst(rows: Sequence[Verdict]) -> float | None:
    """What the client that lost most, on any seed, lost against retrain."""
    return min((row["collateral_worst"] for row in rows if row["collateral_worst"] is not None), default=None)


def _nll(rows: Sequence[Verdict]) -> float | None:
    """Nats a token above retrain's."""
    compared = [one for row in rows for one in row["judgement"]["comparisons"]]
    found = [-one["difference"] for one in compared if one["metric"] == "nll"]
    return statistics.fmean(found) if found else None


def _rounds(reached: Sequence[float | None]) -> str:
    """Rounds until the branch first stays near its reference, the mean over the seeds that come there."""
    there = [value for value in reached if value is not None]
    if there:
        mean = f"{statistics.fmean(there):.0f}"
        return mean if len(there) == len(reached) else f"{mean} ({len(there)} of {len(reached)})"
    return "never"


def _mean(rows: Sequence[Verdict], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return statistics.fmean(values) if values else None


def _show(value: float | None, *, sign: bool = False, digits: int = 2) -> str:
    if value is None:
        return "-"
    value = round(value, digits) + 0.0  # no minus before a zero
    return f"{value:+.{digits}f}" if sign and value else f"{value:.{digits}f}"
