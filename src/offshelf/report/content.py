"""From results.json and run.json to what the page shows: cleaned, completed, ranked, cut to size.

A part that a run does not have (no comparisons with one arm, no controls after fine-tuning) is None or empty here, and
the page says so in words. A part that every run must have is asked for by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from offshelf.engine.files import finite
from offshelf.errors import RunError

# Shown at most; the page says how many there are in all.
MISTAKES, BAD_FILES, DUPLICATES, CLASSES, COMPARISONS = 200, 200, 100, 200, 200
ARMS_IN_FULL, ARMS_IN_PLOT, CURVES = 10, 30, 10
THUMBNAIL_BYTES, DETAIL_BYTES, SALIENCY_BYTES = 950_000, 400_000, 200_000  # together well below the promised 2 MB
THUMBNAIL = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+=*")
EMPTY_CELL = {"value": None, "low": None, "high": None, "n": 0, "interval": "none"}
LEVELS = {"alarm": 0, "warning": 1, "fine": 2}


class Metric(NamedTuple):
    """A column of the arms' table: what it is called, which way is better, and what guessing reaches."""

    key: str
    label: str
    higher: bool
    line: float | None
    line_label: str


class PerClass(NamedTuple):
    """A column of the per-class table."""

    key: str
    label: str
    line: str


def prepare(results: Any, run: Any, folder: Path) -> dict[str, Any]:
    """Everything the page shows but the figures.

    Parameters
    ----------
    results, run
        What results.json and run.json hold.
    folder
        The run, named in errors.

    Raises
    ------
    RunError
        When a part that every run must have is missing.
    """
    results, run = printable(finite(results)), printable(finite(run))
    source = folder / "results.json"
    for key in ("classes", "data", "arms", "best", "baselines"):
        if not isinstance(results, dict) or not results.get(key):
            raise RunError(
                f"{source}: nothing under {key!r}; expected the results of a complete fit or finetune. Run it again."
            )
    if results["best"] not in [arm["name"] for arm in results["arms"]]:
        raise RunError(
            f"{source}: the best arm {results['best']!r} is not among the arms. The file is damaged; run again."
        )
    primary = results.get("primary_metric") or "balanced_accuracy"
    metrics = metric_columns(results, primary)
    arms = ranked(results, metrics)
    best = next(arm for arm in arms if arm["name"] == results["best"])
    controls = [control for control in _controls(results) if control["level"] != "fine"]
    mistakes = results.get("mistakes") or []
    data = {"unlabelled": 0, "groups": None, "fingerprint": None} | results["data"]
    absent: dict[str, Any] = {"splits": {}, "bad_files": [], "duplicates": [], "notes": [], "class_counts": {}}
    for key, empty in absent.items():
        data[key] = data.get(key) or empty
    verb = results.get("verb") or run.get("verb") or "fit"
    return {
        "title": results.get("title") or f"offshelf {verb}",
        "verb": verb,
        "classes": results["classes"],
        "verdict": [
            text
            for text in results.get("verdict") or []
            if text not in [control.get("sentence") for control in controls]
        ],
        "selected": corrected(results.get("selected")),
        "baselines": results["baselines"],
        "metrics": metrics,
        "primary": metrics[0],
        "per_class": per_class_columns(results),
        "multi_label": results.get("multi_label"),
        "label_efficiency": results.get("label_efficiency"),
        "history": results.get("history") or [],
        "trained": results.get("trained") or {},
        "arms": arms,
        "best": best,
        "tied": len(arms) > 1 and any(arm["tie_group"] for arm in arms),
        "comparisons": foremost(results.get("comparisons") or [], results["best"]),
        "comparisons_in_all": len(results.get("comparisons") or []),
        "controls": {"blank_centre": None, "source": None} | (results.get("controls") or {}),
        "raised": sorted(controls, key=lambda control: LEVELS[control["level"]]),
        "checks_run": len(_controls(results)),
        "mistakes": with_thumbnails(mistakes[:MISTAKES]),
        "mistakes_in_all": len(mistakes),
        "saliency": pictured(results.get("saliency") or []),
        "looked": {"method": None, "reason": None, "shows": "", "caution": "", "signed": False}
        | (results.get("looked") or {}),
        "map": results.get("map"),
        "data": data,
        "shown": {"bad_files": BAD_FILES, "duplicates": DUPLICATES, "classes": CLASSES},
        "backbones": [
            {"route": None, "cosine_median": None, "cosine_min": None} | card for card in results.get("backbones") or []
        ],
        "cost": results.get("cost") or {},
        "protocol": results.get("protocol") or {},
        "run": {"command": "", "versions": {}, "seed": None, "machine": {}, "arguments": {}} | run,
    }


