"""Cluster bootstrap: whole groups are drawn with replacement, as row weights, and every metric is computed from them.

The interval answers "how far would the number move with other test groups of the same kind and number"; it does not
contain the variation of training on other rows. Groups are drawn without stratification, so class counts vary too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from offshelf.errors import DataError
from offshelf.evaluate.groups import count_groups, group_codes
from offshelf.evaluate.intervals import Bounds, f1_wilson, mean_of_intervals, metric_cell, wilson_interval
from offshelf.evaluate.metrics import class_counts, confusion_matrix, macro_mean
from offshelf.evaluate.ranking import Ranking, roc_points
from offshelf.evaluate.reliability import N_BINS, Reliability, brier_rows, log_loss_rows, weighted_mean

# Mean over classes -> the per-class metric it averages.
MACRO = {
    "balanced_accuracy": "sensitivity",
    "macro_f1": "f1",
    "macro_auroc": "auroc",
    "macro_average_precision": "average_precision",
}
OVERALL = ("accuracy", *MACRO, "log_loss", "brier", "calibration_error")
PER_CLASS = ("sensitivity", "specificity", "precision", "f1", "auroc", "average_precision")
RANKING_METRICS = frozenset({"macro_auroc", "macro_average_precision"})
PROBABILITY_METRICS = RANKING_METRICS | {"log_loss", "brier", "calibration_error"}
# Numbers in one chunk of weights (8 bytes each); bounds the memory whatever n and B are.
CHUNK = 1_000_000


@dataclass(frozen=True, eq=False)
class Sample:
    """Metrics of B weighted resamples: ``overall`` name -> ``(B,)``, ``per_class`` name -> ``(K, B)``, ``bins (10, B)``."""

    overall: dict[str, np.ndarray]
    per_class: dict[str, np.ndarray]
    truth: np.ndarray
    bins: np.ndarray

    def undefined_share(self, name: str, present: np.ndarray) -> float:
        """Share of resamples without the metric; for a mean over classes that of the worst class in ``present (K,)``."""
        if name in MACRO:
            lost = (self.truth[present] == 0) | ~np.isfinite(self.per_class[MACRO[name]][present])
            return float(lost.mean(axis=1).max())
        return float(np.mean(~np.isfinite(self.overall[name])))


class Scores:
    """Checked answers of one arm, sorted and binned once, ready for any number of resamples.

    Parameters
    ----------
    labels
        ``(n,)`` class numbers.
    probabilities
        ``(n, K)``, rows adding up to 1, or ``None``: metrics that need them are then NaN.
    predictions
        ``(n,)`` class numbers; by default the most probable class.
    n_classes
        K.
    ranking
        Whether AUROC and average precision will be wanted; they are the costly ones.

    Raises
    ------
    DataError
        Naming the row and the value.
    """

    def __init__(
        self,
        labels: np.ndarray,
        probabilities: np.ndarray | None,
        predictions: np.ndarray | None,
        n_classes: int,
        ranking: bool = True,
    ) -> None:
        self.n_classes = n_classes
        self.labels = _class_numbers(labels, n_classes, "labels")
        n = len(self.labels)
        if not n:
            raise DataError("labels: no rows; there is nothing to measure")
        self.probabilities = None if probabilities is None else _probabilities(probabilities, n, n_classes)
        if predictions is not None:
            self.predictions = _class_numbers(predictions, n_classes, "predictions")
        elif self.probabilities is not None:
            self.predictions = self.probabilities.argmax(axis=1)
        else:
            raise DataError("neither probabilities nor predictions were given; give at least one of them")
        if len(self.predictions) != n:
            raise DataError(f"predictions: {len(self.predictions)} values for {n} labels; give one a row")
        self._rankings: list[Ranking] = []
        self.reliability: Reliability | None = None
        if self.probabilities is not None:
            if ranking:
                self._rankings = [Ranking(self.labels == c, self.probabilities[:, c]) for c in range(n_classes)]
            confidence = self.probabilities[np.arange(n), self.predictions]
            self.reliability = Reliability(self.labels == self.predictions, confidence)
            self._log_loss = log_loss_rows(self.labels, self.probabilities)
            self._brier = brier_rows(self.labels, self.probabilities)

    def sample(self, weights: np.ndarray) -> Sample:
        """All metrics under each column of ``weights (n, B)``."""
        counts = class_counts(self.labels, self.predictions, self.n_classes, weights)
        size = weights.shape[1]
        nothing = np.full((self.n_classes, size), np.nan)
        per_class = {name: getattr(counts, name) for name in ("sensitivity", "specificity", "precision", "f1")}
        per_class["auroc"], per_class["average_precision"] = nothing, nothing
        if self._rankings:
            both = [ranking.auroc_and_average_precision(weights) for ranking in self._rankings]
            per_class["auroc"] = np.stack([a for a, _ in both])
            per_class["average_precision"] = np.stack([p for _, p in both])
        overall = {"accuracy": counts.accuracy}
        overall |= {name: macro_mean(per_class[part], counts.truth) for name, part in MACRO.items()}
        bins = np.full((N_BINS, size), np.nan)
        overall |= {name: np.full(size, np.nan) for name in ("log_loss", "brier", "calibration_error")}
        if self.reliability is not None:
            overall["log_loss"] = weighted_mean(self._log_loss, weights)
            overall["brier"] = weighted_mean(self._brier, weights)
            overall["calibration_error"] = self.reliability.error(weights)
            bins = self.reliability.bin_accuracy(weights)
        return Sample(overall, per_class, counts.truth, bins)

    def point(self) -> Sample:
        """The metrics of the rows as they are; B = 1."""
        return self.sample(np.ones((len(self.labels), 1)))


def resampled_weights(codes: np.ndarray, n_boot: int, seed: int, chunk: int = CHUNK) -> Iterator[np.ndarray]:
    """Row weights of a cluster bootstrap, a chunk of resamples at a time.

    Parameters
    ----------
    codes
        ``(n,)`` group codes 0 to G - 1. G groups are drawn with replacement; a row weighs as often as its group came.
    n_boot
        Number of resamples B.
    seed
        The same seed and codes give the same resamples, whatever the chunk.
    chunk
        Largest number of weights held at once.

    Yields
    ------
    weights
        ``(n, b)`` float64; the b add up to B.
    """
    rng = np.random.default_rng(seed)
    n_groups = int(codes.max()) + 1
    size = max(1, chunk // len(codes))
    for start in range(0, n_boot, size):
        b = min(size, n_boot - start)
        drawn = rng.integers(n_groups, size=(b, n_groups)) + np.arange(b)[:, None] * n_groups
        times = np.bincount(drawn.ravel(), minlength=b * n_groups).reshape(b, n_groups)
        yield np.ascontiguousarray(times.T, dtype=np.float64)[codes]


def replicate(scores: Scores, codes: np.ndarray, n_boot: int, seed: int) -> Sample:
    """Metrics of ``n_boot`` resamples of groups; see :func:`resampled_weights`."""
    parts = [scores.sample(weights) for weights in resampled_weights(codes, n_boot, seed)]
    return Sample(
        {name: np.concatenate([p.overall[name] for p in parts]) for name in OVERALL},
        {name: np.concatenate([p.per_class[name] for p in parts], axis=1) for name in PER_CLASS},
        np.concatenate([p.truth for p in parts], axis=1),
        np.concatenate([p.bins for p in parts], axis=1),
    )


def bootstrap_mean(
    values: np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    seed: int = 0,
    n_boot: int = 2000,
    rate: bool = False,
) -> dict[str, Any]:
    """Mean of one number a row as a cell, groups drawn whole.

    Parameters
    ----------
    values
        ``(n,)``; rows that are NaN (undefined) are left out and not counted in ``n``.
    groups
        ``(n,)`` or ``None``.
    seed, n_boot
        Of the bootstrap.
    rate
        Whether the values are 0 or 1, so that a collapsed interval can be Wilson's over the number of groups.

    Returns
    -------
    cell
        Metric cell.
    """
    values = np.asarray(values, dtype=np.float64)
    kept = np.isfinite(values)
    if not kept.any():
        return metric_cell(float("nan"), None, 0)
    codes = np.unique(group_codes(groups, len(values))[kept], return_inverse=True)[1]
    chosen = values[kept]
    drawn = np.concatenate([weighted_mean(chosen, weights) for weights in resampled_weights(codes, n_boot, seed)])
    value = float(chosen.mean())
    wilson = (lambda: wilson_interval(value, count_groups(codes))) if rate else None
    return metric_cell(value, drawn, len(chosen), fallback=wilson)


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
                    accuracy, drawn.bins[k], int(inside.sum()), fallback=lambda wilson=wilson: wilson  # type: ignore[misc]
                ),
                "n": int(inside.sum()),
            }
        )
    return bins


def _class_numbers(values: np.ndarray, n_classes: int, what: str) -> np.ndarray:
    """Checked class numbers as int64."""
    array = np.asarray(values)
    if array.ndim != 1 or (len(array) and not np.issubdtype(array.dtype, np.integer)):
        raise DataError(f"{what}: expected one whole number a row, got shape {array.shape} of {array.dtype}")
    wrong = np.flatnonzero((array < 0) | (array >= n_classes))
    if wrong.size:
        raise DataError(f"{what}, row {wrong[0]}: {array[wrong[0]]} is not a class number 0 to {n_classes - 1}")
    return array.astype(np.int64)


def _probabilities(values: np.ndarray, n: int, n_classes: int) -> np.ndarray:
    """Checked probabilities as float64, rows made to add up to 1 exactly."""
    table = np.asarray(values, dtype=np.float64)
    if table.shape != (n, n_classes):
        raise DataError(f"probabilities: shape {table.shape}, expected ({n}, {n_classes}): a row an image, a column a class")
    total = table.sum(axis=1)
    bad = np.flatnonzero(~np.isfinite(total) | (np.abs(total - 1.0) > 1e-3) | (table < 0).any(axis=1))
    if bad.size:
        raise DataError(
            f"probabilities, row {bad[0]}: {table[bad[0]].tolist()}; expected numbers of at least 0 that add up to 1. "
            "Scores of a decision function must be calibrated first"
        )
    return table / total[:, None]


def needs_probabilities(metrics: Collection[str]) -> bool:
    """Whether any of the named metrics needs probabilities."""
    return bool(PROBABILITY_METRICS & set(metrics))
