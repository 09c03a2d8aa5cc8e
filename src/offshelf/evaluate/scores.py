"""One arm's answers, checked, sorted and binned once; every metric of them under any row weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offshelf.errors import DataError
from offshelf.evaluate.metrics import class_counts, macro_mean
from offshelf.evaluate.ranking import Ranking
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


@dataclass(frozen=True, eq=False)
class Sample:
    """Metrics of resamples: ``overall`` name -> ``(B,)``, ``per_class`` name -> ``(K, B)``, ``truth (K, B)``, bins."""

    overall: dict[str, np.ndarray]
    per_class: dict[str, np.ndarray]
    truth: np.ndarray
    bins: np.ndarray

    def undefined_share(self, name: str, present: np.ndarray) -> float:
        """Share of resamples without the metric; for a mean over classes, that of the worst one ``present (K,)``."""
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
            # The ranks above use the numbers as given: dividing would tell apart by rounding what was equal.
            table = self.probabilities / self.probabilities.sum(axis=1, keepdims=True)
            self.reliability = Reliability(self.labels == self.predictions, table[np.arange(n), self.predictions])
            self._log_loss = log_loss_rows(self.labels, table)
            self._brier = brier_rows(self.labels, table)

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
    """Checked probabilities as float64, unchanged."""
    table = np.asarray(values, dtype=np.float64)
    if table.shape != (n, n_classes):
        raise DataError(
            f"probabilities: shape {table.shape}, expected ({n}, {n_classes}): a row an image, a column a class"
        )
    total = table.sum(axis=1)
    bad = np.flatnonzero(~np.isfinite(total) | (np.abs(total - 1.0) > 1e-3) | (table < 0).any(axis=1))
    if bad.size:
        raise DataError(
            f"probabilities, row {bad[0]}: {table[bad[0]].tolist()}; expected numbers of at least 0 that add up to 1. "
            "Scores of a decision function must be calibrated first"
        )
    return table