def cleaned(
    results: Any, run: Any, folder: Path, needed: Sequence[str], what: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What results.json and run.json hold, fit to be printed, once every part is there that a run must have.

    Raises
    ------
    RunError
        When one of ``needed`` is missing; the message names it and ``what`` was expected, such as "an audit".
    """
    results, run = printable(finite(results)), printable(finite(run))
    for key in needed:
        if not isinstance(results, dict) or results.get(key) is None:
            raise RunError(
                f"{folder / 'results.json'}: nothing under {key!r}; expected the results of {what}. Run it again."
            )
    return results, run


def printable(value: Any) -> Any:
    """The same nested value with characters that neither HTML nor UTF-8 can carry replaced by a visible sign."""
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [printable(item) for item in value]
    if isinstance(value, str):
        return re.sub(
            "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", value
        )
    return value


def metric_columns(results: dict[str, Any], primary: str) -> list[Metric]:
    """The metrics that the arms carry, the primary one first, each with what guessing reaches.

    Notes
    -----
    A random order has an AUROC of 1/2 and an average precision equal to the class's share, hence ``chance`` (1 over the
    number of tested classes) on average over the classes. A uniform guess over K classes has a log loss of ``ln K`` and
    a Brier score of ``1 - 1/K``, halved with two classes as in `offshelf.evaluate.reliability`.
    """
    number, several = len(results["classes"]), bool(results.get("multi_label"))
    chance, majority = results["baselines"].get("chance"), results["baselines"].get("majority")
    uniform_brier = (1 - 1 / number) * (0.5 if number == 2 else 1)
    known = [
        Metric("balanced_accuracy", "Balanced accuracy", True, chance, "chance"),
        Metric("accuracy", "Accuracy", True, majority, "commonest class"),
        Metric("macro_f1", "Macro F1", True, majority_f1(results), "commonest class"),
        Metric("macro_auroc", "Macro AUROC", True, 0.5, "chance"),
        Metric("macro_average_precision", "Macro average precision", True, chance, "chance"),
        Metric("log_loss", "Log loss", False, math.log(number), "uniform guess"),
        Metric("brier", "Brier score", False, uniform_brier, "uniform guess"),
        Metric("calibration_error", "Calibration error", False, None, "0 is perfect"),
    ]
    if several:  # a label is asked for by itself: guesses over all classes say nothing
        prevalence = results["baselines"].get("prevalence")
        known = [
            Metric("macro_auroc", "Mean AUROC", True, 0.5, "chance"),
            Metric("macro_average_precision", "Mean average precision", True, prevalence, "chance"),
            Metric("macro_f1", "Mean F1", True, None, "yes from 0.5 on"),
            Metric("brier", "Brier score", False, None, "0 is perfect"),
        ]
    carried = {key: None for arm in results["arms"] for key in arm["metrics"]}
    columns = [metric for metric in known if metric.key in carried]
    names = {metric.key for metric in known}
    columns += [Metric(key, key.replace("_", " ").capitalize(), True, None, "") for key in carried if key not in names]
    if primary not in carried:
        raise RunError(f"results.json: no arm has the primary metric {primary!r}. The file is damaged; run again.")
    return sorted(columns, key=lambda metric: metric.key != primary)


def majority_f1(results: dict[str, Any]) -> float | None:
    """Macro F1 of always naming the commonest training class, on the tested pictures.

    With a share p of them in that class it is ``2 p / (1 + p)`` there (precision p, sensitivity 1) and 0 in the others;
    the mean is over the classes that have pictures. None when no arm counted them.
    """
    classes, name = results["classes"], results["baselines"].get("majority_class")
    counts = next(([sum(row) for row in arm["confusion"]] for arm in results["arms"] if arm.get("confusion")), [])
    if name not in classes or not sum(counts):
        return None
    share = counts[classes.index(name)] / sum(counts)
    return 2 * share / (1 + share) / sum(count > 0 for count in counts)


def per_class_columns(results: dict[str, Any]) -> list[PerClass]:
    """Columns of the per-class table with what a guess reaches."""
    if results.get("multi_label"):
        return [
            PerClass("auroc", "AUROC", "chance 0.500"),
            PerClass("average_precision", "Average precision", "chance = share"),
            PerClass("sensitivity", "Sensitivity", "yes from 0.5 on"),
            PerClass("specificity", "Specificity", "yes from 0.5 on"),
            PerClass("precision", "Precision", "yes from 0.5 on"),
        ]
    classes = len(results["classes"])
    guess, rest = f"uniform guess {1 / classes:.3f}", f"uniform guess {1 - 1 / classes:.3f}"
    return [
        PerClass("sensitivity", "Sensitivity", guess),
        PerClass("specificity", "Specificity", rest),
        PerClass("precision", "Precision", "chance = share"),
        PerClass("f1", "F1", ""),
        PerClass("auroc", "AUROC", "chance 0.500"),
        PerClass("average_precision", "Average precision", "chance = share"),
    ]


def ranked(results: dict[str, Any], metrics: list[Metric]) -> list[dict[str, Any]]:
    """The arms, best first by the primary metric, undefined last, each with its tie group (1 = the best's) or None."""
    groups = {name: place for place, names in enumerate(results.get("tie_groups") or [], start=1) for name in names}
    arms = []
    for given in results["arms"]:
        empty: dict[str, Any] = {
            "features": "",
            "head": "",
            "chosen": {},
            "seconds": None,
            "roc": {},
            "calibration": [],
            "confusion": [],
        }
        arm = empty | {key: value for key, value in given.items() if value is not None}
        arm["metrics"] = {metric.key: cell(given["metrics"].get(metric.key)) for metric in metrics}
        arm["per_class"] = {name: arm.get("per_class", {}).get(name) or {} for name in results["classes"]}
        for name, row in arm["per_class"].items():
            columns = per_class_columns(results)
            arm["per_class"][name] = {"n": row.get("n") or 0} | {one.key: cell(row.get(one.key)) for one in columns}
            arm["per_class"][name] |= {"known": row.get("known"), "measured": row.get("measured", True)}
        arm["calibration"] = [
            one | {"accuracy": cell(one.get("accuracy")), "n": one.get("n") or 0} for one in arm["calibration"]
        ]
        arm["n"] = arm["metrics"][metrics[0].key]["n"]
        arm["tie_group"] = groups.get(arm["name"])
        arms.append(arm)

    def place(arm: dict[str, Any]) -> tuple[bool, float, bool]:
        value = arm["metrics"][metrics[0].key]["value"]
        return (
            value is None,
            0.0 if value is None else -value if metrics[0].higher else value,
            arm["name"] != results["best"],
        )

    return sorted(arms, key=place)


def cell(given: dict[str, Any] | None) -> dict[str, Any]:
    """A metric cell with every part in place."""
    return EMPTY_CELL | (given or {})


def curves(arm: dict[str, Any]) -> list[dict[str, Any]]:
    """At most ten ROC curves of an arm, in class order; with more classes, those of the lowest AUROC."""
    drawn = [
        {
            "class": name,
            "fpr": points["fpr"],
            "tpr": points["tpr"],
            "auroc": arm["per_class"][name]["auroc"],
            "n": arm["per_class"][name]["n"],
        }
        for name, points in arm["roc"].items()
        if points and points.get("fpr") and name in arm["per_class"]
    ]
    if len(drawn) <= CURVES:
        return drawn
    return sorted(drawn, key=lambda curve: math.inf if curve["auroc"]["value"] is None else curve["auroc"]["value"])[
        :CURVES
    ]


def class_rows(arm: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of an arm's per-class table in class order; with more than two hundred, those of the lowest F1 or AUROC."""
    rows = arm["per_class"]
    if len(rows) <= CLASSES:
        return rows
    key = "f1" if "f1" in next(iter(rows.values())) else "auroc"
    worst = sorted(rows, key=lambda name: math.inf if rows[name][key]["value"] is None else rows[name][key]["value"])
    return {name: rows[name] for name in worst[:CLASSES]}


def foremost(comparisons: list[dict[str, Any]], best: str) -> list[dict[str, Any]]:
    """The comparisons in their order; when there are more than two hundred, those with the best arm come first."""
    if len(comparisons) <= COMPARISONS:
        return comparisons
    return sorted(comparisons, key=lambda one: best not in (one["a"], one["b"]))[:COMPARISONS]


def confusions(arm: dict[str, Any], classes: list[str], most: int = 10) -> list[dict[str, Any]]:
    """The commonest mistakes of an arm: ``{"truth", "predicted", "count", "n"}``, most frequent first."""
    found = [
        {"truth": classes[row], "predicted": classes[column], "count": counted, "n": sum(counts)}
        for row, counts in enumerate(arm["confusion"])
        for column, counted in enumerate(counts)
        if counted and row != column
    ]
    return sorted(found, key=lambda one: -one["count"])[:most]


def corrected(selected: dict[str, Any] | None) -> dict[str, Any] | None:
    """The best arm's score corrected for the choice among arms; None when there was no choice or no such score."""
    if not selected or selected.get("value") is None or selected.get("arms", 1) < 2:
        return None
    return EMPTY_CELL | selected


def with_thumbnails(mistakes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mistakes with their pictures, as long as these are pictures and fit; the others have None."""
    left = THUMBNAIL_BYTES
    shown = []
    for mistake in mistakes:
        picture = mistake.get("thumbnail") or ""
        fits = THUMBNAIL.fullmatch(picture) is not None and len(picture) <= left
        left -= len(picture) if fits else 0
        shown.append(mistake | {"thumbnail": picture if fits else None})
    return shown


def pictured(saliency: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Named rows of pictures, those left out of which one is no picture or which would make the page too large."""
    left = SALIENCY_BYTES
    shown = []
    for one in saliency:
        images = one.get("images") or []
        left -= sum(len(image) for image in images)
        if left >= 0 and images and all(THUMBNAIL.fullmatch(image) for image in images):
            shown.append(one)
    return shown


def _controls(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [control | {"key": key} for key, control in (results.get("controls") or {}).items() if control]
