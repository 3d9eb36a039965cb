"""Figure 4: what a method costs, as a share of retraining, against how far it ends from it."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from plots import labels, style, words
from plots.data import RunData
from plots.findings import disclaimer, margin, outcome, readable
from plots.parts import Request

CAPTION = (
    "Cost is the number of client training steps the method took, as a share of the steps of retraining up "
    "to the request; distance is the absolute excess at the horizon. Lower left is better; the thin line "
    "joins the branches that no other beats on both. Hollow marks overshot. The star is retraining itself; "
    "branches without any cost stand at the left edge."
)
_COLUMNS = 2


@style.styled
def draw(run: RunData, variant: str) -> Figure | None:
    """|excess| against cost share, one panel per request; None when no method has both."""
    points = {r.request: _points(run, variant, r) for r in run.requests}
    requests = [
        r for r in run.requests if any(p[0] > 0 for b, p in points[r.request].items() if b != "retrain")
    ]
    if not requests:
        return None
    costs = [c for found in points.values() for c, _, _ in found.values() if c > 0]
    tallest = max(distance for found in points.values() for _, distance, _ in found.values())
    columns = min(len(requests), _COLUMNS)
    rows = -(-len(requests) // columns)
    gap, height = 0.4, 3.2
    width = (style.WIDTH - 0.8 - 0.3 - gap * (columns - 1)) / columns
    subtitle = f"Client steps as a share of retraining's (log scale), |excess| at round {run.horizon}"
    sheet = style.Sheet(finding(run, variant), subtitle, rows * (height + 0.95))
    for i, request in enumerate(requests):
        left, top = 0.8 + (i % columns) * (width + gap), 0.3 + (i // columns) * (height + 0.95)
        axes = sheet.axes(left, top, width, height)
        _frame(axes, min(costs), max(*costs, 1.0), tallest)
        _panel(axes, run, variant, request, points[request.request])
        axes.set_xlabel("Cost, share of retraining")
        if i % columns == 0:
            axes.set_ylabel("Distance to retrain (|excess|)")
        else:
            axes.tick_params(labelleft=False)
    return sheet.figure


def finding(run: RunData, variant: str) -> str:
    """The cheapest of the methods that nothing tells from the reference."""
    excuse = disclaimer(run, variant, run.headline)
    if excuse:
        return excuse
    costs = {}
    outcomes = {}
    for branch in run.compared_methods:
        shares = [run.value(variant, branch.name, r, "cost_share") for r in readable(run, variant)]
        found = outcome(run, variant, branch.name, words.inside(branch.title))
        if found.kind != "unknown" and all(np.isfinite(shares)):
            outcomes[branch.name], costs[branch.name] = found, max(shares)
    if not outcomes:
        return "No method has both a cost and a verdict"
    good = [name for name, found in outcomes.items() if found.kind in ("same", "open")]
    if not good:
        return "Every method with a cost differs from the retrained model, whatever it costs"
    name = min(good, key=lambda n: costs[n])
    shown = "is within the margins of" if outcomes[name].kind == "same" else "is not told from"
    text = f"{outcomes[name].title} {shown} the retrained model at {words.percent(costs[name])} of its cost"
    return words.capital(text)


def _points(run: RunData, variant: str, request: Request) -> dict[str, tuple[float, float, float]]:
    """Branch -> (cost share, |excess|, excess), means over seeds."""
    found = {}
    for branch in run.branches:
        excess = run.value(variant, branch.name, request.request, "excess")
        cost = run.value(variant, branch.name, request.request, "cost_share")
        if branch.name == "retrain":
            found[branch.name] = (1.0, 0.0, 0.0)
        elif math.isfinite(excess):
            found[branch.name] = (0.0 if math.isnan(cost) else cost, abs(excess), excess)
    return found


def _frame(axes: Axes, cheapest: float, dearest: float, tallest: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(cheapest / 4, dearest * 5)
    axes.set_ylim(-0.04 * max(tallest, 0.1), 1.12 * max(tallest, 0.1))
    axes.xaxis.set_major_locator(LogLocator(base=10))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=style.FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


def _panel(
    axes: Axes,
    run: RunData,
    variant: str,
    request: Request,
    points: dict[str, tuple[float, float, float]],
) -> None:
    strip = margin(run)
    axes.axhspan(0, strip, color=style.SHADE, zorder=0, linewidth=0)
    grey = not run.quotable(variant, request.request, run.headline)
    front = _front([(c, d) for c, d, _ in points.values() if c > 0])
    axes.step(*zip(*front, strict=True), where="post", color=style.GREY, linewidth=1, zorder=1)
    edge = axes.get_xlim()[0]
    written = []
    for branch in run.branches:
        if branch.name not in points:
            continue
        cost, distance, excess = points[branch.name]
        look = run.looks[branch.name].greyed() if grey else run.looks[branch.name]
        hollow = excess < -strip
        axes.plot(
            cost if cost > 0 else edge, distance, look.marker,
            color=look.colour, markersize=17 if branch.name == "retrain" else 10,
            markerfacecolor="white" if hollow else look.colour, markeredgewidth=1.8 if hollow else 0.8,
            markeredgecolor=look.colour if hollow else "white", zorder=5, clip_on=False,
        )  # fmt: skip
        name = words.short(branch.title, 22) + (", no cost" if cost == 0 else "")
        written.append((cost if cost > 0 else edge, distance, name, look))
    labels.beside_points(axes, written)
    who = "" if request.client is None else f": {request.who}"
    axes.set_title(f"Request {request.request}{who}{' (not to be quoted)' if grey else ''}", pad=6)


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points no other beats on both coordinates, from cheap to dear.

    >>> _front([(0.1, 0.3), (0.2, 0.4), (1.0, 0.0)])
    [(0.1, 0.3), (1.0, 0.0)]
    """
    front: list[tuple[float, float]] = []
    for cost, distance in sorted(points):
        if not front or distance < front[-1][1]:
            front.append((cost, distance))
    return front
