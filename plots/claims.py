"""Figure: what canaries could prove about each privacy claim, next to what is claimed."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from plots import style, words
from plots.data import RunData

CAPTION = (
    "Each claim of the ledger was played against canaries with noise of the game's own. Bar: epsilon "
    "claimed. Dot: the largest epsilon that the guesses refute with the stated confidence; right of the "
    "bar's end, the claim is broken. Tick: what guesses without a mistake could have shown; where it lies "
    "left of the bar's end, not to find a breach says nothing. Under the long record's name: how far it "
    "moves the clipped sum, which a loss that ties records together lifts above one clip norm."
)
GOOD, BAD = "#0072b2", "#d55e00"


@style.styled
def draw(run: RunData, variant: str) -> Figure | None:
    """One row a game, over all seeds; None when nothing was audited."""
    rows = [row for row in run.audits.get("canaries", ()) if row["variant"] == variant]
    if not rows:
        return None
    height = 0.52 * len(rows) + 0.1
    confidence = words.percent(float(rows[0]["confidence"]))
    sheet = style.Sheet(finding(rows), f"ε (no unit); audited with {confidence} confidence", height + 1.0)
    axes = sheet.axes(2.6, 0.35, style.WIDTH - 2.6 - 1.5, height)
    top = 1.15 * max(max(_finite(r["claimed_epsilon"]), r["audited_epsilon"]) for r in rows)
    for at, row in enumerate(rows):
        claimed, audited = _finite(row["claimed_epsilon"]), float(row["audited_epsilon"])
        colour = BAD if row["broken"] else GOOD
        axes.barh(at, min(claimed, top), height=0.46, color=style.FAINT, zorder=1)
        axes.plot([min(claimed, top)] * 2, [at - 0.23, at + 0.23], color=style.INK, linewidth=2, zorder=2)
        if float(row["certifiable_epsilon"]) <= top:
            axes.plot(float(row["certifiable_epsilon"]), at, "|", color=style.MUTED, markersize=13, zorder=2)
        axes.plot(audited, at, "o", color=colour, markersize=9, zorder=3)
        most = words.number(float(row["certifiable_epsilon"]), 1)
        text = f"{words.number(audited)} of {words.number(claimed)}; at best {most}"
        axes.annotate(
            text, (max(claimed, audited), at), (9, 0), textcoords="offset points", va="center", size=9,
            color=style.INK, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [_name(row, len(run.seeds) > 1) for row in rows])
    axes.set(xlim=(0, top), ylim=(len(rows) - 0.45, -0.55), xlabel="ε")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return sheet.figure


def _name(row: dict[str, Any], several: bool) -> str:
    seed = f", seed {row['seed']}" if several else ""
    below = f"{row['canaries']:,} in play"
    if row.get("sensitivity") is not None:
        below = f"moves the sum by {words.number(float(row['sensitivity']))} clip norms"
    return f"{row['stage']}: {row['game']}{seed}\n{below}"


def _finite(value: float) -> float:
    return float(value) if math.isfinite(float(value)) else 50.0


def finding(rows: list[dict[str, Any]]) -> str:
    """Which claims fell, or how much of the standing ones could be seen."""
    broken = list(dict.fromkeys(row["stage"] for row in rows if row["broken"]))
    if broken:
        return f"The claim of {words.listing(broken)} is broken: more can be guessed than its ε allows"
    blind = [row for row in rows if float(row["certifiable_epsilon"]) < _finite(row["claimed_epsilon"])]
    if len(blind) == len(rows):
        return "No claim was broken, but none of these games had enough canaries to break one"
    most = max(rows, key=lambda row: float(row["audited_epsilon"]) / _finite(row["claimed_epsilon"]))
    seen, said = words.number(float(most["audited_epsilon"])), words.number(_finite(most["claimed_epsilon"]))
    which = words.listing(list(dict.fromkeys(row["stage"] for row in rows)))
    told = f"No claim was broken ({which}): at most ε = {seen} shows of the {said} claimed"
    return f"{told}; {len(blind)} of {len(rows)} games could not have shown more" if blind else told
