"""Figure: what a short training on some forgotten records brings back of the others, in every branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots import labels, style, words
from plots.data import RunData
from plots.findings import disclaimer, margin, readable
from plots.parts import NAN, Floats, Request

CAPTION = (
    "Relearning: from its last model, every branch with one adapter (ensembles are left out) is trained on a "
    "part of a request's records, and asked about the part that was held back. Any model learns something "
    "about the rest from a part, so the black line, the model retrained without the client, is what to "
    "compare with: a line that was near it before and rises above it had hidden what it seemed to have "
    "forgotten. A line that stays near it shows this for these records and this training only. The title "
    "calls back what rose by more than the tolerance to more than it above retrain; its numbers are excesses "
    "over retrain where they are largest, over budgets and requests, as an attacker would choose. The small "
    "panel shows whether the training taught the part it was on. A dotted line is what users see where a "
    "method guards the model; whoever relearns has the bare one."
)
HELD_BACK, RELEARNED = "held back", "relearned"
_LEFT, _WIDE, _SMALL, _TALL, _GAP = 0.75, 4.05, 2.2, 2.3, 0.72
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """One request's values of the headline metric: ``values[branch, view, part]`` is (seeds, budgets).

    ``epochs`` are the budgets, 0 first; NaN where nothing was measured. ``n`` says how many records there are
    in each part, the fewest of any seed.
    """

    request: Request
    seeds: tuple[int, ...]
    epochs: tuple[int, ...]
    values: dict[tuple[str, str, str], Floats]
    n: dict[str, int]

    @classmethod
    def of(cls, run: RunData, request: Request, rows: Sequence[Row]) -> Curves:
        """From the rows of one request; seeds that are not informative are left out, if any is."""
        good = run.good_seeds(rows[0]["variant"], request.request)
        rows = [row for row in rows if not good or row["seed"] in good]
        seeds = tuple(sorted({int(row["seed"]) for row in rows}))
        epochs = tuple(sorted({int(row["epochs"]) for row in rows}))
        values: dict[tuple[str, str, str], Floats] = {}
        for row in rows:
            key = row["branch"], row["view"], row["part"]
            table = values.setdefault(key, np.full((len(seeds), len(epochs)), NAN))
            at = seeds.index(row["seed"]), epochs.index(row["epochs"])
            table[at] = NAN if row["value"] is None else float(row["value"])
        sizes = {
            part: [int(r["n"]) for r in rows if r["part"] == part and r["n"]]
            for part in (HELD_BACK, RELEARNED)
        }
        n = {part: min(found, default=0) for part, found in sizes.items()}
        return cls(request=request, seeds=seeds, epochs=epochs, values=values, n=n)

    def excess(self, branch: str) -> Floats:
        """Over retrain on what was held back, same seed, (seeds, budgets)."""
        nothing = np.full((len(self.seeds), len(self.epochs)), NAN)
        reference = self.values.get(("retrain", "bare", HELD_BACK), nothing)
        found: Floats = self.values.get((branch, "bare", HELD_BACK), nothing) - reference
        return found


@dataclass(frozen=True, kw_only=True)
class Regained:
    """A branch's excess over retrain for one request: before relearning, and after the best of its budgets.

    Both are means over seeds; ``low`` and ``high`` are the extremes of ``after``. ``rose`` is what the branch
    itself gained: an excess may also open because retrain falls.
    """

    before: float
    after: float
    rose: float
    low: float
    high: float

    def told(self, seeds: int) -> str:
        """``+0.21``, with the range of several seeds."""
        low, high = (words.number(value, sign=True) for value in (self.low, self.high))
        return words.number(self.after, sign=True) + (f", {low} to {high}" if seeds > 1 else "")


@style.styled
def draw(run: RunData, variant: str) -> Figure | None:
    """Held-back records by epochs, one row of panels a request; None when nothing was relearned."""
    curves = [found for request in run.requests if (found := _curves(run, variant, request)) is not None]
    if not curves:
        return None
    tall = max(_TALL, labels.LINE * (len(_lines(run, curves[0])) + 1))
    sheet = style.Sheet(
        finding(run, variant, curves), _subtitle(run, curves), 0.3 + len(curves) * (tall + _GAP)
    )
    for at, one in enumerate(curves):
        top = 0.3 + at * (tall + _GAP)
        main = sheet.axes(_LEFT, top, _WIDE, tall)
        small = sheet.axes(style.WIDTH - _SMALL - 0.25, top, _SMALL, tall)
        grey = not run.quotable(variant, one.request.request, run.headline)
        ends = _panel(main, run, one, HELD_BACK, grey=grey)
        labels.line_ends(main, len(one.epochs) - 1.0, ends)
        _panel(small, run, one, RELEARNED, grey=grey)
        note = " (not to be quoted)" if grey else ""
        main.set_title(
            f"Request {one.request.request}, {one.request.who}: {one.n[HELD_BACK]} held back{note}", pad=6
        )
        small.set_title(f"The {one.n[RELEARNED]} relearned", pad=6)
        main.set_ylabel(words.capital(words.metric_name(run.headline)))
    return sheet.figure


def _curves(run: RunData, variant: str, request: Request) -> Curves | None:
    wanted = variant, request.request, run.headline
    rows = [
        row
        for row in run.audits.get("relearning", ())
        if (row["variant"], row["request"], row["metric"]) == wanted
    ]
    return Curves.of(run, request, rows) if rows else None


def _subtitle(run: RunData, curves: Sequence[Curves]) -> str:
    seeds = max(len(one.seeds) for one in curves)
    many = f"mean of {seeds} seeds, bars: their range" if seeds > 1 else "one seed"
    what = f"{words.axis_name(run.headline)} by epochs of relearning"
    return f"{what}; {many}; black: retrained without the client"


def finding(run: RunData, variant: str, curves: Sequence[Curves]) -> str:
    """What comes back in which methods beyond what comes back in the retrained model."""
    excuse = disclaimer(run, variant, run.headline)
    if excuse:
        return excuse
    shown = [one for one in curves if one.request.request in readable(run, variant)]
    if not shown:
        return "No request of which this run can show forgetting was relearned"
    strip = margin(run)
    if not any(_taught(one) > strip for one in shown):
        return (
            "Relearning taught retrain next to nothing of what it was on: too short to tell what was hidden"
        )
    branches = run.compared_methods or tuple(branch for branch in run.branches if branch.name == "leave")
    found = [(words.short(words.inside(b.title), 20), _regained(b.name, shown)) for b in branches]
    if not any(each for _, each in found):
        return "Relearning was measured in no method"
    worst = "worst request; " if len(shown) > 1 else ""
    seeds = max(len(one.seeds) for one in shown)
    many = f"range of {seeds} seeds" if seeds > 1 else "one seed, no interval"
    return words.capital(f"{_sentence(found, seeds, strip)} ({worst}{many})")


def _sentence(found: Sequence[tuple[str, Sequence[Regained]]], seeds: int, strip: float) -> str:
    """What came back where, what was there before, and where neither was; by the methods' names."""
    back, known, kept, quiet = list[tuple[float, str]](), list[str](), list[str](), list[str]()
    for name, each in found:
        opened = [one for one in each if one.before <= strip < one.after]
        hidden = [one for one in opened if one.rose > strip]
        if hidden:
            most = max(hidden, key=lambda one: one.after)
            back.append((-most.after, f"{name} ({most.told(seeds)})"))
        elif opened:
            kept.append(name)
        if any(one.before > strip for one in each):
            known.append(name)
        elif each and not opened:
            quiet.append(name)
    parts = []
    if back:
        names = words.listing([name for _, name in sorted(back)], 2)
        parts.append(f"relearning a part brings the rest back beyond retrain in {names}")
    if known:
        parts.append(f"{words.listing(known, 2)} knew more than retrain before it")
    if kept:
        parts.append(f"{words.listing(kept, 2)} kept more than retrain")
    if quiet:
        parts.append(f"{words.listing(quiet, 2)} never exceeded retrain by {strip:g}")
    return "; ".join(parts)


