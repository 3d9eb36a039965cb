"""Figure 3: the truth ratios behind forget quality, as empirical distributions at the horizon."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from plots import labels, style, words
from plots.data import RunData
from plots.findings import disclaimer, readable
from plots.parts import Floats, Request

METRIC = "truth_ratio_raw"
SMALLEST = 1e-9
"""Ratios below this are drawn here: the axis is logarithmic."""
CAPTION = (
    "The truth ratio R of a question is the probability of wrong answers over that of the right one, "
    "paraphrased: small when the model knows the answer, about 1 when it cannot tell. A curve shows the "
    "share of the client's questions with a ratio up to R. A branch that forgot lies on the black curve of "
    "the retrained model; left of it the answers are still known, right of it the model avoids them. D is "
    "the largest vertical distance to the black curve."
)


def distance(a: Floats, b: Floats) -> float:
    """Largest distance between two empirical distributions (the KS statistic).

    >>> distance(np.array([1.0, 2.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    0.5
    """
    at = np.union1d(a, b)
    below_a = np.searchsorted(np.sort(a), at, side="right") / a.size
    below_b = np.searchsorted(np.sort(b), at, side="right") / b.size
    return float(np.max(np.abs(below_a - below_b)))


@style.styled
def draw(run: RunData, variant: str) -> Figure | None:
    """ECDFs of R per branch, one panel per request; None when no ratios of retrain were recorded."""
    samples = {
        (r.request, b.name): np.maximum(sample, SMALLEST)
        for r in run.requests
        for b in run.branches
        if (sample := run.sample(variant, b.name, r.subject, METRIC)).size
    }
    requests = [r for r in run.requests if (r.request, "retrain") in samples]
    if not requests:
        return None
    columns = min(len(requests), 2)
    rows = -(-len(requests) // columns)
    gap, height, room = 0.35, max(2.9, 0.17 * len(run.branches) + 0.5), 2.15
    width = (style.WIDTH - 0.75 - columns * room - gap * (columns - 1)) / columns
    sheet = style.Sheet(finding(run, variant), _subtitle(run), rows * (height + 0.95))
    everything = np.concatenate(list(samples.values()))
    for i, request in enumerate(requests):
        left = 0.75 + (i % columns) * (width + room + gap)
        axes = sheet.axes(left, 0.3 + (i // columns) * (height + 0.95), width, height)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        least, most = 0.8 * float(everything.min()), 1.25 * float(everything.max())
        axes.set_xlim(least, most)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 100 * least else (1,)))
        _panel(axes, run, variant, request, {b: s for (r, b), s in samples.items() if r == request.request})
        axes.set_xlabel("Truth ratio R (log scale, 1: cannot tell)")
        if i % columns == 0:
            axes.set_ylabel("Share of questions with ratio ≤ R")
    return sheet.figure


def finding(run: RunData, variant: str) -> str:
    """How far each method's distribution is from retrain's, at its worst request; ties are not ranked."""
    excuse = disclaimer(run, variant, "truth_ratio")
    if excuse:
        return excuse
    far: list[tuple[float, str]] = []
    for branch in run.compared_methods:
        gaps = [
            distance(own, reference)
            for r in run.requests
            if r.request in readable(run, variant)
            and (own := run.sample(variant, branch.name, r.subject, METRIC)).size
            and (reference := run.sample(variant, "retrain", r.subject, METRIC)).size
        ]
        if gaps:
            far.append((max(gaps), words.inside(branch.title)))
    if not far:
        return "Truth ratios of no method can be compared with the retrained model's"
    told = words.listing([f"{title} {words.number(gap)}" for gap, title in far], 4)
    return f"Distance of truth ratios from the retrained model's (D): {told}"


def _subtitle(run: RunData) -> str:
    pooled = f", {len(run.seeds)} seeds pooled" if len(run.seeds) > 1 else ""
    return f"Truth ratio of every question about the forgotten data at the horizon{pooled}"


def _panel(axes: Axes, run: RunData, variant: str, request: Request, samples: dict[str, Floats]) -> None:
    grey = not run.quotable(variant, request.request, "truth_ratio")
    axes.axvline(1, color=style.FAINT, linewidth=1)
    axes.set_ylim(0, 1.02)
    ranked = sorted(samples, key=lambda b: distance(samples[b], samples["retrain"]))
    titles = {b.name: b.title for b in run.branches}
    lines = []
    for name in ranked:
        look = run.looks[name].greyed() if grey else run.looks[name]
        values = np.sort(samples[name])
        x = np.concatenate([[axes.get_xlim()[0]], values, [axes.get_xlim()[1]]])
        y = np.concatenate([[0.0], np.arange(1, values.size + 1) / values.size, [1.0]])
        axes.step(
            x, y, where="post", color=look.colour, linestyle=look.dash,
            linewidth=4 if look.reference else 1.7, zorder=look.order,
        )  # fmt: skip
        far = f"D {words.number(distance(samples[name], samples['retrain']))}  "
        gap = "" if run.is_reference(name) else far
        lines.append((gap + words.short(titles[name], 15), look))
    _key(axes, lines)
    n = samples["retrain"].size
    who = "" if request.client is None else f": {request.who}"
    axes.set_title(f"Request {request.request}{who}, n = {n}{' (not to be quoted)' if grey else ''}", pad=6)


def _key(axes: Axes, lines: list[tuple[str, style.Look]]) -> None:
    """Names right of the panel in the order of their distance, nearest first."""
    height, width = style.height_of(axes), style.width_of(axes)
    for row, (text, look) in enumerate(lines):
        y = 1 - (0.1 + row * (labels.LINE + 0.04)) / height
        xs = 1 + 0.1 / width, 1 + 0.38 / width
        axes.plot(
            xs, (y, y), transform=axes.transAxes, color=look.colour, linestyle=look.dash,
            linewidth=look.width, clip_on=False,
        )  # fmt: skip
        axes.text(
            1 + 0.44 / width, y, text, transform=axes.transAxes, size=9, color=look.ink, va="center_baseline",
        )  # fmt: skip
