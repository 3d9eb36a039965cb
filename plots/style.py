"""How every figure looks: one colour, dash and marker per method, one sheet, one way to save.

Colours are Okabe and Ito's and Tol's muted scheme, which colour-blind readers can tell apart; dash and
marker say the same again. Importing changes no rcParams: ``context`` sets them, and ``styled`` wraps a
function in it.

>>> looks([("keep", "keep"), ("npo", "npo"), ("npo-b1", "npo")])["npo"].colour
'#0072b2'
"""

from __future__ import annotations

import functools
import textwrap
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from matplotlib.figure import Figure

from fedsim.storage.whole import whole_file

P = ParamSpec("P")
T = TypeVar("T")
Dash = str | tuple[float, tuple[float, ...]]

WIDTH = 10.0
"""Inches; at 100 pixels per inch a figure is read at 1000 pixels."""
DPI = 150
INK, MUTED, FAINT, GREY, SHADE = "#1a1a1a", "#595959", "#d9d9d9", "#b3b3b3", "#f1f1ee"
DIVERGING = "RdBu_r"
_PALE = 0.4
"""Share of a colour that stays of it where a value may not be quoted."""

_RC: dict[str, object] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "text.parse_math": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "plots",
    "svg.fonttype": "path",
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """A method's appearance; ``ink`` is its colour darkened enough to read as text on white."""

    colour: str
    dash: Dash = "-"
    marker: str = "o"
    width: float = 2.0
    order: int = 4
    reference: bool = False

    @property
    def ink(self) -> str:
        return _blend(self.colour, "#000000", 0.25)

    def greyed(self) -> Look:
        """The same dash and marker without colour: for values that are not to be quoted."""
        return replace(self, colour=_blend(self.colour, "#ffffff", 0.3) if self.reference else GREY)


FIXED = {
    "retrain": Look(colour="#000000", marker="*", width=3.6, order=3, reference=True),
    "keep": Look(colour="#85705a", dash=(0, (5, 2)), marker="s"),
    "leave": Look(colour="#56b4e9", dash=(0, (5, 1.5, 1, 1.5)), marker="D"),
    "grad_ascent": Look(colour="#d55e00", marker="v"),
    "grad_diff": Look(colour="#e69f00", marker="^"),
    "npo": Look(colour="#0072b2", marker="o"),
    "simnpo": Look(colour="#cc79a7", marker="P"),
}
_OTHERS = (
    Look(colour="#009e73", marker="X"),
    Look(colour="#882255", marker="p"),
    Look(colour="#332288", marker="h"),
    Look(colour="#999933", marker="<"),
    Look(colour="#44aa99", dash=(0, (3, 1)), marker=">"),
    Look(colour="#cc6677", dash=(0, (3, 1)), marker="d"),
    Look(colour="#117733", dash=(0, (3, 1)), marker="8"),
    Look(colour="#aa4499", dash=(0, (3, 1)), marker="H"),
)
_AGAIN: tuple[Dash, ...] = ((0, (1, 1.2)), (0, (6, 2, 1, 2, 1, 2)), (0, (8, 2)))


def _blend(colour: str, other: str, share: float) -> str:
    mixed = [(1 - share) * a + share * b for a, b in zip(to_rgb(colour), to_rgb(other), strict=True)]
    return str(to_hex((mixed[0], mixed[1], mixed[2])))


def pale(name: str) -> ListedColormap:
    """A colour map whose colours are mixed with white, for values that may not be quoted."""
    colours = colormaps[name](np.linspace(0, 1, 256))
    colours[:, :3] = 1 - _PALE * (1 - colours[:, :3])
    return ListedColormap(colours)


def looks(branches: Sequence[tuple[str, str]]) -> dict[str, Look]:
    """(branch, method) pairs -> Look per branch.

    Methods named in ``FIXED`` always look the same. Any other takes the place its name hashes to among
    the spare looks, or the next free one, so that it does not depend on the order of the branches. A
    second branch of a method keeps the hue, paler or darker, with another dash.
    """
    taken: dict[str, int] = {}
    for method in sorted({method for _, method in branches} - set(FIXED)):
        slot = zlib.crc32(method.encode()) % len(_OTHERS)
        while slot in taken.values() and len(taken) < len(_OTHERS):
            slot = (slot + 1) % len(_OTHERS)
        taken[method] = slot
    result: dict[str, Look] = {}
    seen: dict[str, int] = {}
    for branch, method in branches:
        look, again = FIXED.get(method) or _OTHERS[taken[method]], seen.get(method, 0)
        if again:
            shade = _blend(look.colour, "#ffffff" if again % 2 else "#000000", 0.35)
            look = replace(look, colour=shade, dash=_AGAIN[(again - 1) % len(_AGAIN)])
        result[branch], seen[method] = look, again + 1
    return result


@contextmanager
def context() -> Iterator[None]:
    """Our rcParams over matplotlib's defaults, whatever the user's own file says; restored on exit."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)  # type: ignore[arg-type]
        yield


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """Run ``function`` inside ``context``."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with context():
            return function(*args, **kwargs)

    return wrapped


class Sheet:
    """A figure laid out in inches from its top left corner, with the finding as title.

    ``body`` is the height below the title block, which grows with the text; ``axes`` counts from there.
    """

    def __init__(self, title: str, subtitle: str, body: float) -> None:
        heads = balanced(title, 92)
        notes = textwrap.wrap(subtitle, 125)
        self._head = 0.22 + 0.235 * len(heads) + 0.175 * len(notes) + 0.08
        self._height = self._head + body
        self.figure = Figure(figsize=(WIDTH, self._height), dpi=DPI)
        left, top = 0.2 / WIDTH, 1 - 0.14 / self._height
        self.figure.suptitle("\n".join(heads), x=left, y=top, ha="left", va="top", size=13, weight="bold")
        below = 1 - (0.2 + 0.235 * len(heads)) / self._height
        self.figure.text(left, below, "\n".join(notes), va="top", size=9.5, color=MUTED)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self._height - self._head - top - height
        return self.figure.add_axes(
            (left / WIDTH, bottom / self._height, width / WIDTH, height / self._height)
        )


def balanced(text: str, most: int) -> list[str]:
    """Lines of at most ``most`` characters, as few as possible and about equally long.

    >>> balanced("one two three four", 14)
    ['one two', 'three four']
    """
    count = len(textwrap.wrap(text, most))
    width = next((w for w in range(1, most) if len(textwrap.wrap(text, w)) == count), most)
    lines = textwrap.wrap(text, width, break_long_words=False)
    return lines if lines and len(lines) == count else textwrap.wrap(text, most) or [""]


def height_of(axes: Axes) -> float:
    """Height of an axes in inches."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return float(axes.get_position().height * figure.get_size_inches()[1])


def width_of(axes: Axes) -> float:
    """Width of an axes in inches."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return float(axes.get_position().width * figure.get_size_inches()[0])


def title_of(figure: Figure) -> str:
    """The finding a figure states, on one line."""
    return figure.get_suptitle().replace("\n", " ")


@styled
def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME.png and NAME.svg, whole or not at all; the same figure gives the same bytes."""
    paths = folder / f"{name}.png", folder / f"{name}.svg"
    with whole_file(paths[0]) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    with whole_file(paths[1]) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
    return paths
