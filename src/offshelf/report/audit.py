"""The page of an ``audit`` run: the verdict and what to do first, then one section a check.

``results.json`` of such a run::

    {
      "title": str, "verb": "audit", "level": level, "verdict": [sentence],
      "todo": [{"check": key, "text": sentence}],      # the first three things to do
      "counts": {level: number of checks},
      "checks": [{"key", "title", "level", "sentence", "todo", ...}],  # and the rows behind
      "classes": [name], "data": {...}, "backbone": card, "cost": {...}
    }

A level is "alarm", "warning", "not judged" or "fine".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from offshelf.report.content import BAD_FILES, THUMBNAIL, cleaned
from offshelf.report.curves import Curve, line_chart
from offshelf.report.figures import interval_plot
from offshelf.report.templating import environment, own

NEEDED = ("checks", "verdict", "level", "data")
PICTURE_BYTES = 1_200_000  # of all pictures together; the page stays below 2 MB
CLUSTERS_LISTED, SUSPECTS_LISTED, CLASSES = 100, 200, 60
WIDE, NARROW = (1012, 300), (340, 240)


def render(results: Any, run: Any, folder: Path) -> str:
    """The page's HTML from what results.json and run.json of an ``audit`` run hold.

    Raises
    ------
    RunError
        When a part that every run must have is missing; the message names it.
    """
    results, run = cleaned(results, run, folder, NEEDED, "an audit")
    checks = {check["key"]: check for check in results["checks"]}
    left_out = fit_pictures(checks)
    page = environment()
    page.filters["options"] = options
    return page.get_template("audit.html.j2").render(
        title=results.get("title") or "offshelf audit",
        level=results["level"],
        verdict=results["verdict"],
        todo=results.get("todo") or [],
        counts=results.get("counts") or {},
        checks=checks,
        figures=_figures(checks),
        pictures_left_out=left_out,
        limits={"bad": BAD_FILES, "clusters": CLUSTERS_LISTED, "suspects": SUSPECTS_LISTED, "classes": CLASSES},
        data={"source": "not recorded", "n": None, "n_used": None, "groups": None, "notes": []} | results["data"],
        backbone={"name": "not recorded", "weights": None} | (results.get("backbone") or {}),
        cost=results.get("cost") or {},
        run={"command": "", "versions": {}, "seed": None, "machine": {}, "arguments": {}} | run,
        style=own("style.css"),
        script=own("script.js"),
    )


def options(text: str) -> Markup:
    """A sentence in which names of options such as ``--group-column`` are not broken at the end of a line."""
    return Markup(re.sub(r"--[a-z]+(?:-[a-z]+)*", r'<span class="value">\g<0></span>', str(escape(text))))  # noqa: S704


def fit_pictures(checks: dict[str, Any]) -> int:
    """Take away what is no picture, and pictures beyond the page's room; how many of the latter there were."""
    left, dropped = PICTURE_BYTES, 0
    pictures = [one for check in checks.values() for row in check.get("shown") or [] for one in row]
    pictures += [one for one in (checks.get("label_errors") or {}).get("suspects") or [] if one.get("thumbnail")]
    for one in pictures:
        image = one.get("thumbnail") or ""
        if not THUMBNAIL.fullmatch(image):
            one["thumbnail"] = None
            continue
        left -= len(image)
        if left < 0:
            one["thumbnail"] = None
            dropped += 1
    return dropped


def _figures(checks: dict[str, Any]) -> dict[str, Any]:
    """Figures by check, each for a screen and for a telephone; None where there is nothing to draw."""
    found: dict[str, Any] = {"shortcuts": None, "fingerprints": None, "more_labels": None}
    shortcuts, fingerprints = checks.get("shortcuts", {}), checks.get("fingerprints", {})
    if shortcuts.get("rows"):
        found["shortcuts"] = _plot([(row["what"], row["score"]) for row in shortcuts["rows"]], shortcuts["chance"], "s")
    if fingerprints.get("rows"):
        both = [
            ("size, format and compression", fingerprints["file"]),
            ("brightness and contrast", fingerprints["light"]),
        ]
        rows = both + [(f"{row['trait']} alone", row["score"]) for row in fingerprints["rows"]]
        found["fingerprints"] = _plot(rows, fingerprints["chance"], "f")
    points = checks.get("more_labels", {}).get("points") or []
    if len(points) > 1:
        cells = [point["score"] for point in points]
        bounds = [(cell["low"], cell["high"]) if cell["low"] is not None else None for cell in cells]
        curve = Curve("balanced accuracy", [point["n"] for point in points], [cell["value"] for cell in cells], bounds)
        found["more_labels"] = {
            kind: line_chart(
                [curve], "Balanced accuracy", f"l{kind[0]}-", size=size, over="labelled training picture", log=True
            )
            for kind, size in (("wide", WIDE), ("narrow", NARROW))
        }
    return found


def _plot(rows: list[tuple[str, dict[str, Any]]], chance: float, prefix: str) -> dict[str, Any]:
    told = [
        {"name": name, "tied": cell["low"] is not None and cell["low"] > chance, "cells": {"score": cell}}
        for name, cell in rows
    ]
    panel = {"key": "score", "label": "Balanced accuracy", "line": chance, "line_label": f"chance {chance:.3f}"}
    return {
        "wide": interval_plot(told, [panel], 860, f"{prefix}w-"),
        "narrow": interval_plot(told, [panel], 320, f"{prefix}n-"),
    }
