"""Figure across variants: how one swept number changes what a run shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots import labels, style, words
from plots.data import RunData
from plots.parts import NAN

CAPTION = (
    "One point a variant, means over seeds, at the horizon. Left: how well each branch knows the forgotten "
    "client's facts, worst request; what lies between keep and retrain is what there was to forget. Middle:"
    " what the model is still good for. Right: epsilon claimed in the audits' own games (of fewer rounds "
    "than the life under masks), and what the canaries could prove of it."
)
NONE = "none"
UTILITY = ("model", "model_utility")


@style.styled
def draw(run: RunData) -> Figure | None:
    """None unless the variants differ by exactly one number."""
    swept = values(run)
    if swept is None:
        return None
    key, points = swept
    audited = bool(run.audits.get("canaries"))
    name = key.split(".")[-1].replace("_", " ")
    sheet = style.Sheet(finding(run, name, points), _subtitle(run, name), 3.9)
    width = 2.25 if audited else 3.5
    places = [0.65 + i * (width + 0.78) for i in range(3 if audited else 2)]
    at = np.arange(len(points))
    kept = _kept(run)
    shown = [b for b in run.branches if b.name != "leave"]
    left, middle = (sheet.axes(x, 0.35, width, 2.9) for x in places[:2])
    ends: list[tuple[float, str, style.Look]] = []
    for branch in shown:
        look = run.looks[branch.name]
        known = [_worst(run, variant, branch.name) for variant, _ in points]
        useful = [run.final(variant, branch.name, *kept) for variant, _ in points]
        line: dict[str, Any] = {
            "color": look.colour,
            "linestyle": look.dash,
            "marker": look.marker,
            "zorder": look.order,
        }
        left.plot(at, known, markersize=5, **line)
        middle.plot(at, useful, markersize=5, **line)
        ends.append((useful[-1], branch.title, look))
    left.set(ylim=(-0.03, 1.03), ylabel=words.axis_name(run.headline))
    left.set_title("Knowledge of the forgotten", pad=6)
    middle.set_title(words.capital(_title(kept)), pad=6)
    if kept != UTILITY:
        middle.set_ylim(-0.03, 1.03)
    for axes in (left, middle):
        _axis(axes, name, points)
    labels.line_ends(middle, float(at[-1]), ends)
    if audited:
        _claims(sheet.axes(places[2] + 0.75, 0.35, width - 0.35, 2.9), run, name, points)
    return sheet.figure


def _kept(run: RunData) -> tuple[str, str]:
    """(subject, metric) that says what is left of the model's use."""
    measured = any(math.isfinite(run.final(v, b.name, *UTILITY)) for v in run.variants for b in run.branches)
    return UTILITY if measured else ("retain", run.headline)


def _title(kept: tuple[str, str]) -> str:
    return "model utility" if kept == UTILITY else "knowledge of those who stayed"


def _claims(axes: Axes, run: RunData, name: str, points: Sequence[tuple[str, float]]) -> None:
    at = np.arange(len(points))
    claimed, seen = [], []
    for variant, _ in points:
        rows = [r for r in run.audits["canaries"] if r["variant"] == variant and r["game"] != "long record"]
        claimed.append(max((float(r["claimed_epsilon"]) for r in rows), default=NAN))
        telling = [r for r in rows if float(r["certifiable_epsilon"]) > 0]
        seen.append(max((float(r["audited_epsilon"]) for r in telling), default=NAN))
    axes.plot(at, claimed, color=style.INK, marker="_", markersize=11, linewidth=1.2, label="claimed")
    axes.plot(at, seen, color="#0072b2", marker="o", markersize=6, linewidth=1.2, label="audited")
    axes.set_yscale("symlog", linthresh=1.0)
    axes.yaxis.set_major_formatter(lambda value, _: _tick(value) if value else "0")
    axes.set(ylabel="ε", ylim=(0, None))
    axes.set_title("Claimed and audited ε", pad=6)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    _axis(axes, name, points)


def _axis(axes: Axes, name: str, points: Sequence[tuple[str, float]]) -> None:
    ticks = [_tick(value) for _, value in points]
    axes.set_xticks(range(len(points)), ticks)
    axes.set(xlabel=words.capital(name), xlim=(-0.25, len(points) - 0.75))
    axes.grid(axis="y", color=style.FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _tick(value: float) -> str:
    """``10``, ``10⁵``, ``none``."""
    if math.isinf(value):
        return NONE
    power = math.log10(value) if value > 0 else 0.0
    return f"10{words.raised(round(power))}" if power > 3 and power == round(power) else f"{value:g}"


def _subtitle(run: RunData, name: str) -> str:
    return f"At round {run.horizon}, {words.plural(len(run.seeds), 'seed')}; by {name}, from strict to loose"


def values(run: RunData) -> tuple[str, list[tuple[str, float]]] | None:
    """(dotted key, [(variant, value)]) in order, if one number is swept; null counts as infinite."""
    keys = {key for variant in run.life["variants"] for key in variant.get("overrides") or {}}
    if len(keys) != 1 or len(run.variants) < 2:
        return None
    (key,) = keys
    points = []
    for variant in run.life["variants"]:
        value: Any = variant["overrides"].get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
            return None
        points.append((str(variant["name"]), math.inf if value is None else float(value)))
    return key, sorted(points, key=lambda point: point[1])


def _worst(run: RunData, variant: str, branch: str) -> float:
    found = [run.final(variant, branch, f"forget:{r.request}", run.headline) for r in run.requests]
    known = [value for value in found if math.isfinite(value)]
    return max(known, default=NAN)


def finding(run: RunData, name: str, points: Sequence[tuple[str, float]]) -> str:
    """How much there was to forget at the strictest and the loosest value."""
    gaps = [_worst(run, v, "keep") - _worst(run, v, "retrain") for v, _ in points]
    known = [(value, gap) for (_, value), gap in zip(points, gaps, strict=True) if math.isfinite(gap)]
    if not known:
        return f"What {name} changes about forgetting was not measured"
    low, high = known[0], known[-1]
    said = [_tick(value) for value, _ in (low, high)]
    first, last = (words.number(gap) for _, gap in (low, high))
    if low[1] <= run.tolerance:
        return f"At {name} {said[0]} there is nothing to forget ({first}); at {said[1]} there is {last}"
    return f"What there is to forget grows from {first} at {name} {said[0]} to {last} at {said[1]}"
