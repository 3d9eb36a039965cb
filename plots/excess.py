"""Figure 8: how far each branch ends from the retrained reference, seed by seed."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from plots import style, words
from plots.data import RunData
from plots.findings import disclaimer, margin, outcome, readable
from plots.parts import Branch, Request

CAPTION = (
    "Excess = the branch's headline metric minus the retrained model's, same seed, at the horizon. Zero is "
    "the target: right of it the model still knows more, left of it the method overshot. Small marks are "
    "seeds, the large one their mean; with three seeds or more the bar is a 95 % t interval. Inside the "
    "shaded strip differences are too small to count."
)
_ROW = 0.32


@style.styled
def draw(run: RunData, variant: str) -> Figure | None:
    """Dot plot of excess at the horizon, one panel per request; None without verdict rows."""
    branches = [b for b in run.branches if not run.is_reference(b.name) and _has_values(run, variant, b)]
    if not branches:
        return None
    branches.sort(key=lambda b: -_worst(run, variant, b))
    columns = min(len(run.requests), 3)
    rows = math.ceil(len(run.requests) / columns)
    left, gap = 2.1, 0.35
    width = (style.WIDTH - left - 0.35 - gap * (columns - 1)) / columns
    height = _ROW * len(branches) + 0.15
    sheet = style.Sheet(finding(run, variant), _subtitle(run), rows * (height + 0.95) + 0.05)
    reach = _reach(run, variant, branches)
    for i, request in enumerate(run.requests):
        column, row = i % columns, i // columns
        axes = sheet.axes(left + column * (width + gap), 0.3 + row * (height + 0.95), width, height)
        _panel(axes, run, variant, request, branches)
        axes.set_xlim(*reach)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_yticks(range(len(branches)), [words.short(b.title, 25) for b in branches])
        axes.tick_params(axis="y", length=0, labelleft=column == 0, labelcolor=style.INK)
        axes.set_xlabel("← overshot   Excess   still known →")
    return sheet.figure


def finding(run: RunData, variant: str) -> str:
    """What each method's excess is at its worst request; ties are not ranked."""
    excuse = disclaimer(run, variant, run.headline)
    if excuse:
        return excuse
    branches = run.compared_methods or tuple(b for b in run.branches if b.name == "leave")
    found = [outcome(run, variant, b.name, words.inside(b.title)) for b in branches]
    found = [o for o in found if np.isfinite(o.excess)]
    if not found:
        return "No excess over the retrained reference was measured"
    within = [o.title for o in found if abs(o.excess) <= margin(run)]
    outside = [f"{o.title} {words.number(o.excess, sign=True)}" for o in found if o.title not in within]
    clauses = [f"{words.listing(outside)} from the retrained model"] if outside else []
    if within:
        clauses.append(f"{words.listing(within)} within ±{run.tolerance:g} of the retrained model")
    worst = ", at the worst request" if len(readable(run, variant)) > 1 else ""
    return words.capital(f"{words.metric_name(run.headline)}: {'; '.join(clauses)}{worst}")


def _subtitle(run: RunData) -> str:
    strip = f"shaded: ±{run.tolerance}"
    return f"{words.axis_name(run.headline)} minus the retrained model's, at round {run.horizon}; {strip}"


def _has_values(run: RunData, variant: str, branch: Branch) -> bool:
    return any(run.values(variant, branch.name, r.request, "excess") for r in run.requests)


def _worst(run: RunData, variant: str, branch: Branch) -> float:
    """Largest |excess| over requests; keep and leave sort to the top."""
    found = [run.value(variant, branch.name, r.request, "excess") for r in run.requests]
    size = max((abs(v) for v in found if np.isfinite(v)), default=0.0)
    return size + {"keep": -20, "leave": -10}.get(branch.name, 0)


def _reach(run: RunData, variant: str, branches: list[Branch]) -> tuple[float, float]:
    """Limits that hold every seed, at least three margins either side."""
    pairs = [(b.name, r.request) for b in branches for r in run.requests]
    found = [v for name, r in pairs for v in run.values(variant, name, r, "excess")]
    return 1.12 * min([*found, -3 * run.tolerance]), 1.08 * max([*found, 3 * run.tolerance])


def _panel(axes: Axes, run: RunData, variant: str, request: Request, branches: list[Branch]) -> None:
    strip = margin(run)
    axes.axvspan(-strip, strip, color=style.SHADE, zorder=0, linewidth=0)
    axes.axvline(0, color="black", linewidth=1.6, zorder=1)
    grey = not run.quotable(variant, request.request, run.headline)
    for row, branch in enumerate(branches):
        found = run.values(variant, branch.name, request.request, "excess")
        if not found:
            continue
        look = run.looks[branch.name].greyed() if grey else run.looks[branch.name]
        mean = float(np.mean(found))
        axes.plot([0, mean], [row, row], color=style.FAINT, linewidth=1, zorder=1)
        if len(found) > 2:
            half = float(stats.t.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / math.sqrt(len(found)))
            axes.plot([mean - half, mean + half], [row, row], color=look.colour, linewidth=2, zorder=2)
        if len(found) > 1:
            axes.plot(found, [row + 0.3] * len(found), "|", color=look.ink, markersize=5, zorder=4)
        axes.plot(mean, row, look.marker, color=look.colour, markersize=9, markeredgecolor="white", zorder=3)
    axes.set_ylim(len(branches) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    who = "" if request.client is None or grey else f": {request.who}"
    axes.set_title(f"Request {request.request}{who}{' (not to be quoted)' if grey else ''}", pad=6)
