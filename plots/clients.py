"""Figure 5: what forgetting one client does to every other: clients by branches, against retrain."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from plots import style, words
from plots.data import RunData
from plots.findings import disclaimer
from plots.parts import Branch, Floats

CAPTION = (
    "Each cell is one client in one branch: the headline metric on that client's facts minus the retrained "
    "model's, at the horizon. White is no difference, and colours are pale where the run may not be quoted. "
    "Framed columns are the clients who asked to be forgotten: red there means still known. In all other "
    "columns blue is collateral damage."
)
_ROW = 0.36


@style.styled
def draw(run: RunData, variant: str) -> Figure | None:
    """Heat map of differences; None without requests, or clients measured in retrain and another branch."""
    clients = [int(s.split(":")[1]) for s in run.subjects(variant, run.headline, "client:")]
    branches = [b for b in run.branches if b.name != "retrain"]
    values = differences(run, variant, branches, clients)
    kept = [i for i, row in enumerate(values) if np.isfinite(row).any()]
    if not kept or not run.requests:
        return None
    branches, values = [branches[i] for i in kept], values[kept]
    reach = _reach(run, values, clients)
    height = _ROW * len(branches)
    subtitle = (
        f"{words.axis_name(run.headline)} on each client's facts minus the retrained model's; ▼ forgotten"
    )
    sheet = style.Sheet(finding(run, variant), subtitle, height + 1.05)
    left, width = 2.1, style.WIDTH - 2.1 - 1.15
    axes = sheet.axes(left, 0.38, width, height)
    grey = not run.trusted(variant, run.headline)
    image = axes.imshow(
        np.ma.masked_invalid(values), aspect="auto", norm=Normalize(-reach, reach),
        cmap=style.pale(style.DIVERGING) if grey else style.DIVERGING, interpolation="nearest",
    )  # fmt: skip
    _dress(axes, run, branches, clients)
    bar = sheet.axes(left + width + 0.22, 0.38, 0.16, height)
    sheet.figure.colorbar(image, cax=bar, extend="both")
    _numbers(axes, run, values, clients, np.inf if grey else 0.6 * reach)
    for y, text, side in ((1.1, "more", "bottom"), (-0.1, "less", "top")):
        bar.text(0.5, y, text, transform=bar.transAxes, size=9, ha="center", va=side)
    return sheet.figure


def finding(run: RunData, variant: str) -> str:
    """The method that costs one remaining client most, and the one that is gentlest."""
    excuse = disclaimer(run, variant, run.headline)
    if excuse:
        return excuse
    gone = {r.client for r in run.requests}
    clients = [int(s.split(":")[1]) for s in run.subjects(variant, run.headline, "client:")]
    others = [c for c in clients if c not in gone]
    worst = []
    for branch in run.methods:
        row = differences(run, variant, [branch], others)[0]
        if np.isfinite(row).any():
            at = int(np.nanargmin(row))
            worst.append((float(row[at]), others[at], words.inside(branch.title)))
    if not worst:
        return "No method was measured on the clients who stayed"
    low, client, title = min(worst)
    high, _, gentle = max(worst)
    if low > -run.tolerance:
        return f"No method costs any remaining client more than {run.tolerance:.2f} against retraining"
    text = f"{title} hurts {run.client(client)} most ({words.number(low)} against retraining)"
    if gentle != title:
        kind = "no remaining client loses" if high > -run.tolerance else "the worst loss is"
        text += (
            f"; with {gentle} {kind} more than {run.tolerance:.2f}"
            if high > -run.tolerance
            else f"; with {gentle} {kind} {words.number(high)}"
        )
    return words.capital(text)


def differences(run: RunData, variant: str, branches: list[Branch], clients: list[int]) -> Floats:
    """(branches, clients): headline metric minus retrain's at the last measured round; NaN where missing."""

    def at(branch: str, client: int) -> float:
        return run.final(variant, branch, f"client:{client}", run.headline)

    reference = np.array([at("retrain", c) for c in clients])
    rows = [[at(b.name, c) for c in clients] for b in branches]
    values: Floats = np.array(rows, dtype=np.float64).reshape(len(branches), len(clients))
    values -= reference
    return values


def _reach(run: RunData, values: Floats, clients: list[int]) -> float:
    """Where the colours end: the largest difference of those who stayed, at least .2; others saturate."""
    gone = {r.client for r in run.requests}
    stayed = values[:, [i for i, c in enumerate(clients) if c not in gone]]
    return max(float(np.nanmax(np.abs(stayed))) if np.isfinite(stayed).any() else 0.0, 0.2)


def _numbers(axes: Axes, run: RunData, values: Floats, clients: list[int], dark: float) -> None:
    """Write the forgotten clients' values, whose colours may be saturated, where cells are wide enough."""
    gone = {r.client for r in run.requests}
    if len(clients) > 30:
        return
    for i, client in enumerate(clients):
        for row in range(values.shape[0] if client in gone else 0):
            value = float(values[row, i])
            text, colour = (
                words.number(value).replace("0.", ".", 1),
                "white" if abs(value) > dark else style.INK,
            )
            axes.text(i, row, text, ha="center", va="center", size=7.5, color=colour)


def _dress(axes: Axes, run: RunData, branches: list[Branch], clients: list[int]) -> None:
    axes.set_facecolor("#eeeeee")
    axes.set_yticks(range(len(branches)), [words.short(b.title, 25) for b in branches])
    step = max(1, -(-len(clients) // 30))
    gone = {r.client for r in run.requests}
    shown = [i for i, c in enumerate(clients) if i % step == 0 or c in gone]
    if step > 1:
        near = {i for i, c in enumerate(clients) if c in gone}
        shown = [i for i in shown if i in near or not any(abs(i - j) < step for j in near)]
    called = [run.called(clients[i]) for i in shown]
    axes.set_xticks(shown, called, rotation=90 if max(map(len, called), default=0) > 4 else 0)
    axes.tick_params(length=0, labelcolor=style.INK)
    for tick, i in zip(axes.get_xticklabels(), shown, strict=True):
        tick.set_fontweight("bold" if clients[i] in gone else "normal")
    axes.set_xlabel("Client")
    for spine in axes.spines.values():
        spine.set_visible(False)
    for i, client in enumerate(clients):
        if client in gone:
            frame = Rectangle(
                (i - 0.5, -0.5), 1, len(branches), fill=False, edgecolor="black", lw=2, zorder=9
            )
            axes.add_patch(frame).set_clip_on(False)
            axes.text(i, -0.6, "▼", ha="center", va="bottom", size=9)
    axes.set_xticks(np.arange(len(clients) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(branches) + 1) - 0.5, minor=True)
    if len(clients) <= 60:
        axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
