"""From scores to probabilities, fitted on scores of rows that the scorer had not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits


@dataclass
class Calibration:
    """An affine map before a softmax: ``p = softmax(scores @ weight.T + bias)``; ``kind`` says how it was had."""

    weight: np.ndarray  # (K, K)
    bias: np.ndarray  # (K,)
    kind: str

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Scores ``(n, K)`` to probabilities ``(n, K)`` whose rows sum to 1."""
        return softmax(scores @ self.weight.T + self.bias, axis=1)


def log_loss(logits: np.ndarray, codes: np.ndarray) -> float:
    """Mean negative log-probability of each row's class under ``softmax(logits)``."""
    return float(-log_softmax(logits, axis=1)[np.arange(len(codes)), codes].mean())


def temperature(scores: np.ndarray, codes: np.ndarray) -> float:
    """The single divisor of the scores ``(n, K)`` that makes the log loss of their softmax smallest (1e-3 to 1e3)."""
    best = minimize_scalar(lambda t: log_loss(scores / 10.0**t, codes), bounds=(-3.0, 3.0), method="bounded")
    return float(10.0**best.x)


def by_temperature(scores: np.ndarray, codes: np.ndarray, n_classes: int) -> Calibration:
    """One divisor for all classes: the order of the scores, and so the predicted class, stays as it is."""
    if not len(codes):
        return uncalibrated(n_classes)
    return Calibration(np.eye(n_classes) / temperature(scores, codes), np.zeros(n_classes), "temperature")


def by_logistic(scores: np.ndarray, codes: np.ndarray, n_classes: int) -> Calibration:
    """Weakly regularised multinomial logistic regression on the scores (C = 1 on standardised scores).

    A class without a single scored row cannot have its own weights: all classes then share one temperature.
    """
    if len(np.unique(codes)) < n_classes:
        return by_temperature(scores, codes, n_classes)
    mean, scale = scores.mean(axis=0), scores.std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    model = LogisticRegression(C=1.0, max_iter=1000)
    with threadpool_limits(1):
        model.fit((scores - mean) / scale, codes)
    weight, bias = model.coef_ / scale, model.intercept_
    bias = bias - weight @ mean
    if n_classes == 2:  # scikit-learn keeps one row for two classes
        weight, bias = np.vstack([np.zeros_like(weight[0]), weight[0]]), np.array([0.0, bias[0]])
    return Calibration(weight, bias, "logistic")


def uncalibrated(n_classes: int) -> Calibration:
    """The plain softmax of the scores, where no unseen scores could be had."""
    return Calibration(np.eye(n_classes), np.zeros(n_classes), "none")
