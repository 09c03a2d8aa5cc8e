"""Curves over the steps of a training or the number of labels, with or without intervals, and a chance line.

A number that is missing leaves a gap.

Drawn in the page's own colours as the other figures are; see `offshelf.report.inline_svg`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from offshelf.report.figures import signs
from offshelf.report.inline_svg import ACCENT, INK, LINE, PAGE, axes, canvas, inline, style

POINTS = 300  # of one line; more are drawn as means of neighbours
POINTS_WITH_MARKERS = 40
LEAST_APART = 36  # pixels between the labels of a logarithmic axis


class Curve(NamedTuple):
    """One line: values over steps, None where not defined, and their intervals, as bars or, where many, as a band."""

    label: str
    steps: Sequence[float]
    values: Sequence[float | None]
    bounds: Sequence[tuple[float, float] | None] | None = None
    place: int | None = None  # of its colour and dashes, where another chart has the same thing; else by order


def line_chart(
    curves: Sequence[Curve],
    title: str,
    prefix: str,
    *,
    size: tuple[int, int] = (320, 210),
    line: float | None = None,
    line_label: str = "",
    over: str = "step",
    log: bool = False,
) -> Markup:
    """Curves over steps as one ``<svg>``; a single one in the accent colour, several as `signs` has them.

    Parameters
    ----------
    curves
        At least one; each with at least one value.
    title
        What a reader who cannot see the figure should hear first.
    size
        In CSS pixels.
    line, line_label
        A dashed line across, such as chance.
    over
        What the horizontal axis counts.
    log
        A logarithmic horizontal axis, with a tick at each step where they do not crowd.
    """
    width, height = size
    with style():
        figure = canvas(width, height)
        area = axes(figure, 52, 14, width - 52 - 16, height - 14 - 42)
        for index, curve in enumerate(curves):
            place = index if curve.place is None else curve.place
            colour, dashes = (ACCENT, ()) if len(curves) == 1 and curve.place is None else signs(place)
            steps, values = thinned(curve.steps, curve.values)
            if curve.bounds is not None and len(curve.steps) > POINTS_WITH_MARKERS:
                sides = [[None if bound is None else bound[side] for bound in curve.bounds] for side in (0, 1)]
                (_, lower), (_, upper) = (thinned(curve.steps, side) for side in sides)
                area.fill_between(steps, lower, upper, color=colour, alpha=0.18, linewidth=0)
            elif curve.bounds is not None:
                for step, bound in zip(curve.steps, curve.bounds):
                    if bound is not None:
                        area.plot([step, step], bound, color=colour, linewidth=1, alpha=0.55)
            few = np.isfinite(values).sum() <= POINTS_WITH_MARKERS
            area.plot(
                steps, values, color=colour, dashes=dashes or (None, None), linewidth=1.5, clip_on=False,
                marker="o" if few else None, markersize=4.5, markeredgecolor=PAGE,
            )  # fmt: skip
        if line is not None:
            area.axhline(line, color=INK, linewidth=1, dashes=(4, 3))
            low, high = area.get_ylim()
            under = line - low > 0.85 * (high - low)
            area.annotate(
                line_label, (1, line), (0, -4 if under else 3), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="top" if under else "bottom", fontsize=8.25,
                bbox={"facecolor": PAGE, "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            )  # fmt: skip
        if log:
            area.set_xscale("log")
        flat = all(len(set(curve.steps)) == 1 for curve in curves)
        if flat:
            only = curves[0].steps[0]
            area.set_xlim(only - 1, only + 1)
            area.set_xticks([only])
        elif log:
            area.margins(x=0.04)
            area.set_xticks(_apart(sorted({step for curve in curves for step in curve.steps}), width - 68))
            area.xaxis.set_minor_locator(NullLocator())
        else:
            area.margins(x=0.02)
            area.xaxis.set_major_locator(MaxNLocator(4 if width < 500 else 8, integer=True))
        area.yaxis.set_major_locator(MaxNLocator(4 if height < 260 else 6, min_n_ticks=3))
        area.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.0f}"))
        area.yaxis.set_major_formatter(FuncFormatter(lambda value, place: plain(value)))
        area.set_xlabel(over if over == "step" else f"{over}s")
        area.grid(axis="y", color=LINE, linewidth=0.5)
        area.set_axisbelow(True)
        return inline(figure, prefix, f"{title} over {over}s: {'; '.join(_spoken(curve, over) for curve in curves)}.")


def thinned(
    steps: Sequence[float], values: Sequence[float | None], most: int = POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` points: neighbours are averaged, steps and values alike; NaN where none of them is defined."""
    x = np.asarray(steps, dtype=float)
    y = np.array([math.nan if value is None else value for value in values], dtype=float)
    size = neighbours(len(x), most)
    if size == 1:
        return x, y
    starts = np.arange(0, len(x), size)
    counts = np.diff([*starts, len(x)])
    known = np.add.reduceat(np.isfinite(y).astype(int), starts)
    sums = np.add.reduceat(np.nan_to_num(y), starts)
    return np.add.reduceat(x, starts) / counts, np.where(known > 0, sums / np.maximum(known, 1), math.nan)


def neighbours(n: int, most: int = POINTS) -> int:
    """How many neighbouring records of ``n`` one drawn point stands for."""
    return math.ceil(n / most)


def plain(value: float) -> str:
    """A tick as one reads it: ``0.25``, ``1,200``, ``5e−5``."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        text = f"{value:.2e}"
        digits, power = text.split("e")
        digits = digits.rstrip("0").rstrip(".")
        text = f"{digits}e{int(power)}"
    elif size >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.6f}".rstrip("0").rstrip(".")
    return text.replace("-", "\N{MINUS SIGN}")


def _apart(steps: Sequence[float], width: float) -> list[float]:
    """The ends, and of the steps between them those that stand far enough from their neighbours to be read."""
    place = {step: math.log(step / steps[0]) / math.log(steps[-1] / steps[0]) * width for step in steps}
    kept = [steps[-1]]
    for step in reversed(steps[1:-1]):
        if min(place[kept[-1]] - place[step], place[step]) >= LEAST_APART:
            kept.append(step)
    return [steps[0], *kept[::-1]]


def _spoken(curve: Curve, over: str) -> str:
    known = [(step, value) for step, value in zip(curve.steps, curve.values) if value is not None]
    (first, start), (last, end) = known[0], known[-1]
    if first == last:
        return f"{curve.label} {start:.4g} at {over} {first:,.0f}"
    return f"{curve.label} from {start:.4g} at {over} {first:,.0f} to {end:.4g} at {over} {last:,.0f}"
