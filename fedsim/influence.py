"""Whose update decided a round: said when one client's outweighs all the others together.

The mean then points within 90 degrees of that client's update, whatever the others sent.

>>> heaviest({"3": 9.0, "5": 1.0, "7": 2.0})
Heaviest(client=3, times=3.0)
>>> heaviest({"3": 9.0, "5": 1.0}) is None
True
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
FEWEST = 3
"""Contributors below which one of them is the longer one anyway."""


@dataclass(frozen=True)
class Heaviest:
    """A client whose update is ``times`` as long as those of all others together, by L2 norm and weight."""

    client: int
    times: float


def heaviest(lengths: Mapping[str, float]) -> Heaviest | None:
    """The client whose update outweighs the others, given each one's L2 norm times weight; None if nobody's
    does, or if there are fewer than three."""
    if len(lengths) < FEWEST:
        return None
    client = max(lengths, key=lambda name: (lengths[name], name))
    others = math.fsum(length for name, length in lengths.items() if name != client)
    if lengths[client] <= others:
        return None
    return Heaviest(client=int(client), times=lengths[client] / others if others else math.inf)


def outweighing_rows(events: Iterable[Mapping[str, Any]]) -> list[Row]:
    """From the log of a run: by client and branch, in how many rounds its update outweighed the others, the
    first of them, and the most times that it was as long (None: the others sent nothing)."""
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
