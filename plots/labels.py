"""Labels that do not overlap: at the ends of lines, beside points, in rows above a time axis.

>>> [round(y, 1) for y in spread([1.0, 1.0, 5.0], 1.0, 0.0, 10.0)]
[0.5, 1.5, 5.0]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath

from plots.parts import Floats
from plots.style import MUTED, Look, height_of, width_of

Mark = tuple[float, str, bool]
LINE = 0.165
"""Inches one line of label text takes."""


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least ``gap`` apart, in the order of ``wanted``, moved as little as possible.

    Least squares under the order constraint: with ``i * gap`` taken off, the answer is the isotonic
    regression of the sorted positions (pool adjacent violators), clipped to [low, high]. When they do
    not fit between ``low`` and ``high`` the gap shrinks until they do.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(len(order) - 1, 1))
    pools: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        pools.append((wanted[i] - rank * gap, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    flat = [mean for mean, count in pools for _ in range(count)]
    ceiling = high - (len(order) - 1) * gap
    result = [0.0] * len(order)
    for rank, i in enumerate(order):
        result[i] = min(max(flat[rank], low), ceiling) + rank * gap
    return result


def stack(spans: Sequence[tuple[float, float]]) -> list[int]:
    """Row 0, 1, ... for each (left, right) such that no two spans of a row overlap; first fit."""
    ends: list[float] = []
    rows = [0] * len(spans)
    for i in sorted(range(len(spans)), key=lambda i: spans[i]):
        left, right = spans[i]
        row = next((r for r, end in enumerate(ends) if end <= left), len(ends))
        ends[row : row + 1] = [right]
        rows[i] = row
    return rows


def text_width(text: str, points: float) -> float:
    """Inches a line of text takes in the figures' font."""
    return float(TextPath((0, 0), text, size=points).get_extents().x1) / 72 if text else 0.0


def line_ends(axes: Axes, x: float, ends: Sequence[tuple[float, str, Look]], size: float = 9.5) -> None:
    """Write (value, text, look) to the right of ``x``, moved apart, each tied to its value by a hair line."""
    low, high = axes.get_ylim()
    inch = (high - low) / height_of(axes)
    places = spread([end[0] for end in ends], LINE * inch, low - 0.05 * inch, high + 0.1 * inch)
    left, right = axes.get_xlim()
    step = (right - left) / width_of(axes)
    for (value, text, look), place in zip(ends, places, strict=True):
        hair = [x + 0.04 * step, x + 0.2 * step], [value, place]
        axes.plot(*hair, color=look.ink, linewidth=0.7, clip_on=False, zorder=2)
        axes.text(
            x + 0.24 * step,
            place,
            text,
            color=look.ink,
            size=size,
            va="center_baseline",
            weight="bold" if look.reference else "normal",
            clip_on=False,
        )


Box = tuple[float, float, float, float]
"""(left, bottom, right, top) in inches from the lower left corner of the axes"""


def beside_points(
    axes: Axes,
    points: Sequence[tuple[float, float, str, Look]],
    avoid: Sequence[tuple[float, float]] = (),
    size: float = 9.5,
) -> None:
    """Write (x, y, text, look), in data coordinates, near each point where it covers nothing.

    Each label takes the place, out of some around its point, that overlaps least with the marks, the
    labels already placed and the points of ``avoid`` (which weigh less), nearest first.
    """
    width, height = width_of(axes), height_of(axes)

    def inches(x: float, y: float) -> tuple[float, float]:
        at = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        return float(at[0]) * width, float(at[1]) * height

    hard: list[Box] = [_box(*inches(x, y), 0.09) for x, y, _, _ in points]
    soft = np.array([_box(*inches(x, y), 0.02) for x, y in avoid]).reshape(-1, 4)
    for x, y, text, look in sorted(points, key=lambda p: (not p[3].reference, p[1], p[0])):
        here, long = inches(x, y), text_width(text, size) * (1.1 if look.reference else 1.0)
        places = _places(here, long)
        covered = 10 * _covered(places, np.array(hard)) + _covered(places, soft)
        cost = covered + _misplaced(places, here, (width + 0.25, height))
        box = places[int(np.argmin(cost))]
        hard.append(box)
        _write(axes, text, look, here, box, size)


