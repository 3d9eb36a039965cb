"""Figure 1: what the model knows, round by round, about the forgotten, the retained and the unseen.

One wide panel per request, a row of controls below. Black is the retrained reference, its band the
extremes over seeds; the common life is drawn once, in grey, up to where a branch leaves it.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plots import labels, style, words
from plots.data import RunData
from plots.findings import headline
from plots.parts import Branch, Request, Series

CAPTION = (
    "Each line is one branch: the same life lived on with another answer to the request. The black line, "
    "shown from the request on, is the model retrained without the client; a line that meets it knows no "
    "more than a model that never saw the data, a line below it has overshot. Shading marks the rounds in "
    "which methods unlearn, vertical lines the events. The panels below show what forgetting did to others."
)
_LEFT, _LABELS, _TALL, _LOW, _GAP = 0.75, 2.15, 2.25, 1.5, 0.68


@style.styled
def draw(run: RunData, variant: str) -> Figure | None:
    """Headline metric by round in every branch; None when the run measured it on no request."""
    metric = run.headline
    known = run.subjects(variant, metric)
    requests = [r for r in run.requests if r.subject in known]
    if not requests:
        return None
    controls: list[str] = [s for s in ("retain", "holdout") if s in known]
    controls += [s for s in known if ":" not in s and s not in ("retain", "holdout", "model")]
    marks = _marks(run)
    limits = (0.0, float(run.horizon))
    width = style.WIDTH - _LEFT - _LABELS
    strip = 0.16 * (1 + max(labels.rows_above(marks, limits, width)[1], default=-1)) + 0.06
    head = strip + 0.38
    tall = max(_TALL if len(requests) < 4 else 1.6, labels.LINE * len(run.branches))
    low_rows = math.ceil(len(controls) / 3)
    body = head + len(requests) * (tall + _GAP) + low_rows * (_LOW + _GAP) + 0.1
    sheet = style.Sheet(headline(run, variant), _subtitle(run), body)
    ceiling = _ceiling(run, variant, [*(r.subject for r in requests), *controls])
    for i, request in enumerate(requests):
        axes = sheet.axes(_LEFT, head + i * (tall + _GAP), width, tall)
        _frame(axes, run, limits, ceiling, request.round)
        _request_panel(axes, run, variant, request)
    _strip(sheet.axes(_LEFT, strip, width, 0.08), marks, limits)
    top = head + len(requests) * (tall + _GAP)
    across = (style.WIDTH - _LEFT - 0.25 - 2 * 0.5) / 3
    for i, subject in enumerate(controls):
        axes = sheet.axes(_LEFT + (i % 3) * (across + 0.5), top + (i // 3) * (_LOW + _GAP), across, _LOW)
        _frame(axes, run, limits, ceiling)
        _lines(
            axes, run, variant, subject, requests[0].round, grey=not run.trusted(variant, metric), width=1.5
        )
        axes.set_title(_control_title(subject), pad=5)
    for axes in sheet.figure.axes[-min(len(controls), 3) :] if controls else sheet.figure.axes[-1:]:
        axes.set_xlabel("Round")
    return sheet.figure


def _subtitle(run: RunData) -> str:
    seeds = f"mean of {len(run.seeds)} seeds, band: retrain's extremes" if len(run.seeds) > 1 else "one seed"
    return f"{words.axis_name(run.headline)} by federated round, {seeds}; black: retrained without the client"


def _control_title(subject: str) -> str:
    names = {"retain": "Clients who stayed", "holdout": "Never trained on"}
    return names.get(subject, words.short(words.capital(words.subject_name(subject)), 30))


def _marks(run: RunData) -> list[labels.Mark]:
    events = [e for e in run.events if e.kind != "probe" and 0 < e.round <= run.horizon]
    return [(float(e.round), e.label, e.kind == "forget") for e in events]


def _strip(axes: Axes, marks: list[labels.Mark], limits: tuple[float, float]) -> None:
    """The events as ticks on a line over the panels, which share its scale."""
    axes.set(xlim=limits, ylim=(0, 1), yticks=[], xticks=[])
    for x, _, bold in marks:
        axes.plot([x, x], [0, 1], color=style.INK if bold else style.MUTED, linewidth=1.6 if bold else 1)
    axes.spines["left"].set_visible(False)
    labels.above(axes, marks)


def _ceiling(run: RunData, variant: str, subjects: list[str]) -> float:
    """1 for shares; for anything else a little over the largest value."""
    tops = [
        float(np.nanmax(series.values))
        for branch in run.branches
        for subject in subjects
        if (series := run.series(variant, branch.name, subject, run.headline))
    ]
    return 1.0 if max(tops, default=1.0) <= 1.0 else 1.05 * max(tops)


def _frame(axes: Axes, run: RunData, limits: tuple[float, float], ceiling: float, asked: int = -1) -> None:
    axes.set_xlim(*limits)
    axes.set_ylim(-0.02 * ceiling, 1.03 * ceiling)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if ceiling == 1.0:
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.grid(axis="y", color=style.FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for event in run.events:
        if event.kind != "probe" and 0 < event.round <= run.horizon:
            strong = event.kind == "forget" and event.round == asked
            axes.axvline(
                event.round,
                color=style.MUTED if strong else style.GREY,
                linewidth=1.1 if strong else 0.8,
                linestyle="-" if strong else (0, (2, 2)),
                zorder=1,
            )


def _request_panel(axes: Axes, run: RunData, variant: str, request: Request) -> None:
    spans = [(a, b) for br in run.branches for r, a, b in br.unlearning if r == request.request]
    if spans:
        start, end = min(a for a, _ in spans) - 1, max(b for _, b in spans)
        axes.axvspan(start, end, color="#efe9d9", zorder=0, linewidth=0)
        before = end > 0.8 * run.horizon  # no room behind: write it in front
        axes.text(
            start - 0.15 if before else end + 0.15, 0.5, "unlearning",
            transform=axes.get_xaxis_transform(), size=8.5, color=style.MUTED,
            ha="right" if before else "left", va="center", style="italic",
        )  # fmt: skip
    grey = not run.quotable(variant, request.request, run.headline)
    ends = _lines(axes, run, variant, request.subject, request.round, grey=grey, width=2.0)
    labels.line_ends(axes, float(run.horizon), ends)
    note = (
        "" if not grey else " (not informative)" if run.trusted(variant, run.headline) else " (not trusted)"
    )
    what = (
        request.who
        if request.scope == "client"
        else f"{words.plural(request.records, 'record')} of {request.who}"
    )
    axes.set_title(f"Request {request.request}: {what}, asked after round {request.round}{note}", pad=5)
    axes.set_ylabel(words.capital(words.metric_name(run.headline)))


def _lines(
    axes: Axes, run: RunData, variant: str, subject: str, asked: int, *, grey: bool, width: float
) -> list[tuple[float, str, style.Look]]:
    """Draw every branch; (last value, name, look) of each, for labels."""
    common = run.series(variant, "keep", subject, run.headline)
    if common:
        before = common.rounds <= asked
        axes.plot(common.rounds[before], common.values[before], color="#808080", linewidth=width, zorder=4)
    ends = []
    for branch in run.branches:
        series = run.series(variant, branch.name, subject, run.headline)
        if not series:
            continue
        look = run.looks[branch.name].greyed() if grey else run.looks[branch.name]
        thick = width * look.width / 2
        own = _references(series, run) if branch.name == "retrain" else [_own_part(series, common, asked)]
        for shown in own:
            axes.plot(
                series.rounds[shown], series.values[shown], color=look.colour, linestyle=look.dash,
                linewidth=thick, zorder=look.order, solid_capstyle="butt",
            )  # fmt: skip
            if branch.name == "retrain" and len(run.seeds) > 1:
                band = series.rounds[shown], series.low[shown], series.high[shown]
                axes.fill_between(*band, color=look.colour, alpha=0.15, linewidth=0, zorder=2)
        ends.append((series.last, _end_label(branch, series), look))
    return ends


def _references(series: Series, run: RunData) -> list[slice]:
    """The reference in pieces: at each request another life becomes the reference."""
    starts = sorted({request.round for request in run.requests})
    cuts = [int(np.searchsorted(series.rounds, start)) for start in starts] + [len(series.rounds)]
    return [slice(a, b) for a, b in itertools.pairwise(cuts) if b > a]


def _own_part(series: Series, common: Series, asked: int) -> slice:
    """From where a branch leaves the common life, at the latest the request; a step before, to join up."""
    shared = np.isin(series.rounds, common.rounds) & (series.rounds <= asked)
    other = common.values[np.isin(common.rounds, series.rounds[shared])]
    differs = ~np.isclose(series.values[shared], other, rtol=0, atol=1e-9, equal_nan=True)
    start = np.flatnonzero(shared)[np.argmax(differs)] if differs.any() else (series.rounds <= asked).sum()
    return slice(max(int(start) - 1, 0), None)


def _end_label(branch: Branch, series: Series) -> str:
    return f"{words.number(series.last)} {words.short(branch.title, 19)}"
