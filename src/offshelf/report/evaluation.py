"""The page of an ``evaluate`` run: what a finished classifier is worth on newly labelled pictures.

``results.json`` of such a run::

    {
      "title": str, "verb": "evaluate", "classes": [name], "verdict": [sentence], "protocol": {...}, "cost": {...},
      "data": {...},                                   # as of `fit`
      "evaluated": {"run", "verb", "arm", "source", "fingerprint", "balanced_accuracy": cell or null},
      # one label a picture: as of an arm of `fit`, with "baselines"
      "metrics", "per_class", "confusion", "roc", "calibration", "baselines", "primary_metric",
      # sets of valid labels: as of `offshelf.evaluate.multilabel_imagenet`
      "multilabel": {"n", "empty", "label_counts": {k: n}, "n_min", "averaged": [k], "rows": [{"metric", "k", cell}]},
      "against": {"data", "multilabel", "drops": {metric: cell}, "decomposition": {metric: {...}}}
    }
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offshelf.errors import RunError
from offshelf.report import content, figures
from offshelf.report.templating import environment, own

NEEDED = ("classes", "data", "evaluated", "verdict")
SHARED_METRICS = {
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "macro_auroc": "Macro AUROC",
    "macro_average_precision": "Macro average precision",
    "log_loss": "Log loss",
    "brier": "Brier score",
    "calibration_error": "Calibration error",
}
SET_METRICS = {
    "top_1": ("Top-1", "first answer against the one label"),
    "real": ("ReaL", "first answer among the valid labels"),
    "variable_top_k": ("Variable top-k", "share of the first k answers that is valid, k labels being valid"),
    "strict": ("Strict", "first k answers are the k valid labels"),
    "asma": ("ASMA", "mean of variable top-k over the subgroups, each counted alike"),
}


def render(results: Any, run: Any, folder: Path) -> str:
    """The page's HTML from what results.json and run.json of an ``evaluate`` run hold.

    Raises
    ------
    RunError
        When a part that every run must have is missing; the message names it.
    """
    page = prepare(results, run, folder)
    return (
        environment().get_template("evaluation.html.j2").render(**page, style=own("style.css"), script=own("script.js"))
    )


def prepare(results: Any, run: Any, folder: Path) -> dict[str, Any]:
    """Everything the page shows: cleaned, completed, cut to size, with its figures."""
    results, run = content.cleaned(results, run, folder, NEEDED, "an evaluate run")
    if "metrics" not in results and "multilabel" not in results:
        raise RunError(
            f"{folder / 'results.json'}: neither 'metrics' nor 'multilabel'; expected the results of an evaluate run. "
            "Run it again."
        )
    evaluated = {"run": "", "verb": "", "arm": "", "source": "not recorded", "balanced_accuracy": None}
    page = {
        "title": results.get("title") or "offshelf evaluate",
        "verdict": results["verdict"],
        "classes": results["classes"],
        "evaluated": evaluated | results["evaluated"],
        "data": _data(results["data"]),
        "shown": {"bad_files": content.BAD_FILES, "classes": content.CLASSES},
        "protocol": results.get("protocol") or {},
        "cost": results.get("cost") or {},
        "run": {"command": "", "versions": {}, "seed": None, "machine": {}, "arguments": {}} | run,
        "one": None,
        "sets": [],
        "drop": None,
    }
    if "multilabel" in results:
        page["sets"] = [_label_sets(results["data"]["source"], results["multilabel"], 0)]
        against = results.get("against")
        if against:
            other = _label_sets(against["data"]["source"], against["multilabel"], 1)
            page["sets"].append(other | {"data": _data(against["data"])})
            page["drop"] = _drop(against)
        page["set_metrics"] = {
            key: text for key, text in SET_METRICS.items() if page["sets"][0]["cells"][key]["value"] is not None
        }
        page["headline"] = _set_headline(page)
    else:
        page["one"] = _one_label(results)
        page["headline"] = _headline(page["one"], results["baselines"])
    return page


def _data(data: dict[str, Any]) -> dict[str, Any]:
    found = {"unlabelled": 0, "groups": None, "fingerprint": None} | data
    for key in ("bad_files", "duplicates", "notes", "class_counts"):
        found[key] = found.get(key) or ([] if key != "class_counts" else {})
    return found


def _one_label(results: dict[str, Any]) -> dict[str, Any]:
    """Metrics, classes (those of the lowest F1 where there are many), and the two figures."""
    base, name = results["baselines"], results["evaluated"]["arm"]
    guess = {"balanced_accuracy": base["chance"], "accuracy": base["majority"], "macro_auroc": 0.5}
    rows = sorted(
        results["per_class"].items(), key=lambda item: (item[1]["f1"]["value"] is None, item[1]["f1"]["value"])
    )
    kept = dict(rows[: content.CLASSES]) if len(rows) > content.CLASSES else results["per_class"]
    return {
        "metrics": [
            {"label": label, "cell": results["metrics"][key], "guess": guess.get(key)}
            for key, label in SHARED_METRICS.items()
            if key in results["metrics"]
        ],
        "majority_class": base["majority_class"],
        "per_class": kept,
        "n": results["metrics"]["accuracy"]["n"],
        "confusion": figures.confusion_matrix(results["confusion"], results["classes"], name, "c-"),
        "reliability": figures.reliability_diagram(results["calibration"], name, "k-")
        if results["calibration"]
        else None,
    }


def _headline(one: dict[str, Any], base: dict[str, Any]) -> list[dict[str, Any]]:
    beside = {
        "Balanced accuracy": f"chance {base['chance']:.3f}",
        "Accuracy": f"commonest class {base['majority']:.3f}",
    }
    return [
        {"what": row["label"], "cell": row["cell"], "line": f"n = {row['cell']['n']:,}, {beside[row['label']]}"}
        for row in one["metrics"]
        if row["label"] in beside
    ]


def _label_sets(name: str, told: dict[str, Any], place: int) -> dict[str, Any]:
    """The numbers over all pictures, those of each subgroup, and the figure of the subgroups twice."""
    cells = {row["metric"]: row for row in told["rows"] if row["k"] is None}
    groups = [
        {
            "k": int(k),
            "n": size,
            "share": size / told["n"],
            "averaged": int(k) in told["averaged"],
            "cells": {row["metric"]: row for row in told["rows"] if row["k"] == int(k)},
        }
        for k, size in told["label_counts"].items()
    ]
    return {
        "name": name,
        "n": told["n"],
        "empty": told["empty"],
        "several": told["n"] - told["label_counts"].get("1", 0),
        "n_min": told["n_min"],
        "cells": cells,
        "groups": groups,
        "plots": _subgroup_plots(groups, place),
        "data": None,
    }


def _subgroup_plots(groups: list[dict[str, Any]], place: int) -> dict[str, Any]:
    names = [key for key in ("real", "variable_top_k") if groups[0]["cells"][key]["value"] is not None]
    panels = [{"key": key, "label": SET_METRICS[key][0], "line": None, "line_label": ""} for key in names]
    rows = [
        {
            "name": f"{one['k']} valid {'label' if one['k'] == 1 else 'labels'}, n = {one['n']:,}",
            "tied": one["averaged"],
            "cells": one["cells"],
        }
        for one in groups
    ]
    return {
        "wide": figures.interval_plot(rows, panels, 1012, f"sw{place}-", "subgroups of equally many valid labels"),
        "narrow": figures.interval_plot(rows, panels, 320, f"sn{place}-", "subgroups of equally many valid labels"),
    }


def _set_headline(page: dict[str, Any]) -> list[dict[str, Any]]:
    first = page["sets"][0]
    found = []
    for key in ("top_1", "real", "variable_top_k"):
        if key in page["set_metrics"]:
            cell = first["cells"][key]
            found.append({"what": SET_METRICS[key][0], "cell": cell, "line": f"n = {cell['n']:,}"})
    return found


def _drop(against: dict[str, Any]) -> dict[str, Any]:
    """The drops of all metrics, and the split of those that have one."""
    return {
        "drops": {key: cell for key, cell in against["drops"].items() if cell["value"] is not None},
        "splits": against["decomposition"],
        "first": next(iter(against["decomposition"].values())),
    }
