"""The report's figures: an interval plot of the arms, confusion matrices, ROC curves, reliability diagrams, a map.

Every function takes the report's own shapes (see `offshelf.report.content`) and gives one inline ``<svg>``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from offshelf.report.inline_svg import (
    ACCENT,
    DASHES,
    INK,
    LINE,
    MARKERS,
    MUTED,
    PAGE,
    SERIES,
    axes,
    canvas,
    inline,
    style,
)

CELLS_WITH_NUMBERS = 20  # classes up to which a confusion matrix can hold its counts
POINTS_AS_SVG = 1000  # beyond, the map's points become one picture: smaller, and quicker to draw


def interval_plot(
    rows: Sequence[dict[str, Any]],
    panels: Sequence[dict[str, Any]],
    width: int,
    prefix: str,
    what: str = "arms",
) -> Markup:
    """Arms as points with intervals, best on top, one panel a metric, each with its own chance line.

    Parameters
    ----------
    rows
        ``{"name": str, "tied": bool, "cells": {metric: cell}}``; ``tied`` ones (not told apart from the best) are
        drawn in the accent colour.
    panels
        ``{"key": str, "label": str, "line": float or None, "line_label": str}``.
    width
        In CSS pixels; below 500 the names stand above their intervals and the panels below each other.
    what
        What the rows are, said to who cannot see the figure.
    """
    narrow = width < 500
    columns = 1 if narrow else len(panels)
    left = 8 if narrow else min(260, 24 + 6.6 * max(len(shorten(row["name"], 38)) for row in rows))
    gap, right, head, foot, step = 36, 16, 44, 28, 44 if narrow else 30
    inner = (width - left - right - gap * (columns - 1)) / columns
    tall = step * len(rows)
    block = head + tall + foot
    with style():
        figure = canvas(width, block * (len(panels) if narrow else 1))
        for index, panel in enumerate(panels):
            x, y = (left, index * block) if narrow else (left + index * (inner + gap), 0)
            area = axes(figure, x, y + head, inner, tall)
            _interval_panel(area, rows, panel)
            if narrow:
                area.set_ylim(len(rows) - 0.5, -1)
                for place, row in enumerate(rows):
                    area.annotate(
                        shorten(row["name"], 44),
                        (0, place),
                        (0, 9),
                        xycoords=("axes fraction", "data"),
                        textcoords="offset points",
                        va="bottom",
                        bbox={"facecolor": PAGE, "edgecolor": "none", "pad": 1},
                    )
                area.set_yticks([])
            elif index == 0:
                area.set_yticks(range(len(rows)), [shorten(row["name"], 38) for row in rows])
                area.tick_params(axis="y", length=0, labelcolor=INK, labelsize=9, pad=8)
            else:
                area.set_yticks([])
        spoken = "; ".join(_spoken(row["name"], row["cells"], panels[0]["key"]) for row in rows)
        return inline(figure, prefix, f"{panels[0]['label']} of the {what} with intervals: {spoken}.")


def _interval_panel(area: Axes, rows: Sequence[dict[str, Any]], panel: dict[str, Any]) -> None:
    bounds = [] if panel["line"] is None else [panel["line"]]
    for place, row in enumerate(rows):
        cell = row["cells"][panel["key"]]
        colour = ACCENT if row["tied"] else MUTED
        if cell["value"] is None:
            area.annotate(
                "not defined", (0, place), (2, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", color=MUTED, style="italic",
            )  # fmt: skip
            continue
        low = cell["value"] if cell["low"] is None else cell["low"]
        high = cell["value"] if cell["high"] is None else cell["high"]
        bounds += [low, cell["value"], high]
        area.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
        area.plot([cell["value"]], [place], marker="o", markersize=6, color=colour, markeredgecolor=PAGE)
    low, high = (min(bounds), max(bounds)) if bounds else (0.0, 1.0)
    room = max(0.06 * (high - low), 0.02)
    area.set_xlim(low - room, high + room)
    area.set_ylim(len(rows) - 0.5, -0.7)
    area.spines["left"].set_visible(False)
    area.locator_params(axis="x", nbins=6)
    area.grid(axis="x", color=LINE, linewidth=0.5)
    area.set_axisbelow(True)
    area.annotate(panel["label"], (0, 1), (0, 19), xycoords="axes fraction", textcoords="offset points", weight="bold")
    if panel["line"] is not None:
        area.axvline(panel["line"], color=INK, linewidth=1, dashes=(4, 3))
        beyond = (panel["line"] - low + room) / (high - low + 2 * room) > 0.6
        area.annotate(
            panel["line_label"], (panel["line"], 1), (0, 4), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="right" if beyond else "left", color=INK, fontsize=8.25,
        )  # fmt: skip


def confusion_matrix(counts: Sequence[Sequence[int]], classes: Sequence[str], name: str, prefix: str) -> Markup:
    """Counts, rows = true class, shaded by the share of the row; without numbers beyond twenty classes."""
    matrix = np.asarray(counts, dtype=float)
    number = len(classes)
    sums = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, sums, out=np.zeros_like(matrix), where=sums > 0)
    numbered = number <= CELLS_WITH_NUMBERS
    side = max(24.0, min(66.0, 250 / number)) if numbered else max(2.0, 300 / number)
    names = [shorten(label, 14) for label in classes]
    longest = max(len(label) for label in names)
    upright = longest * 6.4 <= side
    left = 30 + (6.4 * longest if numbered else 8)
    bottom = 26 + (14 if upright or not numbered else 4.8 * longest + 8)
    with style():
        figure = canvas(left + side * number + 14, 12 + side * number + bottom)
        area = axes(figure, left, 12, side * number, side * number)
        if numbered:
            for row in range(number):
                for column in range(number):
                    share = shares[row, column]
                    box = matplotlib.patches.Rectangle(
                        (column + 0.02, row + 0.02),
                        0.96,
                        0.96,
                        facecolor=ACCENT,
                        alpha=round(0.05 + 0.9 * share, 2),
                        lw=0,
                    )
                    area.add_patch(box)
                    area.text(
                        column + 0.5, row + 0.5, f"{int(matrix[row, column]):,}", ha="center", va="center",
                        color=PAGE if share > 0.5 else INK, fontsize=9 if side >= 30 else 7,
                    )  # fmt: skip
            area.set_xticks(
                np.arange(number) + 0.5,
                names,
                rotation=0 if upright else 45,
                ha="center" if upright else "right",
                rotation_mode="anchor",
            )
            area.set_yticks(np.arange(number) + 0.5, names)
            area.tick_params(labelcolor=INK)
        else:
            fade = LinearSegmentedColormap.from_list("fade", [(0.23, 0.51, 0.77, 0.06), (0.23, 0.51, 0.77, 1.0)])
            area.imshow(shares, cmap=fade, vmin=0, vmax=1, extent=(0, number, number, 0), interpolation="nearest")
            area.set_xticks([])
            area.set_yticks([])
        area.set_xlim(0, number)
        area.set_ylim(number, 0)
        area.tick_params(length=0)
        for spine in area.spines.values():
            spine.set_visible(False)
        area.set_xlabel("predicted")
        area.set_ylabel("true")
        right, total = int(np.trace(matrix)), int(matrix.sum())
        return inline(
            figure,
            prefix,
            f"Confusion matrix of {name}: {right:,} of {total:,} on the diagonal; rows are the true class.",
        )


def roc_curves(curves: Sequence[dict[str, Any]], name: str, prefix: str) -> Markup:
    """One-against-rest ROC curves: ``{"class": str, "fpr": [...], "tpr": [...]}``, drawn in the legend's order."""
    with style():
        figure = canvas(320, 318)
        area = axes(figure, 50, 12, 256, 256)
        area.plot([0, 1], [0, 1], color=MUTED, linewidth=0.75, dashes=(4, 3))
        for index, curve in enumerate(curves):
            colour, dashes = signs(index)
            area.plot(
                curve["fpr"], curve["tpr"], color=colour, dashes=dashes or (None, None), linewidth=1.5, clip_on=False
            )
        _unit_square(area, "1 − specificity", "sensitivity")
        names = ", ".join(curve["class"] for curve in curves)
        return inline(figure, prefix, f"ROC curves of {name}, one class against the rest: {names}.")


