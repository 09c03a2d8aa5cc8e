"""Ranking metrics of one class against the rest: AUROC, average precision and ROC points, with weighted resamples.

The rows are sorted once. The classes' negatives are then added up between successive positive scores by one sparse
product a resample chunk, and the rest is cumulative sums; no loop over resamples.
"""

from __future__ import annotations

import numpy as np

from offshelf.evaluate.metrics import as_columns, divide, indicator


class Ranking:
    """One class's scores, sorted once, ready for any number of weighted resamples.

    Parameters
    ----------
    positive
        ``(n,)`` bool, whether the row is of the class.
    scores
        ``(n,)`` score of the class, higher = more likely; finite.
    """

    def __init__(self, positive: np.ndarray, scores: np.ndarray) -> None:
        positive = np.asarray(positive, dtype=bool)
        scores = np.asarray(scores, dtype=np.float64)
        levels = np.unique(scores[positive])  # ascending: the only thresholds at which recall moves
        m = len(levels)
        self._n_negative = (~positive).astype(np.float64)
        # Position of each row in the descending order of levels: the first level that is not above its score.
        place = m - np.searchsorted(levels, scores, side="right")
        tied = np.zeros(len(scores), dtype=bool)
        inside = place < m
        tied[inside] = levels[m - 1 - place[inside]] == scores[inside]
        self._positives = indicator(np.where(positive, place, -1), m)
        self._negatives = indicator(np.where(~positive & inside, place, -1), m)
        self._ties = indicator(np.where(~positive & tied, place, -1), m) if np.any(~positive & tied) else None

    def auroc_and_average_precision(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Both metrics for every column of the weights.

        Parameters
        ----------
        weights
            ``(n,)`` or ``(n, B)`` row weights; ``None`` counts every row once.

        Returns
        -------
        auroc
            ``(B,)`` chance that a positive outranks a negative, ties counted half; NaN without positives or negatives.
        average_precision
            ``(B,)`` sum over thresholds of (recall step) x precision, rows with equal scores taken together, no
            interpolation; NaN without positives.
        """
        columns = as_columns(weights, len(self._n_negative))
        steps = self._positives @ columns  # (m, B) positive weight at each level, highest level first
        false = np.cumsum(self._negatives @ columns, axis=0)  # (m, B) negative weight at or above each level
        positives, negatives = steps.sum(axis=0), self._n_negative @ columns
        true = np.cumsum(steps, axis=0)
        average_precision = divide((steps * divide(true, true + false, 0.0)).sum(axis=0), positives)
        if self._ties is not None:
            false -= 0.5 * (self._ties @ columns)
        auroc = 1.0 - divide((steps * false).sum(axis=0), positives * negatives)
        return auroc, average_precision


def auroc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve ``(B,)``; see :meth:`Ranking.auroc_and_average_precision`."""
    return Ranking(positive, scores).auroc_and_average_precision(weights)[0]


def average_precision(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Average precision ``(B,)``; see :meth:`Ranking.auroc_and_average_precision`."""
    return Ranking(positive, scores).auroc_and_average_precision(weights)[1]


def roc_points(positive: np.ndarray, scores: np.ndarray, most: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Points of the ROC curve from (0, 0) to (1, 1), thinned for drawing.

    Parameters
    ----------
    positive
        ``(n,)`` bool.
    scores
        ``(n,)``.
    most
        Largest number of points; kept points are evenly spaced along fpr + tpr, ends included.

    Returns
    -------
    fpr, tpr
        ``(p,)`` each, ascending, p <= ``most``; empty when there are no positives or no negatives.
    """
    positive = np.asarray(positive, dtype=bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return np.empty(0), np.empty(0)
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    sorted_scores = np.asarray(scores)[order]
    last = np.append(sorted_scores[1:] != sorted_scores[:-1], True)  # equal scores make one step
    tpr = np.append(0.0, np.cumsum(positive[order])[last] / n_positive)
    fpr = np.append(0.0, np.cumsum(~positive[order])[last] / n_negative)
    # A point on the straight line between its neighbours draws nothing.
    cross = np.diff(fpr)[:-1] * np.diff(tpr)[1:] - np.diff(fpr)[1:] * np.diff(tpr)[:-1]
    kept = np.concatenate([[True], np.abs(cross) > 1e-12, [True]])
    fpr, tpr = fpr[kept], tpr[kept]
    if len(fpr) > most:
        length = fpr + tpr
        chosen = np.unique(np.searchsorted(length, np.linspace(0.0, 2.0, most)).clip(0, len(fpr) - 1))
        fpr, tpr = fpr[chosen], tpr[chosen]
    return fpr, tpr
