"""The page of a ``pretrain`` run: what was done, what came of it, how it went, and how to use the product.

``results.json`` of such a run::

    {
      "title": str, "verb": "pretrain",
      "status": "complete" | "stopped" | "collapsed" | "diverged",
      "method": {"slug", "title", "paper"},
      "settings": {name: value},                       # of the method
      "data": {"source", "n", "n_used", "unlabelled", "groups", "bad_files": [{"path", "error"}], "duplicates", "notes",
               "fingerprint", "class_counts", ...},    # as of `offshelf.data.summary.Summary`
      "backbone": card,                                # the product, as of `offshelf.backbones.card.BackboneCard`
      "training": {"steps": done, "of_steps": planned, "batch_size", "epochs", "seed", "precision", "world", ...},
      "history": [{"step", "epoch", "loss", NAME: number, ..., "learning_rate", "samples_per_second"}],
      "probes": [{"step", "feature_rank", "feature_std", "drift",
                  "knn_accuracy", "linear_accuracy", "chance", "n", "n_groups", "n_train", "k"}],
      "pictures": [{"name", "images": [data URI, ...]}],
      "verdict": [sentence],
      "notes": [sentence],                             # what the loop did beyond the plan
      "cost": {NAME_seconds: s, "samples_per_second", "peak_memory_bytes" or "peak_memory_mb", ...}
    }

``probes``, ``pictures``, ``notes``, ``settings`` and single entries of a probe may be missing; numbers may be null.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from markupsafe import Markup

from offshelf.evaluate.intervals import wilson_interval
from offshelf.evaluate.pretraining_verdict import defined, independent_pictures, tenths
from offshelf.report.content import BAD_FILES, THUMBNAIL, cleaned
from offshelf.report.curves import POINTS, Curve, line_chart, neighbours
from offshelf.report.inline_svg import DASHES, SERIES
from offshelf.report.templating import environment, own

NEEDED = ("method", "data", "backbone", "training", "history", "verdict", "status")
PICTURE_BYTES = 1_100_000
SCALARS, PROBE_ROWS = 40, 200
WIDE, NARROW, SMALL = (1012, 300), (340, 240), (320, 200)
PROBED = {"knn_accuracy": "Nearest neighbours", "linear_accuracy": "Linear"}
MEASURED = {
    "feature_rank": ("Effective rank of the features", "How many directions the features use; 1 is a collapse."),
    "feature_std": ("Spread of the features", "1: all directions alike; 0: every picture looks the same."),
    "drift": ("Drift", "1 less the mean cosine to the features at the start; 0: not moved."),
}
STATUS = {
    "stopped": ("warning", "Stopped before its end", "The run stopped before the planned number of steps."),
    "collapsed": ("alarm", "The features collapsed", "The backbone no longer tells pictures apart. Do not use it."),
    "diverged": ("alarm", "The training diverged", "The loss was no longer a number. Do not rely on this backbone."),
}


def render(results: Any, run: Any, folder: Path) -> str:
    """The page's HTML from what results.json and run.json of a ``pretrain`` run hold.

    Raises
    ------
    RunError
        When a part that every run must have is missing; the message names it.
    """
    page = prepare(results, run, folder)
    return (
        environment()
        .get_template("pretraining.html.j2")
        .render(
            **page,
            charts=_charts(page),
            style=own("style.css") + own("pretraining.css"),
            script=own("script.js"),
        )
    )


def prepare(results: Any, run: Any, folder: Path) -> dict[str, Any]:
    """Everything the page shows but the figures: cleaned, completed, cut to size."""
    results, run = cleaned(results, run, folder, NEEDED, "a pretrain run")
    data = {"source": "not recorded", "n": None, "n_used": None, "unlabelled": None, "groups": None} | results["data"]
    for key in ("bad_files", "duplicates", "notes", "class_counts"):
        data[key] = data.get(key) or []
    run = {"command": "", "versions": {}, "seed": None, "machine": {}, "arguments": {}} | run
    probes = [probe for probe in results.get("probes") or [] if probe.get("step") is not None]
    pictures, left_out = shown_pictures(results.get("pictures") or [])
    place = where(run["command"], folder)
    return {
        "title": results.get("title") or "offshelf pretrain",
        "status": STATUS.get(results["status"]),
        "method": {"slug": "", "title": "", "paper": ""} | results["method"],
        "done": {"steps": None, "of_steps": None, "batch_size": None, "epochs": None} | results["training"],
        "settings": results.get("settings") or {},
        "training": results["training"],
        "backbone": {"name": "not recorded", "weights": None, "note": ""} | results["backbone"],
        "verdict": results["verdict"],
        "remarks": results.get("notes") or [],
        "history": results["history"],
        "probes": [probe | {"cells": cells(probe)} for probe in probes],
        "probe_rows": PROBE_ROWS,
        "probed": {key: label for key, label in PROBED.items() if any(defined(one.get(key)) for one in probes)},
        "measured": {key: text for key, text in MEASURED.items() if any(defined(one.get(key)) for one in probes)},
        "headline": headline(results["history"], probes),
        "pictures": pictures,
        "pictures_left_out": left_out,
        "data": data,
        "bad_files_shown": BAD_FILES,
        "cost": results.get("cost") or {},
        "run": run,
        "finetune": f"offshelf finetune {shlex.quote(data['source'])} --backbone {shlex.quote(place)}",
        "timm": f'timm.create_model("local-dir:{place}/model", pretrained=True)',
    }


def cells(probe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The accuracies of one probe with their Wilson intervals, from as many independent pictures as there are."""
    found = {}
    for key in PROBED:
        if defined(probe.get(key)):
            low, high = wilson_interval(probe[key], independent_pictures(probe))
            found[key] = {"value": probe[key], "low": low, "high": high, "n": probe["n"], "interval": "wilson"}
        else:
            found[key] = {"value": None, "low": None, "high": None, "n": probe.get("n") or 0, "interval": "none"}
    return found


