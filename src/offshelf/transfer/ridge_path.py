"""One-hot ridge regression with its whole penalty path from fold Gram matrices: the quick head for screening.

Targets are one-hot rows. For every inner fold the training Gram matrix is the whole one less that of the held-out rows,
so the features are multiplied once; each penalty then costs one Cholesky factor. Not a stand-in where logistic
regression is meant: it answers "which of these features is worth a closer look" in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from offshelf.errors import UsageError
from offshelf.transfer.feature_matrix import class_codes, feature_matrix
from offshelf.transfer.inner_folds import balanced_accuracy, inner_folds
from offshelf.transfer.row_space import row_space
from offshelf.transfer.score_calibration import by_temperature

DEFAULT_STRENGTH = 1.0  # used, and said so in `chosen_`, where no inner fold can be had


class RidgePath(ClassifierMixin, BaseEstimator):
    """Least squares onto one-hot targets with an L2 penalty chosen by mean balanced accuracy of the inner folds.

    The objective is ``||X W + b - Y||^2 + alpha ||W||^2`` with ``b`` free; ``alpha`` is a strength times the mean over
    directions of the features' scatter (the trace of the centred Gram matrix by min(n - 1, d)), so that the grid serves
    features of any scale. Among equals the strongest penalty is taken.

    Parameters
    ----------
    strengths : int or sequence of float
        Relative penalties to try; a number means so many log-spaced from 1e-4 to 1e3.
    cv : int or sequence of (train, test) index arrays, default 3
        Inner folds; see inner_folds.
    random_state : int or None
        Seed of the inner folds.

    Attributes
    ----------
    coef_ : float32 array, (K, d)
    intercept_ : float32 array, (K,)
    classes_ : array, (K,)
    alpha_ : float
        The penalty chosen, absolute.
    strengths_, path_ : arrays, (P,)
        The grid, rising, and its mean inner-fold balanced accuracies (empty ``path_`` where there was no inner fold).
    temperature_ : float
        ``predict_proba`` is the softmax of the scores divided by it; fitted on scores of held-out rows.
    chosen_ : dict
    """

    def __init__(self, strengths: int | Sequence[float] = 10, cv: Any = 3, random_state: int | None = None) -> None:
        self.strengths = strengths
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> RidgePath:
        """Choose the penalty inside the rows given and fit on all of them.

        Parameters
        ----------
        X : array, shape (n, d)
        y : array, shape (n,)
        """
        rows = feature_matrix(X)
        self.classes_, codes = class_codes(y, len(rows))
        self.n_features_in_ = rows.shape[1]
        self.strengths_ = _grid(self.strengths)
        n, d = rows.shape
        mean = rows.mean(axis=0, dtype=np.float64)
        Z, basis = rows - mean, None
        if d >= n:
            coordinates, basis = row_space(Z)
            Z = coordinates.astype(np.float64)
        Y = np.eye(len(self.classes_))[codes]
        gram, cross = Z.T @ Z, Z.T @ Y
        unit = max(float(np.trace(gram)) / max(min(n - 1, d), 1), 1e-12)

        folds = inner_folds(codes, self.cv, self.random_state)
        scores = [_fold_scores(Z, Y, gram, cross, pair, self.strengths_ * unit) for pair in folds.pairs]
        strength, self.path_, unseen, truth = DEFAULT_STRENGTH, np.empty(0), np.empty((0, Y.shape[1])), np.empty(0, int)
        if scores:
            tests = [codes[test] for _, test in folds.pairs]
            self.path_ = np.mean(
                [[balanced_accuracy(t, s.argmax(axis=1)) for s in fold] for t, fold in zip(tests, scores)], axis=0
            )
            best = len(self.path_) - 1 - int(np.argmax(np.round(self.path_[::-1], 12)))
            strength = float(self.strengths_[best])
            unseen, truth = np.concatenate([fold[best] for fold in scores]), np.concatenate(tests)
        self.alpha_ = strength * unit
        W = _solve(gram, cross - np.outer(Z.sum(axis=0), Y.mean(axis=0)), self.alpha_)
        coefficients = W if basis is None else basis @ W
        self.coef_ = coefficients.T.astype(np.float32)
        self.intercept_ = (Y.mean(axis=0) - mean @ coefficients).astype(np.float32)
        calibration = by_temperature(unseen, truth, len(self.classes_))
        self.temperature_ = float(1.0 / calibration.weight[0, 0])
        self.chosen_: dict[str, Any] = {"alpha": self.alpha_, "strength": strength, **folds.recorded()}
        if len(self.path_):
            self.chosen_["inner_balanced_accuracy"] = float(self.path_.max())
        self.chosen_["calibration"] = calibration.kind
        return self

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return feature_matrix(X, width=self.n_features_in_) @ self.coef_.T + self.intercept_

    def decision_function(self, X: Any) -> np.ndarray:
        """Fitted one-hot values ``(n, K)``, or ``(n,)`` for two classes: the second's less the first's."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Softmax ``(n, K)`` of the scores over the temperature; its largest entry is always the predicted class."""
        scores = torch.from_numpy(self._scores(X).astype(np.float64))
        return torch.softmax(scores / self.temperature_, dim=1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The class of the largest score, shape ``(n,)``."""
        return self.classes_[self._scores(X).argmax(axis=1)]


def _grid(strengths: int | Sequence[float]) -> np.ndarray:
    values = np.logspace(-4, 3, strengths) if isinstance(strengths, int | np.integer) else np.asarray(strengths, float)
    if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values > 0)).all():
        raise UsageError(f"strengths={strengths!r}: expected a positive number of values, or positive values")
    return np.sort(values)


def _fold_scores(
    Z: np.ndarray,
    Y: np.ndarray,
    gram: np.ndarray,
    cross: np.ndarray,
    pair: tuple[np.ndarray, np.ndarray],
    alphas: np.ndarray,
) -> list[np.ndarray]:
    """Held-out scores ``(n_test, K)`` for each penalty, from the training part's Gram matrix about its own mean."""
    train, test = pair
    left_out = np.setdiff1d(np.arange(len(Z)), train)
    n = len(train)
    mean_z, mean_y = Z[train].mean(axis=0), Y[train].mean(axis=0)
    own_gram = gram - Z[left_out].T @ Z[left_out] - n * np.outer(mean_z, mean_z)
    own_cross = cross - Z[left_out].T @ Y[left_out] - n * np.outer(mean_z, mean_y)
    absent = Y[train].sum(axis=0) == 0
    scores = []
    for alpha in alphas:
        score = (Z[test] - mean_z) @ _solve(own_gram, own_cross, float(alpha)) + mean_y
        score[:, absent] = score.min() - 1.0  # a class this part never saw is never its answer
        scores.append(score)
    return scores


def _solve(gram: np.ndarray, cross: np.ndarray, alpha: float) -> np.ndarray:
    """``(gram + alpha I)^-1 cross`` by a Cholesky factor in double precision."""
    system = torch.from_numpy(gram + alpha * np.eye(len(gram)))
    return torch.cholesky_solve(torch.from_numpy(cross), torch.linalg.cholesky(system)).numpy()
