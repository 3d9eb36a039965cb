"""Rounds that one client's update decided, from the run's log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def outweighing_rows(events: Iterable[Mapping[str, Any]]) -> list[Row]:
    """By client and branch, the rounds in which its update outweighed the others, from a run's log.

    Each row has their number, the first of them, and the most times that it was as long (None: the others
    sent nothing).
    """
    found: dict[tuple[str, int, str, int], dict[int, float]] = {}
    names: dict[tuple[str, int], str] = {}
    for event in events:
        if event["kind"] == "update_outweighs":
            key = (event["variant"], event["seed"], event["branch"], event["client"])
            names[event["variant"], event["client"]] = event["name"]
            times = math.inf if event["times"] is None else float(event["times"])
            found.setdefault(key, {})[event["round"]] = times
    return [
        {
            "variant": variant,
            "seed": seed,
            "branch": branch,
            "client": client,
            "name": names[variant, client],
            "rounds": len(rounds),
            "first": min(rounds),
            "times": most if math.isfinite(most := max(rounds.values())) else None,
        }
        for (variant, seed, branch, client), rounds in sorted(found.items())
    ]


def outweighing_sentences(rows: Sequence[Row]) -> list[str]:
    """A line for each variant: whose update outweighed all others', where it did so most."""
    by_variant: dict[str, list[Row]] = {}
    for row in rows:
        by_variant.setdefault(row["variant"], []).append(row)
    told = []
    for variant, found in by_variant.items():
        worst = max(found, key=lambda row: math.inf if row["times"] is None else row["times"])
        as_long = "while the others sent nothing"
        if worst["times"] is not None:
            as_long = f"up to {worst['times']:.3g} times as long as theirs together"
        count = worst["rounds"]
        rest = len({row["client"] for row in found} - {worst["client"]})
        others = f"; {rest} other client{'s' if rest > 1 else ''} did so, too" if rest else ""
        of_variant = "" if variant == "base" else f"{variant}, "
        told.append(
            f"{of_variant}{worst['branch']}: client {worst['name']}'s update outweighed all others' in "
            f"{count} round{'s' if count > 1 else ''}, first in round {worst['first']}, {as_long}{others}. "
            "Clip updates, or set federation.max_update_norm."
        )
    return told
