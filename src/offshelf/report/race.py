"""The page of a ``race`` run: who learns sooner and ends better, the curves behind it, and the residual streams.

``results.json`` of such a run holds what `offshelf.evaluate.convergence_race.convergence_race` gives, and::

    {
      "title": str, "verb": "race", "verdict": [sentence], "notes": [sentence], "classes": [name], "chance": share,
      "data": {..., "train": n, "test": n, "held_out": words}, "backbones": [card], "protocol": {...}, "cost": {...}
    }
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offshelf.report.content import cleaned
from offshelf.report.curves import Curve, line_chart
from offshelf.report.figures import interval_plot, signs
from offshelf.report.templating import environment, own

NEEDED = ("arms", "pairs", "thresholds", "verdict", "data", "seeds")
WIDE, NARROW, SMALL = (1012, 340), (340, 260), (480, 270)


def render(results: Any, run: Any, folder: Path) -> str:
    """The page's HTML from what results.json and run.json of a ``race`` run hold.

    Raises
    ------
    RunError
        When a part that every run must have is missing; the message names it.
    """
    results, run = cleaned(results, run, folder, NEEDED, "a race")
    return (
        environment()
        .get_template("race.html.j2")
        .render(
            title=results.get("title") or "offshelf race",
            verdict=results["verdict"],
            notes=results.get("notes") or [],
            arms=results["arms"],
            pairs=results["pairs"],
            thresholds=results["thresholds"],
            seeds=results["seeds"],
            steps=results.get("steps"),
            smoothing=results.get("smoothing"),
            chance=results.get("chance"),
            charts=_charts(results),
            data={"source": "not recorded", "n": None, "n_used": None, "groups": None, "notes": [], "train": None,
                  "test": None, "held_out": ""} | results["data"],
            protocol=results.get("protocol") or {},
            backbones=results.get("backbones") or [],
            cost=results.get("cost") or {},
            run={"command": "", "versions": {}, "seed": None, "machine": {}, "arguments": {}} | run,
            style=own("style.css"),
            script=own("script.js"),
        )
    )  # fmt: skip


def _charts(results: dict[str, Any]) -> dict[str, Any]:
    arms = results["arms"]
    limits = results["thresholds"]
    line = {"line": min(limits), "line_label": f"threshold {min(limits):g}"} if limits else {}
    curves = [curve for place, arm in enumerate(arms) if (curve := _loss(arm, place)) is not None]
    streams = [(place, arm) for place, arm in enumerate(arms) if arm.get("stream")]
    return {
        "loss": _twice(curves, "Training loss", "l", **line) if curves else None,
        "legend": legend(curves),
        "accuracy": _accuracy(results),
        "streams": [
            {
                "title": f"At the {when}",
                "figure": line_chart(
                    [_stream(arm, when, place) for place, arm in streams], f"RMS of the residual stream at the {when}",
                    f"s{when}-", size=SMALL, over="block",
                ),
            }
            for when in ("start", "end")
            if streams and all(value is not None for _, arm in streams for value in arm["stream"][when])
        ],
        "stream_legend": legend([_stream(arm, "start", place) for place, arm in streams]),
    }  # fmt: skip


def legend(curves: list[Curve]) -> list[dict[str, Any]]:
    """Name, colour and dashes of each curve; a network has the same in every chart."""
    marks = [signs(curve.place or 0) for curve in curves]
    return [
        {"label": curve.label, "colour": colour, "dashes": " ".join(f"{length:g}" for length in dashes)}
        for curve, (colour, dashes) in zip(curves, marks)
    ]


def _loss(arm: dict[str, Any], place: int) -> Curve | None:
    """The smoothed loss from the first step that has one, with the range over the seeds; None without any."""
    curve = arm["curve"]
    known = [step for step, value in enumerate(curve["mean"]) if value is not None]
    if not known:
        return None
    rows = slice(known[0], known[-1] + 1)
    bounds = list(zip(curve["low"][rows], curve["high"][rows]))
    return Curve(arm["name"], curve["steps"][rows], curve["mean"][rows], bounds, place)


def _stream(arm: dict[str, Any], when: str, place: int) -> Curve:
    values = arm["stream"][when]
    return Curve(arm["name"], list(range(len(values))), values, place=place)


def _twice(curves: list[Curve], title: str, prefix: str, **line: Any) -> dict[str, Any]:
    return {
        "wide": line_chart(curves, title, f"{prefix}w-", size=WIDE, **line),
        "narrow": line_chart(curves, title, f"{prefix}n-", size=NARROW, **line),
    }


def _accuracy(results: dict[str, Any]) -> dict[str, Any]:
    arms, chance = results["arms"], results.get("chance")
    best = max((arm["accuracy"]["value"] or 0.0) for arm in arms)
    rows = [
        {"name": arm["name"], "tied": arm["accuracy"]["value"] == best, "cells": {"accuracy": arm["accuracy"]}}
        for arm in arms
    ]
    label = "" if chance is None else f"commonest class {chance:.3f}"
    panel = {"key": "accuracy", "label": "Accuracy on held-out pictures", "line": chance, "line_label": label}
    return {
        "wide": interval_plot(rows, [panel], 860, "aw-", "networks"),
        "narrow": interval_plot(rows, [panel], 340, "an-", "networks"),
    }
