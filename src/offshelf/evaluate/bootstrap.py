"""The full account of one arm: every metric as a cell with its cluster-bootstrap interval.

The interval answers "how far would the number move with other test groups of the same kind and number"; it does not
contain the variation of training on other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from offshelf.evaluate.groups import count_groups, group_codes
from offshelf.evaluate.intervals import Bounds, f1_wilson, mean_of_intervals, metric_cell, wilson_interval
from offshelf.evaluate.metrics import confusion_matrix
from offshelf.evaluate.ranking import roc_points
from offshelf.evaluate.reliability import N_BINS
from offshelf.evaluate.resampling import replicate
from offshelf.evaluate.scores import MACRO, OVERALL, PER_CLASS, Sample, Scores


def evaluate(
    labels: Sequence[int] | np.ndarray,
    probabilities: np.ndarray | None,
    classes: Sequence[str],
    groups: Sequence[Any] | np.ndarray | None = None,
    predictions: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    n_boot: int = 2000,
) -> dict[str, Any]:
    """Everything that is told about one arm: metrics with intervals, per class, confusion, ROC, calibration.

    Parameters
    ----------
    labels
        ``(n,)`` class numbers of the tested rows.
    probabilities
        ``(n, K)`` or ``None``; then log loss, Brier score, calibration, AUROC and average precision are undefined.
    classes
        Names of the K classes.
    groups
        ``(n,)`` groups drawn whole in the bootstrap; a row without one stands alone.
    predictions
        ``(n,)`` class numbers; the most probable class by default.
    seed, n_boot
        Of the bootstrap; 95 % percentile intervals.

    Returns
    -------
    result
        ``metrics``, ``per_class``, ``confusion``, ``roc``, ``calibration``, ready for JSON. Means over classes take the
        classes that have rows, and have an interval only if every such class is there in 95 % of the resamples. A
        zero-width interval of a rate is replaced by Wilson's over the number of groups that could have moved it
        ("wilson"): the class's groups for sensitivity and average precision, the others' for specificity, those
        predicted as it for precision, the smaller side for AUROC; means combine those. The interval of the calibration
        error is turned about the value, since resamples of it lie above. ``n`` counts the rows in the denominator.

    Raises
    ------
    DataError
        Labels, probabilities or predictions that do not fit together.
    """
    names = [str(name) for name in classes]
    scores = Scores(
        np.asarray(labels),
        None if probabilities is None else np.asarray(probabilities),
        None if predictions is None else np.asarray(predictions),
        len(names),
    )
    codes = group_codes(groups, len(scores.labels))
    point, drawn = scores.point(), replicate(scores, codes, n_boot, seed)
    fallbacks = _class_fallbacks(scores, point, codes)
    per_class = _class_cells(scores, point, drawn, fallbacks)
    return {
        "metrics": _overall_cells(point, drawn, fallbacks, codes),
        "per_class": {
            name: {**per_class[c], "n": int(np.count_nonzero(scores.labels == c))} for c, name in enumerate(names)
        },
        "confusion": confusion_matrix(scores.labels, scores.predictions, len(names)).tolist(),
        "roc": _roc(scores, names),
        "calibration": _calibration(scores, point, drawn, codes),
    }


def _class_fallbacks(scores: Scores, point: Sample, codes: np.ndarray) -> dict[str, list[Bounds]]:
    """Wilson's intervals of the per-class rates, name -> one a class."""
    y, predicted = scores.labels, scores.predictions
    value = {name: column[:, 0] for name, column in point.per_class.items()}
    bounds: dict[str, list[Bounds]] = {name: [] for name in PER_CLASS}
    for c in range(scores.n_classes):
        own, others = count_groups(codes, y == c), count_groups(codes, y != c)
        bounds["sensitivity"].append(wilson_interval(value["sensitivity"][c], own))
        bounds["specificity"].append(wilson_interval(value["specificity"][c], others))
        bounds["precision"].append(wilson_interval(value["precision"][c], count_groups(codes, predicted == c)))
        bounds["f1"].append(f1_wilson(value["f1"][c], count_groups(codes, (y == c) | (predicted == c))))
        bounds["auroc"].append(wilson_interval(value["auroc"][c], min(own, others)))
        bounds["average_precision"].append(wilson_interval(value["average_precision"][c], own))
    return bounds


def _class_cells(
    scores: Scores, point: Sample, drawn: Sample, fallbacks: dict[str, list[Bounds]]
) -> list[dict[str, Any]]:
    """Cells of each class."""
    y, predicted = scores.labels, scores.predictions
    cells = []
    for c in range(scores.n_classes):
        rows = dict.fromkeys(PER_CLASS, len(y))
        rows |= {
            "sensitivity": int(np.sum(y == c)),
            "specificity": int(np.sum(y != c)),
            "precision": int(np.sum(predicted == c)),
            "f1": int(np.sum((y == c) | (predicted == c))),
        }
        cells.append(
            {
                name: metric_cell(
                    float(point.per_class[name][c, 0]),
                    drawn.per_class[name][c],
                    rows[name],
                    fallback=lambda name=name, c=c: fallbacks[name][c],  # type: ignore[misc]
                )
                for name in PER_CLASS
            }
        )
    return cells


def _overall_cells(
    point: Sample, drawn: Sample, fallbacks: dict[str, list[Bounds]], codes: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Cells of the metrics over all classes."""
    present = point.truth[:, 0] > 0

    def collapsed(name: str) -> Bounds:
        if name == "accuracy":
            return wilson_interval(float(point.overall[name][0]), count_groups(codes))
        part = MACRO[name]
        chosen = np.flatnonzero(present)
        return mean_of_intervals(point.per_class[part][chosen, 0].tolist(), [fallbacks[part][c] for c in chosen])

    return {
        name: metric_cell(
            float(point.overall[name][0]),
            drawn.overall[name],
            len(codes),
            fallback=(lambda name=name: collapsed(name)) if name == "accuracy" or name in MACRO else None,  # type: ignore[misc]
            undefined_share=drawn.undefined_share(name, present),
            reflect=name == "calibration_error",
        )
        for name in OVERALL
    }


def _roc(scores: Scores, names: list[str]) -> dict[str, dict[str, list[float]]]:
    """Thinned ROC points of each class; empty lists where there is no curve."""
    if scores.probabilities is None:
        return {name: {"fpr": [], "tpr": []} for name in names}
    curves = [roc_points(scores.labels == c, scores.probabilities[:, c]) for c in range(len(names))]
    return {name: {"fpr": fpr.tolist(), "tpr": tpr.tolist()} for name, (fpr, tpr) in zip(names, curves, strict=True)}


def _calibration(scores: Scores, point: Sample, drawn: Sample, codes: np.ndarray) -> list[dict[str, Any]]:
    """The confidence bins that hold rows."""
    if scores.reliability is None:
        return []
    bins = []
    for k in np.unique(scores.reliability.bins):
        inside = scores.reliability.bins == k
        accuracy = float(point.bins[k, 0])
        n_groups = count_groups(codes, inside)
        wilson = wilson_interval(accuracy, n_groups)
        bins.append(
            {
                "low": float(k / N_BINS),
                "high": float((k + 1) / N_BINS),
                "confidence": float(scores.reliability.confidence[inside].mean()),
                "accuracy": metric_cell(
                    accuracy,
                    drawn.bins[k],
                    int(inside.sum()),
                    fallback=lambda wilson=wilson: wilson,  # type: ignore[misc]
                ),
                "n": int(inside.sum()),
            }
        )
    return bins