def headline(history: list[dict[str, Any]], probes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The few large numbers: accuracies at the last step they were measured, else the rank, and the loss."""
    numbers: list[dict[str, Any]] = []
    for key, label in PROBED.items():
        asked = [probe for probe in probes if defined(probe.get(key))]
        if asked:
            end, start = asked[-1], asked[0]
            began = f"{start[key]:.3f} at step {start['step']:,}; " if start is not end else ""
            line = f"{began}n = {end['n']:,}, commonest class {end['chance']:.3f}"
            numbers.append({"what": f"{label}, accuracy", "value": f"{end[key]:.3f}", "cell": cells(end)[key]})
            numbers[-1]["line"] = line
    ranks = [probe for probe in probes if defined(probe.get("feature_rank"))]
    if ranks:
        began = f"{ranks[0]['feature_rank']:.1f} at step {ranks[0]['step']:,}" if len(ranks) > 1 else "measured once"
        numbers.append({"what": "Effective rank", "value": f"{ranks[-1]['feature_rank']:.1f}", "line": began})
    losses = [record["loss"] for record in history if defined(record.get("loss"))]
    if losses:
        first, last, size = tenths(losses)
        began = f"{first:.4g} in the first tenth; " if len(losses) > 1 else ""
        numbers.append({"what": "Loss", "value": f"{last:.4g}", "line": f"{began}mean of {size} records"})
    return numbers


def shown_pictures(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Named rows of pictures cut to the same, largest number of columns that fits; and how many columns do not.

    A row holding something that is no picture is left out.
    """
    rows = [row for row in rows if row.get("images") and all(map(THUMBNAIL.fullmatch, row["images"]))]
    columns = min((len(row["images"]) for row in rows), default=0)
    left, fitting = PICTURE_BYTES, 0
    for column in range(columns):
        left -= sum(len(row["images"][column]) for row in rows)
        if left < 0:
            break
        fitting += 1
    if not fitting:
        return [], columns
    return [{"name": row["name"], "images": row["images"][:fitting]} for row in rows], columns - fitting


def where(command: str, folder: Path) -> str:
    """The run's folder as whoever gave the command wrote it; its bare name when the command does not tell."""
    if not command.startswith("offshelf pretrain"):
        return folder.name
    words = shlex.split(command)
    for word, following in zip(words, [*words[1:], ""]):
        if word == "--out":
            return following
        if word.startswith("--out="):
            return word.removeprefix("--out=")
    return f"runs/{folder.name}"


def _charts(page: dict[str, Any]) -> dict[str, Any]:
    """All curves: ``loss`` and ``probes`` twice (wide and narrow), and lists of small ones with title and note."""
    history, probes = page["history"], page["probes"]
    loss = _curve("loss", history, "loss")
    scalars = {name: None for record in history for name, value in record.items() if _number(value)}
    named = [name for name in scalars if name not in ("step", "epoch", "loss", "learning_rate", "samples_per_second")]
    small = [(name, _words(name), "") for name in named[:SCALARS]]
    small += [("learning_rate", "Learning rate", ""), ("samples_per_second", "Pictures a second", "")]
    accuracies = [_accuracy(label, key, probes) for key, label in page["probed"].items()]
    chance = next((probe["chance"] for probe in reversed(probes) if defined(probe.get("chance"))), None)
    return {
        "loss": _twice([loss], "Loss", "l") if loss else None,
        "records_a_point": neighbours(len(history), POINTS),
        "scalars": _small(history, small, "s"),
        "scalars_left_out": max(0, len(named) - SCALARS),
        "accuracy": _twice(
            accuracies, "Accuracy of the probes", "p", line=chance, line_label=f"commonest class {chance:.3f}"
        )
        if accuracies and chance is not None
        else None,
        "legend": [
            {"label": curve.label, "colour": SERIES[i], "dashes": " ".join(f"{length:g}" for length in DASHES[i])}
            for i, curve in enumerate(accuracies)
        ]
        if len(accuracies) > 1
        else [],
        "features": _small(probes, [(key, *text) for key, text in page["measured"].items()], "f"),
    }


def _accuracy(label: str, key: str, probes: list[dict[str, Any]]) -> Curve:
    """One probe's accuracy over the steps, with its intervals."""
    found = [probe["cells"][key] for probe in probes]
    bands = [(cell["low"], cell["high"]) if defined(cell["low"]) else None for cell in found]
    return Curve(label, [probe["step"] for probe in probes], [cell["value"] for cell in found], bands)


def _twice(curves: list[Curve], title: str, prefix: str, **line: Any) -> dict[str, Markup]:
    """For a screen or paper, and for a telephone; the style sheet shows one."""
    return {
        "wide": line_chart(curves, title, f"{prefix}w-", size=WIDE, **line),
        "narrow": line_chart(curves, title, f"{prefix}n-", size=NARROW, **line),
    }


def _small(records: list[dict[str, Any]], wanted: list[tuple[str, str, str]], prefix: str) -> list[dict[str, Any]]:
    charts = []
    for place, (key, title, note) in enumerate(wanted):
        curve = _curve(title.lower(), records, key)
        if curve:
            chart = line_chart([curve], title, f"{prefix}{place}-", size=SMALL)
            charts.append({"title": title, "note": note, "figure": chart})
    return charts


def _curve(label: str, records: list[dict[str, Any]], key: str) -> Curve | None:
    """The records' numbers under ``key`` over their steps; None where there are none."""
    values = [record.get(key) if _number(record.get(key)) else None for record in records]
    if not any(defined(value) for value in values):
        return None
    return Curve(label, [record["step"] for record in records], values)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]