def _taught(one: Curves) -> float:
    """What the longest training added in retrain on the records that it was on."""
    values = one.values.get(("retrain", "bare", RELEARNED))
    return NAN if values is None else float(_mean(values)[-1] - _mean(values)[0])


def _regained(branch: str, shown: Sequence[Curves]) -> list[Regained]:
    """What came back in a branch, for each request where it was measured before and after."""
    found = []
    for one in shown:
        excess = one.excess(branch)
        means, own = _mean(excess), _mean(one.values.get((branch, "bare", HELD_BACK), excess))
        if np.isfinite(means[0]) and np.isfinite(means[1:]).any():
            best = 1 + int(np.nanargmax(means[1:]))
            low, high = float(np.nanmin(excess[:, best])), float(np.nanmax(excess[:, best]))
            rose, after = float(own[best] - own[0]), float(means[best])
            found.append(Regained(before=float(means[0]), after=after, rose=rose, low=low, high=high))
    return found


def _mean(values: Floats) -> Floats:
    """Mean over seeds, NaN where no seed has a value."""
    known = [column[np.isfinite(column)] for column in values.T]
    return np.array([column.mean() if column.size else NAN for column in known])


def _lines(run: RunData, one: Curves) -> list[tuple[str, str, str, style.Look]]:
    """(branch, view, label, look) of each line; what users see of a guarded model is dotted."""
    found = []
    for branch in run.branches:
        look = run.looks[branch.name]
        guarded = (branch.name, "guarded", HELD_BACK) in one.values
        if (branch.name, "bare", HELD_BACK) in one.values:
            name = words.short(branch.title, 16 if guarded else 22)
            found.append((branch.name, "bare", f"{name}, bare" if guarded else name, look))
        if guarded:
            name = f"{words.short(branch.title, 16)}, guarded"
            found.append((branch.name, "guarded", name, replace(look, dash=(0, (1, 1.5)))))
    return found


