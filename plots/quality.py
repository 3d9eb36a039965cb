"""Figure 2: forget quality against model utility, one trail per method, the retrained model as a star."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots import labels, style, words
from plots.data import RunData
from plots.findings import disclaimer, readable
from plots.parts import NAN, Branch, Floats, Request

CAPTION = (
    "Forget quality is the p-value of a two-sample Kolmogorov-Smirnov test between the truth ratios of the "
    "branch and of the retrained model: near 1 (top) the test sees no difference, under .05 (dashed line) it "
    "does; few records hide even large differences (the subtitle says which). Of several seeds, the one told "
    "apart most is drawn. Each trail starts at the small dot, when the request was made, and ends at the "
    "large mark, at the end; the star is the retrained model. A high p is not proof of equality: it "
    "depends on the number of records, and text without meaning can score well, so read it with utility."
)
LEVEL = 0.05
_FLOOR = 1e-16


@style.styled
def draw(run: RunData, variant: str) -> Figure | None:
    """log10 p against utility, one panel per request; None when either was not measured."""
    trails = {
        (request.request, branch.name): trail
        for request in run.requests
        for branch in run.branches
        if branch.name != "retrain" and (trail := _trail(run, variant, request, branch))[0].size
    }
    requests = [r for r in run.requests if any(key[0] == r.request for key in trails)]
    if not requests:
        return None
    columns = min(len(requests), 2)
    rows = -(-len(requests) // columns)
    gap, height = 0.65, 3.4
    width = (style.WIDTH - 0.85 - 0.65 - gap * (columns - 1)) / columns
    sheet = style.Sheet(finding(run, variant), _subtitle(run), rows * (height + 0.95))
    everything = [*trails.values(), *((_star(run, variant), np.zeros(1)) for _ in requests)]
    for i, request in enumerate(requests):
        left, top = 0.85 + (i % columns) * (width + gap), 0.3 + (i // columns) * (height + 0.95)
        axes = sheet.axes(left, top, width, height)
        _limits(axes, everything)
        _panel(axes, run, variant, request, {b: t for (r, b), t in trails.items() if r == request.request})
        axes.set_xlabel("Model utility (0 to 1)")
        if i % columns == 0:
            axes.set_ylabel("Forget quality (log10 of KS p)")
    return sheet.figure


def finding(run: RunData, variant: str) -> str:
    """Which methods the test tells from retrain, on any seed and at any request; with what it cannot see."""
    excuse = disclaimer(run, variant, "truth_ratio")
    if excuse:
        return excuse
    same: list[str] = []
    apart: list[str] = []
    for branch in run.compared_methods:
        known = [p for r in readable(run, variant) for p in run.p_values(variant, branch.name, r)]
        if known:
            (same if min(known) > LEVEL else apart).append(words.inside(branch.title))
    if not same and not apart:
        n = _records(run)
        few = f"Too few records ({n} a request) for a p of the KS test to be quoted"
        return few if n else "Forget quality was measured for no method at the horizon"
    if not same:
        return words.capital(f"the KS test tells {words.listing(apart)} from retrain (p ≤ {LEVEL})")
    text = f"the KS test does not tell {words.listing(same)} from retrain"
    return words.capital(f"{text}; it does {words.listing(apart)}" if apart else text)


def _records(run: RunData) -> int:
    """Records in the smallest test; 0 when there was none."""
    return round(
        min(
            (row["forget_quality_n"] for row in run.verdict["rows"] if row.get("forget_quality_n")), default=0
        )
    )


def _subtitle(run: RunData) -> str:
    seen = [row["forget_quality_visible"] for row in run.verdict["rows"] if row.get("forget_quality_visible")]
    blind = f", which see no D below {max(seen):.2f}" if seen else ""
    n = f"; {_records(run)} records a test{blind}" if _records(run) else ""
    return f"From the request to round {run.horizon}, {words.plural(len(run.seeds), 'seed')}{n}"


def _trail(run: RunData, variant: str, request: Request, branch: Branch) -> tuple[Floats, Floats]:
    """(utility, log10 p) at the rounds since the request where both were measured.

    Of several seeds, the one that the test tells apart most at the end: p-values are not averaged.
    """
    trails = []
    for seed in sorted(run.good_seeds(variant, request.request) or run.seeds):
        p = run.series(variant, branch.name, request.subject, "forget_quality_p", seed)
        u = run.series(variant, branch.name, "model", "model_utility", seed)
        utility = dict(zip(u.rounds.tolist(), u.values.tolist(), strict=True))
        points = [
            (utility[at], float(np.log10(max(value, _FLOOR))))
            for at, value in zip(p.rounds.tolist(), p.values.tolist(), strict=True)
            if at >= request.round and np.isfinite(value) and np.isfinite(utility.get(at, NAN))
        ]
        if points:
            trails.append(np.array(points))
    if not trails:
        return np.empty(0), np.empty(0)
    worst = min(trails, key=lambda trail: float(trail[-1, 1]))
    return worst[:, 0], worst[:, 1]


def _star(run: RunData, variant: str) -> Floats:
    return np.array([run.final(variant, "retrain", "model", "model_utility")])


def _limits(axes: Axes, trails: list[tuple[Floats, Floats]]) -> None:
    xs = np.concatenate([x for x, _ in trails])
    ys = np.concatenate([y for _, y in trails])
    low, high = float(np.nanmin(xs)), float(np.nanmax(xs))
    pad = max(0.12 * (high - low), 0.01)
    axes.set_xlim(low - pad, high + 2 * pad)
    depth = min(float(np.nanmin(ys)), np.log10(LEVEL))
    axes.set_ylim(1.1 * depth, -0.08 * depth)


def _panel(
    axes: Axes, run: RunData, variant: str, request: Request, trails: dict[str, tuple[Floats, Floats]]
) -> None:
    axes.grid(color=style.FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    level = float(np.log10(LEVEL))
    axes.axhline(level, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
    low, high = axes.get_xlim()
    axes.annotate(
        f"p = {LEVEL}", (high, level), (4, 0), textcoords="offset points",
        va="center", size=8.5, color=style.MUTED, annotation_clip=False,
    )  # fmt: skip
    avoid = [(x, level) for x in np.linspace(low, high, 60).tolist()]
    grey = not run.quotable(variant, request.request, "truth_ratio")
    points: list[tuple[float, float, str, style.Look]] = []
    for branch in run.branches:
        look = run.looks[branch.name].greyed() if grey else run.looks[branch.name]
        if branch.name == "retrain":
            x, y = _star(run, variant), np.zeros(1)
            size = 17.0
        elif branch.name in trails:
            x, y = trails[branch.name]
            size = 9.0
        else:
            continue
        if not np.isfinite(x[-1]):
            continue
        axes.plot(x, y, color=look.colour, linestyle=look.dash, linewidth=1.6, zorder=look.order, alpha=0.8)
        axes.plot(x[0], y[0], "o", color=look.colour, markersize=4, zorder=look.order)
        axes.plot(
            x[-1], y[-1], look.marker, color=look.colour, markersize=size, zorder=7, markeredgecolor="white",
        )  # fmt: skip
        points.append((float(x[-1]), float(y[-1]), words.short(branch.title, 22), look))
        avoid += _between(x, y)
    labels.beside_points(axes, points, avoid)
    who = "" if request.client is None else f": {request.who}"
    axes.set_title(f"Request {request.request}{who}{' (not to be quoted)' if grey else ''}", pad=6)


def _between(x: Floats, y: Floats) -> list[tuple[float, float]]:
    """Points along a trail, for labels to keep off."""
    steps = np.linspace(0, x.size - 1, 20 * x.size)
    at = np.arange(x.size)
    return list(zip(np.interp(steps, at, x).tolist(), np.interp(steps, at, y).tolist(), strict=True))
