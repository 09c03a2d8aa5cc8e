"""How far probabilities can be believed: log loss, Brier score and the expected calibration error with its bins.

Calibration is judged on the confidence in the answer given, the probability of the predicted class, in ten bins of
equal width; the name of that choice is :data:`CALIBRATION_ERROR`.
"""

from __future__ import annotations

import numpy as np

from offshelf.evaluate.metrics import as_columns, divide, indicator

CALIBRATION_ERROR = "expected calibration error of the predicted class, 10 bins of equal width"
N_BINS = 10
# Probability 0 for the true class would make the log loss infinite; scikit-learn's floor for float64.
FLOOR = float(np.finfo(np.float64).eps)


def log_loss_rows(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Loss ``(n,)`` in nats of each row: minus the logarithm of the true class's probability, floored at 2.2e-16."""
    chosen = np.asarray(probabilities, dtype=np.float64)[np.arange(len(labels)), labels]
    return -np.log(np.clip(chosen, FLOOR, 1.0))


def brier_rows(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Squared error ``(n,)`` of each row's probabilities ``(n, K)``, summed over classes.

    With two classes the sum is halved, which gives the usual two-class score (0 to 1); with more it lies in 0 to 2.
    scikit-learn's ``brier_score_loss`` does the same. Source: Brier (1950).
    """
    table = np.asarray(probabilities, dtype=np.float64)
    error = table.copy()
    error[np.arange(len(labels)), labels] -= 1.0
    return (error**2).sum(axis=1) * (0.5 if table.shape[1] == 2 else 1.0)


def weighted_mean(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean ``(B,)`` of ``values (n,)`` under each column of the weights."""
    columns = as_columns(weights, len(values))
    return divide(values @ columns, columns.sum(axis=0))


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Bin ``(n,)`` 0 to 9 of each confidence; a bin holds its lower edge, the last also 1."""
    return np.clip((np.asarray(confidence) * N_BINS).astype(np.int64), 0, N_BINS - 1)


class Reliability:
    """Rows sorted into confidence bins once, ready for any number of weighted resamples.

    Parameters
    ----------
    correct
        ``(n,)`` bool, whether the answer was right.
    confidence
        ``(n,)`` probability of the answer, 0 to 1.
    """

    def __init__(self, correct: np.ndarray, confidence: np.ndarray) -> None:
        self.correct = np.asarray(correct, dtype=np.float64)
        self.confidence = np.asarray(confidence, dtype=np.float64)
        self.bins = bin_of(self.confidence)
        self._members = indicator(self.bins, N_BINS)
        self._right = indicator(self.bins, N_BINS, self.correct)
        self._gap = indicator(self.bins, N_BINS, self.correct - self.confidence)

    def error(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Expected calibration error ``(B,)``: sum over bins of (share of rows) x |accuracy - mean confidence|."""
        columns = as_columns(weights, len(self.bins))
        return divide(np.abs(self._gap @ columns).sum(axis=0), columns.sum(axis=0))

    def bin_accuracy(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Accuracy ``(10, B)`` inside each bin; NaN where a bin is empty."""
        columns = as_columns(weights, len(self.bins))
        return divide(self._right @ columns, self._members @ columns)
