"""Drawings of filters: the filters themselves as small pictures, and figures of what was measured of them.

Filters are drawn in blue (negative) and orange (positive) on light grey (zero), in both colour schemes alike.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from offshelf.report.figures import shorten
from offshelf.report.numbers import number
from offshelf.report.plotting import Scale, figure, line, px, text, ticks

SHADES = 16  # of either sign
NEGATIVE, ZERO, POSITIVE = (20, 84, 150), (236, 236, 232), (178, 84, 10)
ROW = 12  # filters in one row of a strip
FEWEST = 10_000


def strip(drawn: str, kernel: int, columns: int = ROW) -> str | None:
    """Filters, a byte a weight in base64 with 128 as zero, as a PNG data URI; None where they are damaged."""
    try:
        weights = np.frombuffer(base64.b64decode(drawn, validate=True), dtype=np.uint8)
    except (ValueError, TypeError):
        return None
    if not len(weights) or len(weights) % kernel**2:
        return None
    return picture((weights.reshape(-1, kernel, kernel).astype(float) - 128) / 127, columns)


def picture(filters: np.ndarray, columns: int = ROW) -> str:
    """Filters ``(n, k, k)`` of -1 to 1 side by side, one pixel a weight and one between them, as a PNG data URI."""
    n, k, _ = filters.shape
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    canvas = np.zeros((rows * (k + 1) - 1, columns * (k + 1) - 1), dtype=np.uint8)  # 0 is nothing
    shades = np.rint(np.clip(filters, -1, 1) * SHADES).astype(int) + SHADES + 1
    for place in range(n):
        top, left = place // columns * (k + 1), place % columns * (k + 1)
        canvas[top : top + k, left : left + k] = shades[place]
    image = Image.fromarray(canvas, mode="P")
    image.putpalette([0, 0, 0, *(channel for shade in range(-SHADES, SHADES + 1) for channel in _colour(shade))])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=0, optimize=True, bits=6)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _colour(shade: int) -> tuple[int, ...]:
    end, share = (POSITIVE if shade > 0 else NEGATIVE), abs(shade) / SHADES
    return tuple(round(zero + share * (full - zero)) for zero, full in zip(ZERO, end))


def depth_chart(layers: Sequence[dict[str, Any]], name: str) -> Markup:
    """Relative entropy (points) and sparsity (bars from below) of a network's layers over their depth."""
    width, height = 320, 190
    across, up = Scale(0, 1, 40, width - 10), Scale(0, 1.15, height - 34, 8)
    parts = [line(40, up.at(value), width - 10, up.at(value), "grid") for value in (0, 0.25, 0.5, 0.75, 1)]
    parts += [text(34, up.at(value) + 4, words, "muted", "end") for value, words in ((0, "0"), (0.5, "0.5"), (1, "1"))]
    parts.append(line(40, up.at(1), width - 10, up.at(1), "limit"))
    for row in layers:
        x, told = across.at(row["depth"]), f"{row['layer']}: sparsity {number(row['sparsity'])}"
        entropy = row["relative_entropy"]
        told += f", H / T {number(entropy)}" if entropy is not None else ", not judged"
        shapes = f'<path class="silent" d="M{px(x)} {px(up.at(0))}V{px(up.at(row["sparsity"]))}"/>'
        if entropy is not None:
            kind = "flagged" if row["flags"] else "plain"
            shapes += f'<circle class="{kind}" cx="{px(x)}" cy="{px(up.at(min(entropy, 1.15)))}" r="4"/>'
        parts.append(Markup(f"<g><title>{escape(told)}</title>{shapes}</g>"))  # noqa: S704 (escaped)
    parts.append(text(40, height - 16, "first layer", "muted"))
    parts.append(text(width - 10, height - 16, "last", "muted", "end"))
    known = [row["relative_entropy"] for row in layers if row["relative_entropy"] is not None]
    spoken = f"from {min(known):.3f} to {max(known):.3f}" if known else "not judged"
    return figure(width, height, f"Relative entropy of the layers of {name} over depth: {spoken}.", parts)


def ridge_plot(rows: Sequence[tuple[str, Sequence[int]]], low: float, high: float, title: str) -> Markup:
    """Histograms of one coefficient, a ridge a network, each as high as its own highest bin."""
    width, step, tall = 320, 24, 40
    height = tall + step * len(rows) + 22
    across = Scale(low, high, 4, width - 4)
    parts = [line(across.at(0), 10, across.at(0), height - 22, "zero")]
    for place, (name, counts) in enumerate(rows):
        base, most = tall + step * place, max(counts) or 1
        bin_width = (high - low) / len(counts)
        points = [
            f"{px(across.at(low + (i + 0.5) * bin_width))} {px(base - (tall - 6) * n / most)}"
            for i, n in enumerate(counts)
        ]
        ends = f"{px(across.start)} {px(base)}L", f"L{px(across.end)} {px(base)}"
        shape = f'<path class="ridge" d="M{ends[0]}{"L".join(points)}{ends[1]}"/>'
        parts.append(Markup(f"<g><title>{escape(name)}</title>{shape}</g>"))  # noqa: S704 (escaped)
    for place, (name, _) in enumerate(rows):  # over all ridges
        parts.append(text(2, tall + step * place - 3, shorten(name, 20), "name-tag"))
    for value in (low, 0.0, high):
        anchor = "start" if value == low else "end" if value == high else "middle"
        parts.append(text(across.at(value), height - 6, number(value, 1), "muted", anchor))
    names = ", ".join(name for name, _ in rows)
    return figure(width, height, f"{title}: distribution in {names}.", parts)


def shift_plot(axes: Sequence[dict[str, Any]], width: int) -> Markup:
    """Every shift as a point on a logarithmic scale, one row a kind; hollow where a group has too few filters."""
    narrow = width < 500
    left, step, head = (8, 50, 26) if narrow else (250, 34, 8)
    values = [max(point["value"], 1e-6) for axis in axes for point in axis["points"]]
    least, most = min(values), max(values)
    across = Scale(least / 1.4, most * 1.4, left, width - 14, log=True)
    height = head + step * len(axes) + 34
    bottom = height - 34
    parts = []
    for value in ticks(across, 4 if narrow else 7):
        parts.append(line(across.at(value), 4, across.at(value), bottom, "grid"))
        parts.append(text(across.at(value), height - 16, f"{value:g}", "muted", "middle"))
    for place, axis in enumerate(axes):
        y = head + step * (place + (0.62 if narrow else 0.5))
        if narrow:
            parts.append(text(left, y - 16, axis["axis"], "name-tag"))
        else:
            parts.append(text(left - 14, y + 4, axis["axis"], "", "end"))
        for point in axis["points"]:
            kind = "few" if point["n"] < FEWEST else "plain"
            told = f"{point['label']}: {number(point['value'])}, {point['n']:,} filters or more"
            x = across.at(max(point["value"], 1e-6))
            spot = f'<circle class="{kind}" cx="{px(x)}" cy="{px(y)}" r="4"/>'
            parts.append(Markup(f"<g><title>{escape(told)}</title>{spot}</g>"))  # noqa: S704 (escaped)
        if axis["median"] is not None:
            x = across.at(max(axis["median"], 1e-6))
            parts.append(line(x, y - 9, x, y + 9, "median"))
    parts.append(text(width - 14, height - 2, "shift (nats, logarithmic)", "muted", "end"))
    spoken = "; ".join(f"{axis['axis']} {number(axis['median'])}" for axis in axes)
    return figure(width, height, f"Median shifts: {spoken}.", parts)
