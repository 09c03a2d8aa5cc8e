"""From a run folder to report.html: one file that opens offline, in any browser, in light and dark, and on paper.

Equal results give equal bytes: no clock time, no random id, and nothing read that changes when a run is sealed. So a
report may be made before the seal and made again after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from offshelf.engine.files import read_json, write_atomic
from offshelf.report import (
    audit,
    content,
    design,
    evaluation,
    explanations,
    figures,
    inspection,
    label_curve,
    leaderboard,
    pretraining,
    race,
)
from offshelf.report.inline_svg import DASHES, MARKERS, SERIES
from offshelf.report.leaderboard_csv import write_csv
from offshelf.report.templating import environment, own


def _study(results: dict[str, Any], run: dict[str, Any], folder: Path) -> str:
    """The page that `fit`, `finetune` and `screen` share."""
    return render(content.prepare(results, run, folder))


PAGES: dict[str, Callable[[dict[str, Any], dict[str, Any], Path], str]] = {
    "audit": audit.render,
    "battle": leaderboard.render,
    "design": design.render,
    "evaluate": evaluation.render,
    "explain": explanations.render,
    "inspect": inspection.render,
    "pretrain": pretraining.render,
    "race": race.render,
}
"""Verbs with a page of their own."""


def build_report(run_folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` into a run folder from its ``run.json`` and ``results.json``; nothing else is read.

    Parameters
    ----------
    run_folder
        Folder of a run of a verb that has results, which are written. A battle gets its numbers as ``leaderboard.csv``
        too.

    Returns
    -------
    Path
        The report, below 2 MB, written whole or not at all.

    Raises
    ------
    RunError
        When one of the two files is missing or damaged; the message names the file.
    """
    folder = Path(run_folder)
    results, run = read_json(folder / "results.json"), read_json(folder / "run.json")
    verb = results.get("verb") if isinstance(results, dict) else None
    text = PAGES.get(str(verb), _study)(results, run, folder)
    if verb == "battle":
        write_csv(results, folder / "leaderboard.csv")
    return write_atomic(folder / "report.html", text)


def render(page: dict[str, Any]) -> str:
    """The page's HTML from what `offshelf.report.content.prepare` gives."""
    details = _arms_in_full(page)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            **page,
            plots=_interval_plots(page),
            plotted=min(len(page["arms"]), content.ARMS_IN_PLOT),
            details=details,
            details_left_out=len(page["arms"]) - len(details),
            map_figure=_map_figure(page),
            legend=_legend(page),
            curve=label_curve.figures_of(
                page["label_efficiency"], {metric.key: metric.label for metric in page["metrics"]}
            ),
            training=label_curve.training_chart(page["history"]),
            style=own("style.css"),
            script=own("script.js"),
        )
    )


def _interval_plots(page: dict[str, Any]) -> dict[str, Markup]:
    """The plot twice: side by side for a screen or paper, stacked for a telephone; the style sheet shows one."""
    panels = [
        {
            "key": one.key,
            "label": one.label,
            "line": one.line,
            "line_label": f"{one.line_label} {one.line:.3f}" if one.line is not None else "",
        }
        for one in page["metrics"]
        if one is page["primary"] or one.key == ("macro_average_precision" if page["multi_label"] else "accuracy")
    ]
    leader = page["best"]["tie_group"]
    rows = [
        {
            "name": arm["name"],
            "tied": arm["name"] == page["best"]["name"] or (leader is not None and arm["tie_group"] == leader),
            "cells": arm["metrics"],
        }
        for arm in page["arms"][: content.ARMS_IN_PLOT]
    ]
    return {
        "wide": figures.interval_plot(rows, panels, 1012, "iw-"),
        "narrow": figures.interval_plot(rows, panels, 320, "in-"),
    }


def _arms_in_full(page: dict[str, Any]) -> list[dict[str, Any]]:
    """The best arm and the next ones with their figures, until ten are there or the page would grow too large."""
    others = [arm for arm in page["arms"] if arm["name"] != page["best"]["name"]]
    shown: list[dict[str, Any]] = []
    left = content.DETAIL_BYTES
    for place, arm in enumerate([page["best"], *others][: content.ARMS_IN_FULL]):
        curves = content.curves(arm)
        detail: dict[str, Any] = {
            "arm": arm,
            "rows": content.class_rows(arm),
            "curves": [curve | {"colour": figures.signs(i)[0], "dashes": _dashes(i)} for i, curve in enumerate(curves)],
            "confusions": content.confusions(arm, page["classes"])
            if len(page["classes"]) > figures.CELLS_WITH_NUMBERS
            else [],
            "confusion": None,
            "roc": None,
            "reliability": None,
        }
        if arm["confusion"]:
            detail["confusion"] = figures.confusion_matrix(arm["confusion"], page["classes"], arm["name"], f"c{place}-")
        if curves:
            detail["roc"] = figures.roc_curves(curves, arm["name"], f"r{place}-")
        if arm["calibration"]:
            detail["reliability"] = figures.reliability_diagram(arm["calibration"], arm["name"], f"k{place}-")
        left -= sum(len(detail[key] or "") for key in ("confusion", "roc", "reliability")) + 900 * len(detail["rows"])
        if shown and left < 0:  # the best arm is always there
            break
        shown.append(detail)
    return shown


def _dashes(index: int) -> str:
    return " ".join(f"{length:g}" for length in DASHES[index % len(DASHES)])


def _map_figure(page: dict[str, Any]) -> Markup | None:
    spots = page["map"]
    if not spots or not spots.get("x"):
        return None
    return figures.feature_map(spots["x"], spots["y"], spots["label"], spots.get("explained") or [], "m-")


def _legend(page: dict[str, Any]) -> list[dict[str, Any]]:
    """Classes on the map with their marker, colour and number of points; ``path`` None: no label."""
    if not page["map"]:
        return []
    labels = [-1 if one is None else one for one in page["map"].get("label") or []]
    return [
        {
            "name": page["classes"][value] if value >= 0 else "no label",
            "path": MARKERS[value % len(MARKERS)][1] if value >= 0 else None,
            "colour": SERIES[value % len(SERIES)],
            "n": labels.count(value),
        }
        for value in sorted(set(labels))
    ]
