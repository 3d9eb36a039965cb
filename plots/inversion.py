"""Figure: how much of clients' text a curious server reads off what they send, behind each pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from plots import style, words
from plots.data import RunData

CAPTION = (
    "Gradient inversion (DAGER) on one step of plain SGD from the run's last model. Bar and first number: "
    "how much of a record's text was read in order (ROUGE-L, mean over the attacked clients). Ring: share "
    "of its distinct tokens that were found, in any order. Second number: how many answers came out once "
    "what was read was completed. Whiskers reach from the luckiest to the unluckiest client. What the "
    "server adds noise to later (client_dp) it has seen before; of a masked round it sees the sum of all."
)
READ, NOTHING = 0.5, 0.05


@style.styled
def draw(run: RunData, variant: str) -> Figure | None:
    """One bar a pipeline; None when nothing was attacked."""
    rows = [row for row in run.audits.get("gradient_inversion", ()) if row["variant"] == variant]
    if not rows:
        return None
    names = list(dict.fromkeys(row["pipeline"] for row in rows))
    height = 0.42 * len(names) + 0.1
    clients = len({(row["seed"], row["client"]) for row in rows})
    many = words.plural(clients, "client")
    subtitle = f"Share of the text recovered (0 to 1), and of answers told; {many} attacked"
    sheet = style.Sheet(finding(rows, names), subtitle, height + 0.95)
    axes = sheet.axes(2.3, 0.3, style.WIDTH - 2.3 - 1.2, height)
    for at, name in enumerate(names):
        text = _values(rows, name, "rouge_l")
        tokens, answers = _values(rows, name, "token_recall"), _values(rows, name, "told")
        colour = "#d55e00" if text.mean() > READ else "#0072b2"
        axes.barh(at, text.mean(), height=0.5, color=colour, zorder=2)
        axes.plot([text.min(), text.max()], [at, at], color=style.INK, linewidth=1, zorder=3)
        axes.plot(
            tokens.mean(), at, "o", markerfacecolor="white", markeredgecolor=style.INK, markersize=8, zorder=4
        )
        told = f"{words.number(float(text.mean()))}, {words.percent(float(answers.mean()))}"
        axes.annotate(
            told, (1.02, at), (8, 0), textcoords="offset points", va="center_baseline", size=9.5,
            annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [_label(rows, name) for name in names])
    axes.set(
        xlim=(0, 1.02), ylim=(len(names) - 0.4, -0.6), xlabel="Text read in order (bar), tokens found (ring)"
    )
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=style.FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return sheet.figure


def _values(rows: list[dict[str, Any]], name: str, key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([float(row[key]) for row in rows if row["pipeline"] == name])


def _label(rows: list[dict[str, Any]], name: str) -> str:
    many = max(int(row["cohort"]) for row in rows if row["pipeline"] == name)
    return f"{name} (sum of {many})" if many > 1 else name


def finding(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Where the text can be read in order, where only words are found, and where nothing is."""
    text = {name: float(_values(rows, name, "rouge_l").mean()) for name in names}
    words_found = {name: float(_values(rows, name, "token_recall").mean()) for name in names}
    most = [name for name in names if text[name] > READ]
    some = [name for name in names if NOTHING < text[name] <= READ]
    told = [name for name in names if text[name] <= NOTHING and words_found[name] > NOTHING]
    blind = [name for name in names if text[name] <= NOTHING and words_found[name] <= NOTHING]
    parts = []
    if most:
        share = words.percent(max(text[name] for name in most))
        parts.append(f"up to {share} of a record under {words.listing(most, 4)}")
    if some:
        share = words.percent(max(text[name] for name in some))
        parts.append(f"up to {share} under {words.listing(some, 4)}")
    if told:
        parts.append(f"only which words occur under {words.listing(told, 4)}")
    if blind:
        parts.append(f"nothing under {words.listing(blind, 4)}")
    return f"The server reads {', '.join(parts[:-1])}{', and ' if len(parts) > 1 else ''}{parts[-1]}"
