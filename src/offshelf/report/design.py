"""The page of a ``design`` run: which filters did best, by how much, how they were learned and what they look like.

``results.json`` of such a run is what `offshelf.evaluate.filter_results.study_results` gives, with the cost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offshelf.report.content import BAD_FILES, THUMBNAIL, cleaned
from offshelf.report.curves import Curve, line_chart
from offshelf.report.figures import interval_plot, shorten, signs
from offshelf.report.templating import environment, own

NEEDED = ("study", "arms", "best", "baseline", "verdict", "data")
PICTURE_BYTES = 1_000_000  # of all drawings together; the page stays below 2 MB
WIDE, NARROW = (1012, 320), (340, 260)
CURVES = 8  # drawn at most; more cannot be told apart by their colours
NAME = 32  # letters of an arm's name in the plot
TITLES = {
    "initialisation": "How the filters begin",
    "size": "Size of the kernels",
    "shape": "Shape of the kernels",
    "number": "Number of filters in the first layer",
}


def render(results: Any, run: Any, folder: Path) -> str:
    """The page's HTML from what results.json and run.json of a ``design`` run hold.

    Raises
    ------
    RunError
        When a part that every run must have is missing; the message names it.
    """
    results, run = cleaned(results, run, folder, NEEDED, "a study of filters")
    arms = ranked(results)
    left_out = fit_drawings(arms)
    shown = [arm for arm in arms if arm["curve"]["value"]][:CURVES]
    return (
        environment()
        .get_template("design.html.j2")
        .render(
            results,
            arms=arms,
            parts_n=results.get("parts") or {},
            tied=_tied(results),
            study_title=TITLES.get(results["study"], results["study"]),
            plot=_plot(arms, _tied(results), results["chance"]),
            curves=_curves(shown, results["chance"]),
            legend=[{"label": arm["name"], **_sign(place)} for place, arm in enumerate(shown)],
            curves_left_out=len(arms) - len(shown),
            drawings_left_out=left_out,
            bad_files_shown=BAD_FILES,
            run={"command": "", "versions": {}, "seed": None, "machine": {}, "arguments": {}} | run,
            use=f"offshelf finetune DATA --backbone {folder}",
            style=own("style.css"),
            more_style=own("design.css"),
            script=own("script.js"),
        )
    )


def ranked(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The arms, best on the test part first."""
    return sorted(results["arms"], key=lambda arm: -(arm["last"]["value"] or 0.0))


def fit_drawings(arms: list[dict[str, Any]]) -> int:
    """Take away what is no picture, and drawings beyond the page's room; how many of the latter there were."""
    left, dropped = PICTURE_BYTES, 0
    for arm in arms:
        for layer in arm["layers"]:
            for when in ("before", "after"):
                image = layer["pictures"].get(when) or ""
                if not THUMBNAIL.fullmatch(image):
                    layer["pictures"][when] = None
                    continue
                left -= len(image)
                if left < 0:
                    layer["pictures"][when] = None
                    dropped += 1
    return dropped


def _tied(results: dict[str, Any]) -> set[str]:
    """The arms that cannot be told apart from the first."""
    groups = results.get("tie_groups") or [[]]
    return set(groups[0])


def _plot(arms: list[dict[str, Any]], tied: set[str], chance: float) -> dict[str, Any]:
    rows = [{"name": shorten(arm["name"], NAME), "tied": arm["name"] in tied, "cells": arm} for arm in arms]
    line = {"line": chance, "line_label": f"chance {chance:.3f}"}
    panels = [
        {"key": "last", "label": "Balanced accuracy at the end"} | line,
        {"key": "first", "label": "After one epoch"} | line,
    ]
    return {
        "wide": interval_plot(rows, panels, WIDE[0], "pw-"),
        "narrow": interval_plot(rows, panels, NARROW[0], "pn-"),
    }


def _curves(arms: list[dict[str, Any]], chance: float) -> dict[str, Any] | None:
    if not arms:
        return None
    lines = []
    for arm in arms:
        told = arm["curve"]
        bounds = [(a, b) if a is not None and b is not None else None for a, b in zip(told["low"], told["high"])]
        lines.append(Curve(arm["name"], list(range(1, len(told["value"]) + 1)), told["value"], bounds))
    return {
        kind: line_chart(
            lines,
            "Balanced accuracy on the validation part",
            f"c{kind[0]}-",
            size=size,
            line=chance,
            line_label=f"chance {chance:.3f}",
            over="epoch",
        )
        for kind, size in (("wide", WIDE), ("narrow", NARROW))
    }


def _sign(place: int) -> dict[str, str]:
    colour, dashes = signs(place)
    return {"colour": colour, "dashes": " ".join(f"{length:g}" for length in dashes)}