def _box(x: float, y: float, half: float) -> Box:
    return x - half, y - half, x + half, y + half


def _places(here: tuple[float, float], long: float) -> list[Box]:
    """Boxes for a label: right, left, above and below its point, then further and further away."""
    x, y = here
    found: list[Box] = []
    for far in (0.0, 0.12, 0.26, 0.42, 0.6, 0.8):
        for rise in (0.0,) if far == 0 else (far, -far):
            for left in (x + 0.13, x - 0.13 - long):
                found.append((left, y + rise - LINE / 2, left + long, y + rise + LINE / 2))
        for rise in (0.2 + far, -0.2 - far):
            found.append((x - long / 2, y + rise - LINE / 2, x + long / 2, y + rise + LINE / 2))
    return found


def _covered(places: Sequence[Box], others: Floats) -> Floats:
    """Square inches of the others (N, 4) that each place (P) covers."""
    left, bottom, right, top = np.array(places).T[:, :, None]
    wide = np.minimum(right, others[:, 2]) - np.maximum(left, others[:, 0])
    tall = np.minimum(top, others[:, 3]) - np.maximum(bottom, others[:, 1])
    return np.asarray((np.maximum(wide, 0) * np.maximum(tall, 0)).sum(axis=1))


def _misplaced(places: Sequence[Box], here: tuple[float, float], size: tuple[float, float]) -> Floats:
    """What each place costs by itself: over the axes' edges, far from the point, or left of it."""
    left, bottom, right, top = np.array(places).T
    sides = np.maximum(0.02 - left, 0) + np.maximum(right - size[0], 0)
    ends = np.maximum(-bottom, 0) + np.maximum(top - size[1] - 0.1, 0)
    far = np.abs((bottom + top) / 2 - here[1])
    return np.asarray(sides + ends + 0.006 * far + np.where(left < here[0], 0.0005, 0))


def _write(axes: Axes, text: str, look: Look, here: tuple[float, float], box: Box, size: float) -> None:
    width, height = width_of(axes), height_of(axes)
    middle = (box[1] + box[3]) / 2
    if abs(middle - here[1]) > 0.25:
        near = min(max(here[0], box[0]), box[2])
        edge = box[3] if middle < here[1] else box[1]
        line = [here[0] / width, near / width], [here[1] / height, edge / height]
        axes.plot(*line, transform=axes.transAxes, color=look.ink, linewidth=0.7, zorder=2, clip_on=False)
    axes.text(
        box[0] / width,
        middle / height,
        text,
        transform=axes.transAxes,
        color=look.ink,
        size=size,
        va="center_baseline",
        weight="bold" if look.reference else "normal",
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=9,
    )


def above(axes: Axes, marks: Sequence[Mark], size: float = 9.0) -> None:
    """Write (x, text, bold) over the axes in as many rows as it takes, each above its x."""
    left, right = axes.get_xlim()
    scale = width_of(axes) / (right - left)
    starts, rows = rows_above(marks, (left, right), width_of(axes), size)
    for (_, text, bold), start, row in zip(marks, starts, rows, strict=True):
        axes.text(
            left + (start + 0.06) / scale,
            1 + (0.06 + 0.16 * row) / height_of(axes),
            text,
            transform=axes.get_xaxis_transform(),
            size=size,
            weight="bold" if bold else "normal",
            color="black" if bold else MUTED,
            va="bottom",
            clip_on=False,
        )


def rows_above(
    marks: Sequence[Mark], limits: tuple[float, float], width: float, size: float = 9.0
) -> tuple[list[float], list[int]]:
    """Where each label starts (inches from the left edge) and its row, on an axes ``width`` inches wide."""
    scale = width / (limits[1] - limits[0])
    spans = []
    for x, text, bold in marks:
        long = text_width(text, size) * (1.1 if bold else 1.0) + 0.12
        start = min(max((x - limits[0]) * scale - long / 2, 0.0), max(width - long, 0.0))
        spans.append((start, start + long))
    return [start for start, _ in spans], stack(spans)
