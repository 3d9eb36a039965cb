"""Every figure of a run, in the order of the report; a new figure is a module and a line here.

A figure module has ``draw(run, variant)``, which returns None when the run has no data for it, and a
``CAPTION`` that says how to read it. Titles state what this run's data say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from fedsim.storage.whole import folder_name
from plots import (
    claims,
    clients,
    epsilon,
    excess,
    inversion,
    pareto,
    quality,
    ratios,
    relearning,
    style,
    sweep,
    timeline,
    trust,
)
from plots.data import RunData


@dataclass(frozen=True)
class Kind:
    """A kind of figure: its name, and what draws it."""

    name: str
    draw: Callable[[RunData, str], Figure | None]
    caption: str


FIGURES = (
    Kind("timeline", timeline.draw, timeline.CAPTION),
    Kind("excess", excess.draw, excess.CAPTION),
    Kind("quality-utility", quality.draw, quality.CAPTION),
    Kind("truth-ratios", ratios.draw, ratios.CAPTION),
    Kind("cost", pareto.draw, pareto.CAPTION),
    Kind("clients", clients.draw, clients.CAPTION),
    Kind("epsilon", epsilon.draw, epsilon.CAPTION),
    Kind("client-epsilon", epsilon.draw_clients, epsilon.CLIENT_CAPTION),
    Kind("claims", claims.draw, claims.CAPTION),
    Kind("inversion", inversion.draw, inversion.CAPTION),
    Kind("relearning", relearning.draw, relearning.CAPTION),
    Kind("trust", trust.draw, trust.CAPTION),
)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure on disk: its stem, finding, caption and files."""

    name: str
    variant: str
    title: str
    caption: str
    png: Path
    svg: Path


def file_name(run: RunData, kind: str, variant: str) -> str:
    """``timeline``; with several variants ``timeline-VARIANT``, its odd characters replaced."""
    if len(run.variants) < 2:
        return kind
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in variant)
    return f"{kind}-{run.variants.index(variant):02d}-{folder_name(plain)}"


def draw_all(run: RunData, folder: Path) -> list[Drawn]:
    """Draw and save every figure the run has data for: across variants (variant ""), then in each."""
    drawn = []
    across = sweep.draw(run)
    if across is not None:
        png, svg = style.save(across, folder, "sweep")
        title = style.title_of(across)
        drawn.append(Drawn(name="sweep", variant="", title=title, caption=sweep.CAPTION, png=png, svg=svg))
    for variant in run.variants:
        for kind in FIGURES:
            figure = kind.draw(run, variant)
            if figure is None:
                continue
            png, svg = style.save(figure, folder, file_name(run, kind.name, variant))
            title = style.title_of(figure)
            drawn.append(
                Drawn(name=kind.name, variant=variant, title=title, caption=kind.caption, png=png, svg=svg)
            )
    return drawn
