"""Metrics that follow from the confusion matrix, for one sample or many weighted resamples at once.

Every function takes optional row weights ``(n,)`` or ``(n, B)``, one column a resample, so that the printed value and
its bootstrap replicates come from the same lines. Rows of a matrix are the truth. What is undefined is NaN.

Source of the definitions: the one-vs-rest counts TP, FN, FP, TN of each class (study recipe of arXiv 2003.13145).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse


def as_columns(weights: np.ndarray | None, n: int) -> np.ndarray:
    """Row weights as ``(n, B)`` float64; ``None`` is one column of ones."""
    if weights is None:
        return np.ones((n, 1))
    columns = np.asarray(weights, dtype=np.float64)
    return columns[:, None] if columns.ndim == 1 else columns


def indicator(index: np.ndarray, n_rows: int, data: np.ndarray | None = None) -> sparse.csr_array:
    """Sparse ``(n_rows, n)`` matrix with one entry a column, at row ``index``; a negative index gives none."""
    kept = np.flatnonzero(index >= 0)
    values = np.ones(len(kept)) if data is None else np.asarray(data, dtype=np.float64)[kept]
    return sparse.csr_array((values, (index[kept], kept)), shape=(n_rows, len(index)))


def divide(numerator: np.ndarray, denominator: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    """Quotient where the denominator is not zero, ``otherwise`` elsewhere."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    return np.divide(numerator, denominator, out=np.full(denominator.shape, otherwise), where=denominator != 0)


def confusion_matrix(
    labels: np.ndarray, predictions: np.ndarray, n_classes: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Counts of (truth, prediction) pairs.

    Parameters
    ----------
    labels, predictions
        ``(n,)`` class numbers 0 to K - 1.
    n_classes
        K.
    weights
        ``(n,)`` row weights, or ``None``.

    Returns
    -------
    matrix
        ``(K, K)``, rows = truth; int64 without weights, float64 with.
    """
    pairs = np.asarray(labels) * n_classes + np.asarray(predictions)
    return np.bincount(pairs, weights=weights, minlength=n_classes**2).reshape(n_classes, n_classes)


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Per-class counts from which every metric of this module follows.

    Attributes
    ----------
    hits
        ``(K, B)`` weight of the rows of a class that were predicted as it (TP).
    truth
        ``(K, B)`` weight of the rows of a class (TP + FN).
    predicted
        ``(K, B)`` weight of the rows predicted as a class (TP + FP).
    zero_division
        Value of a rate with nothing in its denominator; NaN, or 0 for scikit-learn's convention for precision.
    """

    hits: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    zero_division: float = np.nan

    @cached_property
    def total(self) -> np.ndarray:
        """``(B,)`` weight of all rows."""
        return self.truth.sum(axis=0)

    @cached_property
    def sensitivity(self) -> np.ndarray:
        """``(K, B)`` TP / (TP + FN)."""
        return divide(self.hits, self.truth, self.zero_division)

    @cached_property
    def specificity(self) -> np.ndarray:
        """``(K, B)`` TN / (TN + FP)."""
        negatives = self.total - self.truth
        return divide(negatives - (self.predicted - self.hits), negatives, self.zero_division)

    @cached_property
    def precision(self) -> np.ndarray:
        """``(K, B)`` TP / (TP + FP); undefined for a class that is never predicted."""
        return divide(self.hits, self.predicted, self.zero_division)

    @cached_property
    def f1(self) -> np.ndarray:
        """``(K, B)`` 2 TP / (2 TP + FP + FN)."""
        return divide(2 * self.hits, self.truth + self.predicted, self.zero_division)

    @cached_property
    def accuracy(self) -> np.ndarray:
        """``(B,)`` share of rows predicted right."""
        return divide(self.hits.sum(axis=0), self.total)

    @cached_property
    def balanced_accuracy(self) -> np.ndarray:
        """``(B,)`` mean sensitivity of the classes that have rows."""
        return self.macro(self.sensitivity)

    def macro(self, values: np.ndarray) -> np.ndarray:
        """Unweighted mean ``(B,)`` of per-class ``values (K, B)`` over the classes that have rows in the sample."""
        return macro_mean(values, self.truth)

    def weighted(self, values: np.ndarray) -> np.ndarray:
        """Support-weighted mean ``(B,)``: sum over classes of n_c / N times the value; NaN if one is undefined."""
        return np.where(self.truth > 0, self.truth * values, 0.0).sum(axis=0) / self.total


def macro_mean(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean ``(B,)`` of ``values (K, B)`` over the classes with rows (``truth > 0``); NaN if one is undefined."""
    present = truth > 0
    return divide(np.where(present, values, 0.0).sum(axis=0), present.sum(axis=0).astype(np.float64))


def class_counts(
    labels: np.ndarray,
    predictions: np.ndarray,
    n_classes: int,
    weights: np.ndarray | None = None,
    zero_division: float = np.nan,
) -> ClassCounts:
    """Counts of every class, for each column of the weights.

    Parameters
    ----------
    labels, predictions
        ``(n,)`` class numbers 0 to K - 1.
    n_classes
        K.
    weights
        ``(n,)`` or ``(n, B)``; ``None`` counts every row once (B = 1).
    zero_division
        What an empty rate is: NaN (default) or a number.

    Returns
    -------
    counts
        :class:`ClassCounts` with arrays ``(K, B)``.
    """
    y, predicted = np.asarray(labels), np.asarray(predictions)
    columns = as_columns(weights, len(y))
    return ClassCounts(
        hits=indicator(np.where(y == predicted, y, -1), n_classes) @ columns,
        truth=indicator(y, n_classes) @ columns,
        predicted=indicator(predicted, n_classes) @ columns,
        zero_division=zero_division,
    )


def counts_of_matrix(matrix: np.ndarray, zero_division: float = np.nan) -> ClassCounts:
    """The counts of a confusion matrix ``(K, K)``, rows = truth; B = 1."""
    table = np.asarray(matrix, dtype=np.float64)
    return ClassCounts(
        np.diag(table)[:, None].copy(), table.sum(axis=1)[:, None], table.sum(axis=0)[:, None], zero_division
    )
