"""Figure 6: privacy spent, by round: the largest epsilon of any client, and every client's own."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plots import labels, style, words
from plots.data import RunData
from plots.parts import NAN, Series

CAPTION = (
    "Epsilon bounds what the released updates can give away about one training example of a client, at the "
    "delta of the scenario; it only grows. Left: every client in one branch (black: those who asked to be "
    "forgotten). Right: the most exposed client in each branch. Unlearning spends budget too. It protects "
    "examples, not whole clients, whose epsilon is far larger."
)
CLIENT_CAPTION = (
    "Epsilon bounds what was released can give away about all of one client's data together, at the delta "
    "of the scenario; the stage says what that is compared with (the client absent, sending nothing, or "
    "with other data). Noise on a sum is charged to all who could have been drawn for it, where who was "
    "drawn is not known. Left: every client in one branch (black: those who asked to be forgotten). Right: "
    "the most exposed client in each branch."
)
METRIC, CLIENT_METRIC = "epsilon", "client_epsilon"
UNITS = {METRIC: "training example", CLIENT_METRIC: "client"}


@style.styled
def draw(run: RunData, variant: str) -> Figure | None:
    """Epsilon per example by round; None when the run spent no such budget."""
    return _draw(run, variant, METRIC)


@style.styled
def draw_clients(run: RunData, variant: str) -> Figure | None:
    """Epsilon per client by round; None when the run spent no such budget."""
    return _draw(run, variant, CLIENT_METRIC)


def _draw(run: RunData, variant: str, metric: str) -> Figure | None:
    subjects = run.subjects(variant, metric, "client:")
    branches = [b for b in run.branches if largest(run, variant, b.name, metric)]
    if not subjects or not branches:
        return None
    subtitle = f"ε per {UNITS[metric]} (no unit), {words.plural(len(run.seeds), 'seed')}"
    sheet = style.Sheet(finding(run, variant, metric), subtitle, 4.0)
    shown = next((b for b in branches if b.name in {m.name for m in run.methods}), branches[0])
    top = 1.08 * max(float(np.nanmax(largest(run, variant, b.name, metric).values)) for b in branches)
    left = sheet.axes(0.75, 0.3, 3.2, 3.1)
    right = sheet.axes(5.2, 0.3, 2.85, 3.1)
    for axes in (left, right):
        axes.set(xlim=(0, run.horizon), ylim=(0, top), xlabel="Round")
        axes.grid(axis="y", color=style.FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        for request in run.requests:
            axes.axvline(request.round, color=style.MUTED, linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel(f"ε spent (per {UNITS[metric].split()[-1]})")
    _clients(left, run, variant, shown.name, subjects, metric)
    left.set_title(f"Every client, branch {words.short(shown.title, 20)}", pad=6)
    ends = []
    for branch in branches:
        look, series = run.looks[branch.name], largest(run, variant, branch.name, metric)
        right.plot(series.rounds, series.values, color=look.colour, linestyle=look.dash, zorder=look.order)
        ends.append((series.last, branch.title, look))
    labels.line_ends(right, float(run.horizon), _together(ends))
    right.set_title("Most exposed client, by branch", pad=6)
    return sheet.figure


def _together(ends: list[tuple[float, str, style.Look]]) -> list[tuple[float, str, style.Look]]:
    """Labels with their value; more than two branches at one value share one label."""
    groups: dict[str, list[tuple[float, str, style.Look]]] = {}
    for end in ends:
        groups.setdefault(words.number(end[0], 1), []).append(end)
    found = []
    for text, group in groups.items():
        if len(group) > 2:
            found.append((group[0][0], f"{text} ({len(group)} branches)", style.Look(colour=style.INK)))
        else:
            found += [(value, f"{text} {words.short(name, 17)}", look) for value, name, look in group]
    return found


def largest(run: RunData, variant: str, branch: str, metric: str = METRIC) -> Series:
    """Largest epsilon over clients and seeds, by round, carried forward; empty when there is none."""
    found = [
        s
        for subject in run.subjects(variant, metric, "client:")
        if (s := run.series(variant, branch, subject, metric))
    ]
    rounds = np.array(sorted({float(r) for s in found for r in s.rounds}))
    tops = np.array([max(_at(s, r) for s in found) for r in rounds])
    return Series(rounds, tops, tops, tops)


def _at(series: Series, at: float) -> float:
    """Largest value up to a round; zero before the first."""
    values = series.high[(series.rounds <= at) & np.isfinite(series.high)]
    return float(values.max()) if values.size else 0.0


def finding(run: RunData, variant: str, metric: str = METRIC) -> str:
    """What the most exposed client has spent, and whether that still bounds anything."""
    tops = {b.name: largest(run, variant, b.name, metric).last for b in run.branches}
    value = max((v for v in tops.values() if np.isfinite(v)), default=NAN)
    text = f"the most exposed client has spent ε = {words.number(value, 1)} by round {run.horizon}"
    if value > run.meaningless_above:
        return words.capital(f"{text}: meaningless, practically no guarantee")
    base = tops.get("leave", tops.get("keep", NAN))
    spent = max((tops[b.name] for b in run.methods if np.isfinite(tops[b.name])), default=NAN)
    if np.isfinite(base) and spent > base + 0.05:
        return words.capital(f"{text}; unlearning costs up to {words.number(spent - base, 1)} of it")
    return words.capital(text)


def _clients(
    axes: Axes, run: RunData, variant: str, branch: str, subjects: tuple[str, ...], metric: str
) -> None:
    gone = {f"client:{r.client}" for r in run.requests}
    ends = []
    for subject in subjects:
        series = run.series(variant, branch, subject, metric)
        if not series:
            continue
        marked = subject in gone
        axes.plot(
            series.rounds, series.values, color="black" if marked else style.GREY,
            linewidth=2 if marked else 0.9, zorder=4 if marked else 2,
        )  # fmt: skip
        if marked:
            known = np.isfinite(series.values)
            ends.append(
                (float(series.rounds[known][-1]), series.last, run.client(int(subject.split(":")[1])))
            )
    inch = (axes.get_ylim()[1] - axes.get_ylim()[0]) / style.height_of(axes)
    places = labels.spread([y for _, y, _ in ends], labels.LINE * inch, 0, axes.get_ylim()[1])
    for (x, _, name), place in zip(ends, places, strict=True):
        axes.annotate(
            name, (x, place), (4, 0), textcoords="offset points", size=9, weight="bold",
            va="center", zorder=5, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
        )  # fmt: skip