def reliability_diagram(bins: Sequence[dict[str, Any]], name: str, prefix: str) -> Markup:
    """Accuracy against stated confidence, one point a bin with its interval, above a histogram of the confidences."""
    kept = [one for one in bins if one["n"] and one["confidence"] is not None and one["accuracy"]["value"] is not None]
    with style():
        figure = canvas(320, 384)
        area = axes(figure, 50, 12, 256, 256)
        area.plot([0, 1], [0, 1], color=MUTED, linewidth=0.75, dashes=(4, 3))
        for one in kept:
            cell = one["accuracy"]
            if cell["low"] is not None and cell["high"] is not None:
                area.plot([one["confidence"]] * 2, [cell["low"], cell["high"]], color=ACCENT, linewidth=1.5)
        points = [one["confidence"] for one in kept], [one["accuracy"]["value"] for one in kept]
        area.plot(*points, color=ACCENT, linewidth=0.75, marker="o", markersize=5, markeredgecolor=PAGE)
        _unit_square(area, "", "accuracy")
        area.set_xticklabels([])
        below = axes(figure, 50, 284, 256, 50)
        most = max((one["n"] for one in bins), default=0) or 1
        for one in bins:
            below.bar(
                one["low"],
                one["n"],
                one["high"] - one["low"],
                align="edge",
                color=ACCENT,
                alpha=0.35,
                edgecolor=PAGE,
                linewidth=1,
            )
        below.set(xlim=(0, 1), ylim=(0, most), xlabel="confidence")
        below.set_xticks(np.linspace(0, 1, 6))
        below.set_yticks([0, most], ["0", f"{most:,}"])
        total = sum(one["n"] for one in bins)
        return inline(
            figure,
            prefix,
            f"Reliability diagram of {name}: accuracy against confidence in {len(kept)} bins, {total:,} pictures.",
        )