def _panel(
    axes: Axes, run: RunData, one: Curves, part: str, *, grey: bool
) -> list[tuple[float, str, style.Look]]:
    """Draw one part of a request's records; (last value, name, look) of each line, for labels."""
    places = np.arange(len(one.epochs), dtype=np.float64)
    ends, tops = [], [1.0]
    lines = _lines(run, one)
    for at, (branch, view, name, look) in enumerate(lines):
        look = look.greyed() if grey else look
        values = one.values[branch, view, part]
        means = _mean(values)
        if not np.isfinite(means).any():
            continue
        axes.plot(
            places, means, color=look.colour, linestyle=look.dash, linewidth=look.width, marker=look.marker,
            markersize=9 if look.reference else 5, zorder=look.order,
        )  # fmt: skip
        if len(one.seeds) > 1:
            low, high = np.fmin.reduce(values), np.fmax.reduce(values)
            aside = places + 0.03 * len(places) * ((at + 0.5) / len(lines) - 0.5)
            axes.vlines(aside, low, high, color=look.colour, linewidth=1, zorder=look.order)
        last = float(means[np.isfinite(means)][-1])
        ends.append((last, f"{words.number(last)} {name}", look))
        tops.append(float(np.nanmax(values)))
    top = max(tops)
    axes.set_xlim(-0.15, len(one.epochs) - 0.85)
    axes.set_ylim(-0.02 * top, 1.04 * top)
    axes.set_xticks(places, [str(epochs) for epochs in one.epochs])
    axes.set_xlabel("Epochs of relearning")
    axes.grid(axis="y", color=style.FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return ends
