"""Multinomial logistic regression with its whole penalty grid and all inner folds solved as one tensor program.

For n training rows the objective is scikit-learn's, with its meaning of ``C``::

    mean_i -log softmax(W x_i + b)[y_i]  +  ||W||^2 / (2 C n)         (b is not penalised)

(for two classes: its one-vector form, so that ``C`` means the same there too). Every inner fold is standardised by its
own training rows and rotated onto their principal directions (row_space): the penalty does not notice a rotation, while
in these coordinates the curvature is nearly diagonal, p (1 - p) times the variance of a direction, and a diagonal
preconditioner takes out most of the bad conditioning. All penalties of a fold share each matrix product. Parameters and
products are float32; losses are summed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from offshelf.errors import UsageError
from offshelf.transfer.batched_lbfgs import minimise
from offshelf.transfer.feature_matrix import class_codes, feature_matrix
from offshelf.transfer.inner_folds import inner_folds
from offshelf.transfer.row_space import row_space

PATH_SLACK = 10.0  # the grid is solved to this times `tol`: the place of its minimum needs no more
DEFAULT_C = 1.0  # used, and said so in `chosen_`, where no inner fold can be had


@dataclass
class _Fold:
    """One training part, standardised and rotated, with a column of ones last."""

    Z: torch.Tensor  # (n, r + 1)
    codes: torch.Tensor  # (n,)
    absent: torch.Tensor  # (K,) True for a class without a row here
    mean: np.ndarray  # (d,)
    scale: np.ndarray  # (d,)
    basis: np.ndarray  # (d, r)

    def rotated(self, X: np.ndarray) -> torch.Tensor:
        Z = ((X - self.mean) / self.scale) @ self.basis
        return torch.from_numpy(np.hstack([Z, np.ones((len(Z), 1), dtype=np.float32)]))


class LogisticPath(ClassifierMixin, BaseEstimator):
    """Logistic regression whose penalty is chosen by mean inner-fold log loss over a grid, then fitted on all rows.

    Parameters
    ----------
    penalties : int or sequence of float
        Values of ``C`` to try; a number means so many log-spaced from 1e-4 to 1e2.
    cv : int or sequence of (train, test) index arrays, default 3
        Inner folds; see inner_folds.
    max_iter : int
        Solver steps at most, for each penalty and fold.
    tol : float
        The last fit stops when its next step promises a fall below ``tol`` times ``max(1, loss)``; the grid at ten
        times that.
    standardise : bool
        Divide each feature by its standard deviation (of the training rows at hand). False gives exactly the objective
        of ``LogisticRegression`` on the features as they come.
    random_state : int or None
        Seed of the inner folds.

    Attributes
    ----------
    coef_ : float32 array, (K, d), or (1, d) for two classes
        In the units of the features given, whatever ``standardise`` says.
    intercept_ : float32 array, (K,) or (1,)
    classes_ : array, (K,)
    C_ : float
        The penalty chosen.
    penalties_, path_ : arrays, (P,)
        The grid, rising, and its mean inner-fold log losses (empty ``path_`` where there was no inner fold).
    n_iter_ : int
        Solver steps of the last fit.
    chosen_ : dict
    """

    def __init__(
        self,
        penalties: int | Sequence[float] = 10,
        cv: Any = 3,
        max_iter: int = 200,
        tol: float = 1e-6,
        standardise: bool = True,
        random_state: int | None = None,
    ) -> None:
        self.penalties = penalties
        self.cv = cv
        self.max_iter = max_iter
        self.tol = tol
        self.standardise = standardise
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> LogisticPath:
        """Choose ``C`` inside the rows given and fit on all of them.

        Parameters
        ----------
        X : array, shape (n, d)
        y : array, shape (n,)

        Raises
        ------
        DataError
            For NaN features (rows named), missing labels or a single class.
        UsageError
            For a penalty that is not positive.
        """
        rows = feature_matrix(X)
        self.classes_, codes = class_codes(y, len(rows))
        self.n_features_in_ = rows.shape[1]
        self.penalties_ = _grid(self.penalties)
        folds = inner_folds(codes, self.cv, self.random_state)
        self.path_ = self._path(rows, codes, folds.pairs)
        if len(self.path_):
            self.C_ = float(self.penalties_[np.argmin(self.path_)])
        else:
            self.C_ = DEFAULT_C
        self._fit_all(rows, codes)
        self.chosen_: dict[str, Any] = {"C": self.C_, **folds.recorded()}
        if len(self.path_):
            self.chosen_["inner_log_loss"] = float(self.path_.min())
        return self

    def _path(self, rows: np.ndarray, codes: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        if not pairs:
            return np.empty(0)
        folds = [self._fold(rows[train], codes[train]) for train, _ in pairs]
        solutions, _ = _solve(folds, self.penalties_, len(self.classes_), self.max_iter, PATH_SLACK * self.tol)
        losses = [
            _held_out_losses(fold, solution, rows[test], codes[test])
            for fold, solution, (_, test) in zip(folds, solutions, pairs)
        ]
        return np.mean(losses, axis=0)

    def _fit_all(self, rows: np.ndarray, codes: np.ndarray) -> None:
        fold = self._fold(rows, codes)
        solutions, steps = _solve([fold], np.array([self.C_]), len(self.classes_), self.max_iter, self.tol)
        W = solutions[0][0].double().numpy()  # (K, r + 1)
        coefficients = (W[:, :-1] @ fold.basis.T.astype(np.float64)) / fold.scale
        intercept = W[:, -1] - coefficients @ fold.mean
        if len(self.classes_) == 2:
            coefficients, intercept = coefficients[1:] - coefficients[:1], intercept[1:] - intercept[:1]
        self.coef_, self.intercept_ = coefficients.astype(np.float32), intercept.astype(np.float32)
        self.n_iter_ = int(steps.max())

    def _fold(self, rows: np.ndarray, codes: np.ndarray) -> _Fold:
        mean = rows.mean(axis=0, dtype=np.float64)
        scale = np.ones(rows.shape[1])
        if self.standardise:
            spread = rows.std(axis=0, dtype=np.float64)
            scale = np.where(spread > 1e-6 * np.maximum(np.abs(mean), 1e-6), spread, 1.0)
        Z, basis = row_space((rows - mean) / scale)
        ones = np.ones((len(Z), 1), dtype=np.float32)
        counts = np.bincount(codes, minlength=len(self.classes_))
        return _Fold(
            torch.from_numpy(np.hstack([Z, ones])),
            torch.from_numpy(codes),
            torch.from_numpy(counts == 0),
            mean.astype(np.float32),
            scale.astype(np.float32),
            basis,
        )

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores ``(n, K)``, or ``(n,)`` for two classes (positive: the second)."""
        check_is_fitted(self)
        scores = feature_matrix(X, width=self.n_features_in_) @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities ``(n, K)``, columns as in ``classes_``."""
        scores = self.decision_function(X).astype(np.float64)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        return softmax(scores, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, shape ``(n,)``."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def _grid(penalties: int | Sequence[float]) -> np.ndarray:
    values = np.logspace(-4, 2, penalties) if isinstance(penalties, int | np.integer) else np.asarray(penalties, float)
    if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values > 0)).all():
        raise UsageError(f"penalties={penalties!r}: expected a positive number of values, or positive values of C")
    return np.sort(values)


def _solve(
    folds: list[_Fold], penalties: np.ndarray, n_classes: int, max_iter: int, tol: float
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Solve every (fold, penalty) problem; gives per fold a tensor ``(P, K, r_f + 1)`` and the steps ``(F * P,)``."""
    width = max(fold.Z.shape[1] for fold in folds)
    P, F, K = len(penalties), len(folds), n_classes
    # The softmax form has twice the freedom of the one-vector form of two classes: the same fit needs half the C.
    C = torch.from_numpy(penalties / 2 if n_classes == 2 else penalties)
    Z = []
    ridge = torch.zeros(F, P, 1, width)  # 1 / (C n), zero for the intercept and the padding
    stretch = torch.zeros(F, P, 1, width)  # preconditioner: w = stretch * u
    for f, fold in enumerate(folds):
        n, own = fold.Z.shape
        Z.append(torch.nn.functional.pad(fold.Z[:, :-1], (0, width - own)))
        Z[f] = torch.cat([Z[f], fold.Z[:, -1:]], dim=1)
        ridge[f, :, 0, :-1] = (1.0 / (C * n)).float()[:, None]
        curvature = (1 / K) * (1 - 1 / K) * (Z[f].double() ** 2).mean(dim=0)
        stretch[f, :, 0, :] = (curvature + 1.0 / (C * n)[:, None]).rsqrt().float()
    ridge, stretch = ridge.flatten(0, 1), stretch.flatten(0, 1)

    def objective(problems: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        W = u.view(-1, K, width) * stretch[problems]
        penalised = W * ridge[problems]
        losses = 0.5 * (W * penalised).sum(dim=(1, 2), dtype=torch.float64)
        gradients = penalised
        of_fold = problems // P
        for f, fold in enumerate(folds):
            mine = torch.nonzero(of_fold == f).flatten()
            if not len(mine):
                continue
            loss, gradient = _cross_entropy(Z[f], fold, W[mine])
            losses[mine] += loss
            gradients[mine] += gradient
        return losses, (gradients * stretch[problems]).flatten(1)

    u, _, steps = minimise(objective, torch.zeros(F * P, K * width), max_iter=max_iter, tol=tol)
    W = (u.view(F * P, K, width) * stretch).view(F, P, K, width)
    solutions = []
    for f, fold in enumerate(folds):
        own = fold.Z.shape[1]
        solutions.append(torch.cat([W[f, :, :, : own - 1], W[f, :, :, -1:]], dim=2))
    return solutions, steps


def _cross_entropy(Z: torch.Tensor, fold: _Fold, W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy ``(A,)`` and its gradient ``(A, K, r + 1)`` for A weight matrices on the same rows."""
    A, K, width = W.shape
    n = len(Z)
    logits = (Z @ W.reshape(A * K, width).T).view(n, A, K)
    if fold.absent.any():
        logits[:, :, fold.absent] = -torch.inf
    # Written out: over so short an axis torch.log_softmax costs as much as the matrix product (five times this).
    logits -= logits.amax(dim=2, keepdim=True)
    row = torch.arange(n)
    truth = logits[row, :, fold.codes]
    p = logits.exp_()
    total = p.sum(dim=2)
    loss = (total.log() - truth).mean(dim=0, dtype=torch.float64)
    p /= total[:, :, None]
    p[row, :, fold.codes] -= 1.0
    return loss, ((p.view(n, A * K).T @ Z) / n).view(A, K, width)


def _held_out_losses(fold: _Fold, W: torch.Tensor, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Mean log loss ``(P,)`` of one fold's solutions on its held-out rows."""
    P, K, width = W.shape
    logits = (fold.rotated(rows) @ W.reshape(P * K, width).T).view(len(rows), P, K)
    logits[:, :, fold.absent] = -torch.inf
    log_p = torch.log_softmax(logits.double(), dim=2)
    return -log_p[torch.arange(len(rows)), :, torch.from_numpy(codes)].mean(dim=0).numpy()