def feature_map(
    x: Sequence[float], y: Sequence[float], label: Sequence[int], explained: Sequence[float], prefix: str
) -> Markup:
    """Pictures in the plane of the two leading components, one colour and marker a class; grey crosses: no label."""
    points = np.column_stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)])
    labels = np.asarray([-1 if one is None else one for one in label])
    size = 26 if len(points) <= 400 else 14 if len(points) <= 2000 else 7
    with style():
        figure = canvas(620, 460)
        area = axes(figure, 52, 12, 552, 398)
        for value in np.unique(labels):
            own = points[labels == value]
            marker, colour = (
                ("x", MUTED) if value < 0 else (MARKERS[value % len(MARKERS)][0], SERIES[value % len(SERIES)])
            )
            raster = len(points) > POINTS_AS_SVG
            if raster and value < 0:
                colour = "#7d8791"  # a picture cannot follow the page's colours
            edge: dict[str, Any] = {} if marker == "x" else {"linewidths": 0}
            area.scatter(own[:, 0], own[:, 1], s=size, marker=marker, c=colour, alpha=0.7, rasterized=raster, **edge)
        shares = [f"component {i + 1} ({100 * share:.1f} % of the variance)" for i, share in enumerate(explained)]
        area.set_xlabel(shares[0] if shares else "component 1")
        area.set_ylabel(shares[1] if len(shares) > 1 else "component 2")
        area.locator_params(nbins=6)
        return inline(
            figure, prefix, f"Map of {len(points):,} pictures in the plane of their two leading feature components."
        )


def signs(index: int) -> tuple[str, tuple[float, ...]]:
    """Colour and dash pattern of the curve at ``index``; dashes change first when the colours are used up."""
    return SERIES[index % len(SERIES)], DASHES[index % len(DASHES)]


def shorten(text: str, length: int) -> str:
    """At most ``length`` characters, the middle left out: the ends of names tell more than their middles."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"


def _unit_square(area: Axes, x: str, y: str) -> None:
    area.set(xlim=(0, 1), ylim=(0, 1), xlabel=x, ylabel=y)
    area.set_xticks(np.linspace(0, 1, 6))
    area.set_yticks(np.linspace(0, 1, 6))
    area.grid(color=LINE, linewidth=0.5)
    area.set_axisbelow(True)


def _spoken(name: str, cells: dict[str, Any], metric: str) -> str:
    cell = cells[metric]
    if cell["value"] is None or math.isnan(cell["value"]):
        return f"{name} not defined"
    if cell["low"] is None or cell["high"] is None:
        return f"{name} {cell['value']:.3f}"
    return f"{name} {cell['value']:.3f}, from {cell['low']:.3f} to {cell['high']:.3f}"
