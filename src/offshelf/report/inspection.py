"""The page of an ``inspect`` run: what is degenerate, what the filters look like, and how far they are apart.

``results.json`` of such a run::

    {
      "title": str, "verb": "inspect", "kernel": int, "verdict": [sentence], "filters_a_layer": int or null,
      "networks": [{"label", "facts": {name: text}, "card": card, "no_filters": reason or null, "layers", "filters",
                    "degenerate", "flags": {flag: layers}, "judged", "sparsity", "relative_entropy", "orthogonality"}],
      "left_out": [{"label", "reason", "kind"}], "facts": [name],
      "layers": [{"network", "layer", "place", "depth", "kind", "outputs", "inputs", fact..., "n", "kernel",
                  "sparsity", "entropy", "clean_entropy", "threshold", "relative_entropy", "orthogonality", "largest",
                  "flags", "drawn"}],
      "basis": {"mean", "components", "ratios"}, "range": [low, high],
      "distributions": {network: {"n", "counts": (components, bins), "mean", "components", "ratios"}},
      "shifts": [{"key", "title", "names", "values", "sizes", "floors", "small"}],
      "axes": [{"axis", "points": [{"label", "value", "n"}], "median"}],
      "locality": {network: {"grid", "pictures", "reading", "uniform", "layers"}},
      "data": {"source", "fingerprint"}, "cost": {...}
    }

Networks without filters to look at have ``no_filters``; without any filters the parts from ``basis`` on are missing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from offshelf.report.content import cleaned
from offshelf.report.filter_figures import depth_chart, picture, ridge_plot, shift_plot, strip
from offshelf.report.locality import NETWORKS, locality_sections
from offshelf.report.templating import environment, own

NEEDED = ("networks", "layers", "verdict", "data", "kernel")
PICTURE_BYTES = 450_000  # of all drawings of filters together; the page stays below 2 MB
ROWS, CHARTS, RIDGES, MATRIX = 700, 30, 24, 30
SHADE = 46  # per cent of colour in the darkest cell, on which text can still be read


def render(results: Any, run: Any, folder: Path) -> str:
    """The page's HTML from what results.json and run.json of an ``inspect`` run hold.

    Raises
    ------
    RunError
        When a part that every run must have is missing; the message names it.
    """
    results, run = cleaned(results, run, folder, NEEDED, "an inspection")
    kernel = results["kernel"]
    short = short_names([one["label"] for one in results["networks"]])
    tables, rows_left, drawings_left = _tables(results)
    axes = results.get("axes") or []
    page = environment()
    page.filters["broken"] = broken
    return page.get_template("inspect.html.j2").render(
        results=results,
        short=short,
        title=results.get("title") or "offshelf inspect",
        verdict=results["verdict"],
        kernel=kernel,
        networks=results["networks"],
        facts=results.get("facts") or [],
        left_out=results.get("left_out") or [],
        tables=tables,
        rows_left_out=rows_left,
        drawings_left_out=drawings_left,
        basis=_basis(results, kernel),
        ridges=_ridges(results, short),
        ridges_left_out=max(0, len(results.get("distributions") or {}) - RIDGES),
        shifts=[_heat(one) for one in results.get("shifts") or []],
        axes=axes,
        shift_figure={"wide": shift_plot(axes, 900), "narrow": shift_plot(axes, 340)} if axes else None,
        matrix_most=MATRIX,
        locality=locality_sections(results.get("locality") or {}),
        locality_left_out=max(0, len(results.get("locality") or {}) - NETWORKS),
        data=results["data"],
        cost=results.get("cost") or {},
        run={"command": "", "versions": {}, "seed": None, "machine": {}, "arguments": {}} | run,
        style=own("style.css") + own("leaderboard.css") + own("inspect.css"),
        script=own("script.js"),
    )


def short_names(labels: list[str]) -> dict[str, str]:
    """Names for where room is scarce: the design alone, where no other network has the same."""
    designs = [label.partition(".")[0] for label in labels]
    return {label: design if designs.count(design) == 1 else label for label, design in zip(labels, designs)}


def broken(text: str) -> Markup:
    """A name that may be broken after its dots, underscores and strokes, and nowhere else where that suffices."""
    return Markup(re.sub(r"([._/-])", r"\1<wbr>", str(escape(text))))  # noqa: S704 (escaped)


def _tables(results: dict[str, Any]) -> tuple[list[dict[str, Any]], int, int]:
    """The layers by network, with drawings while there is room; how many rows and drawings had none.

    Layers with a flag come before others when there are more than the page can hold.
    """
    layers = results["layers"]
    chosen = sorted(range(len(layers)), key=lambda i: (not layers[i]["flags"], i))[:ROWS]
    kept = {i: dict(layers[i]) for i in sorted(chosen)}
    left, dropped = PICTURE_BYTES, 0
    for row in kept.values():
        image = strip(row.get("drawn") or "", results["kernel"])
        left -= len(image or "")
        row["picture"] = image if left >= 0 else None
        dropped += left < 0
    tables: list[dict[str, Any]] = []
    for one in results["networks"]:
        rows = [row for row in kept.values() if row["network"] == one["label"]]
        everything = [row for row in layers if row["network"] == one["label"]]
        chart = depth_chart(everything, one["label"]) if everything and len(tables) < CHARTS else None
        if everything:
            tables.append({"network": one, "rows": rows, "of": len(everything), "chart": chart})
    return tables, len(layers) - len(kept), dropped


def _basis(results: dict[str, Any], kernel: int) -> list[dict[str, Any]]:
    """Eigenimages of all filters together, then of each network."""
    if not results.get("basis"):
        return []
    several = {"all filters": results["basis"], **results["distributions"]}
    if len(results["distributions"]) == 1:
        several.pop("all filters")
    return [
        {
            "name": name,
            "whole": name == "all filters",
            "images": [_eigenimage(component, kernel) for component in one["components"]],
            "ratios": one["ratios"],
        }
        for name, one in several.items()
    ]


def _eigenimage(component: list[float], kernel: int) -> str:
    weights = np.array(component, dtype=float).reshape(1, kernel, kernel)
    return picture(weights / (np.abs(weights).max() or 1.0))


def _ridges(results: dict[str, Any], short: dict[str, str]) -> list[dict[str, Any]]:
    """A panel for each component of the common basis, at most nine."""
    found = list((results.get("distributions") or {}).items())[:RIDGES]
    if not found:
        return []
    low, high = results["range"]
    panels = []
    for place, ratio in enumerate(results["basis"]["ratios"][:9]):
        rows = [(short.get(name, name), one["counts"][place]) for name, one in found]
        title = f"Component {place + 1}"
        panels.append({"title": title, "ratio": ratio, "figure": ridge_plot(rows, low, high, title)})
    return panels


def _heat(matrix: dict[str, Any]) -> dict[str, Any]:
    """A matrix with the shade of each cell: by rank of its logarithm between the least and the largest shift."""
    names = matrix["names"][:MATRIX]
    values = np.array(matrix["values"], dtype=float)[: len(names), : len(names)]
    off = np.log10(np.maximum(values, 1e-6))
    pairs = off[~np.eye(len(names), dtype=bool)]
    low, high = float(pairs.min()), float(pairs.max())
    shades = np.clip((off - low) / ((high - low) or 1.0), 0, 1) * SHADE
    rows = [
        {
            "name": name,
            "size": matrix["sizes"][i],
            "floor": matrix["floors"][i],
            "few": name in matrix["small"],
            "cells": [
                {"value": float(values[i, j]), "shade": round(float(shades[i, j])), "self": i == j}
                for j in range(len(names))
            ],
        }
        for i, name in enumerate(names)
    ]
    return matrix | {"rows": rows, "shown": names, "left_out": len(matrix["names"]) - len(names)}
