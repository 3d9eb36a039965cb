"""Whose privacy budget was spent, and when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedsim.evidence.promises import Row


def exhausted_rows(events: Iterable[Mapping[str, Any]]) -> list[Row]:
    """From the log of a run: the first round that each client sat out because its budget was spent."""
    first: dict[tuple[str, int, str, int], int] = {}
    names: dict[tuple[str, int], str] = {}
    for event in events:
        if event["kind"] == "budget_spent":
            names[event["variant"], event["client"]] = event["name"]
            key = (event["variant"], event["seed"], event["branch"], event["client"])
            first[key] = min(first.get(key, event["round"]), event["round"])
    return [
        {
            "variant": variant,
            "seed": seed,
            "branch": branch,
            "client": client,
            "name": names[variant, client],
            "round": round_,
        }
        for (variant, seed, branch, client), round_ in sorted(first.items())
    ]


def exhausted_sentences(rows: Sequence[Row]) -> list[str]:
    """A line for each branch in which clients ran out of budget."""
    by_branch: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_branch.setdefault((row["variant"], row["branch"]), []).append(row)
    told = []
    for (variant, branch), found in by_branch.items():
        clients = sorted({row["name"] for row in found})
        who = f"client {clients[0]}" if len(clients) == 1 else f"{len(clients)} clients"
        since = min(row["round"] for row in found)
        told.append(
            f"{variant}, {branch}: {who} had spent the budget, the first in round {since}, and sat out."
        )
    return told
