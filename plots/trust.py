"""Figure 7: which metrics of this run can be believed: how well each tells keep from retrain."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from plots import style, words
from plots.data import RunData

CAPTION = (
    "Each metric is asked to tell the records of a model that knows the client (keep) from those of one that "
    "never met it (retrain); the area under the ROC curve is the share of pairs it gets right. 1 is perfect, "
    ".5 a coin. Below .8 (grey) a metric says little on this run and is not quoted."
)
LEVEL = 0.8


@style.styled
def draw(run: RunData, variant: str) -> Figure | None:
    """Dot plot of AUC per metric, best first; None when no metric was checked."""
    found = [(auc, good, name) for name, (auc, good) in run.trust(variant).items() if math.isfinite(auc)]
    if not found:
        return None
    found.sort(key=lambda row: (-row[0], row[2]))
    height = 0.3 * len(found) + 0.1
    subtitle = "Area under the ROC curve of telling keep from retrain, per metric"
    sheet = style.Sheet(finding(run, variant), subtitle, height + 0.95)
    axes = sheet.axes(2.3, 0.28, style.WIDTH - 2.3 - 0.6, height)
    floor = min(0.45, min(auc for auc, _, _ in found) - 0.03)
    for row, (auc, good, _) in enumerate(found):
        colour = "#0072b2" if good else style.GREY
        axes.plot([0.5, auc], [row, row], color=style.FAINT, linewidth=1.5, zorder=1)
        axes.plot(auc, row, "o", color=colour, markersize=9, zorder=3)
        axes.annotate(
            words.number(auc), (auc, row), (9, 0), textcoords="offset points",
            va="center_baseline", size=9.5, color=style.INK if good else style.MUTED,
        )  # fmt: skip
    for at, text in ((0.5, "chance"), (LEVEL, "trusted from here")):
        axes.axvline(at, color=style.MUTED, linewidth=1, linestyle="-" if at == LEVEL else (0, (2, 2)))
        axes.text(at, -0.75, text, size=9, color=style.MUTED, ha="center", va="bottom")
    names = [words.metric_name(name) + (" (headline)" if name == run.headline else "") for *_, name in found]
    axes.set_yticks(range(len(found)), [words.short(name, 30) for name in names])
    axes.set(xlim=(floor, 1.05), ylim=(len(found) - 0.4, -0.6), xlabel="AUC, keep against retrain")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    for tick, (_, good, name) in zip(axes.get_yticklabels(), found, strict=True):
        tick.set_color(style.INK if good else style.GREY)
        tick.set_fontweight("bold" if name == run.headline else "normal")
    return sheet.figure


def finding(run: RunData, variant: str) -> str:
    """How many metrics pass, and whether the headline metric is among them."""
    trust = run.trust(variant)
    good = [name for name, (_, trusted) in trust.items() if trusted]
    if not good:
        return "No metric tells keep from retrain on this run: nothing here can be quoted"
    text = f"{len(good)} of {len(trust)} metrics tell keep from retrain on this run"
    if len(good) == len(trust):
        text = f"all {len(trust)} metrics tell keep from retrain on this run"
    if run.headline in trust and run.headline not in good:
        return words.capital(f"{text}; the headline metric, {words.metric_name(run.headline)}, does not")
    return words.capital(text)
