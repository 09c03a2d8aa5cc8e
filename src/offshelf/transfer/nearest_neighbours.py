"""k nearest neighbours by cosine similarity, k chosen inside the rows given."""

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

DEFAULT_K = 5  # used, and said so in `chosen_`, where no inner fold can be had
QUERY_ROWS = 1024  # similarity rows formed at once


class NearestNeighbours(ClassifierMixin, BaseEstimator):
    """Votes of the k most similar training rows (cosine), k chosen by mean balanced accuracy of the inner folds.

    Probabilities are ``(votes + prior) / (k + 1)`` with the training share of each class as prior: one imagined
    neighbour that keeps every probability above zero and settles even votes for the commoner class. Among equals the
    largest k is taken. A row of zeros is equally far from everything.

    Parameters
    ----------
    neighbours : sequence of int
        Values of k to try; those above the number of training rows are left out.
    cv : int or sequence of (train, test) index arrays, default 3
        Inner folds; see inner_folds.
    random_state : int or None
        Seed of the inner folds.

    Attributes
    ----------
    rows_ : float32 array, (n, d)
        The training rows, of unit length.
    codes_ : int array, (n,)
    prior_ : array, (K,)
    classes_ : array, (K,)
    k_ : int
    path_ : dict of k -> mean inner-fold balanced accuracy
    chosen_ : dict
    """

    def __init__(
        self, neighbours: Sequence[int] = (1, 3, 5, 10, 20, 50), cv: Any = 3, random_state: int | None = None
    ) -> None:
        self.neighbours = neighbours
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> NearestNeighbours:
        """Keep the rows and choose k.

        Parameters
        ----------
        X : array, shape (n, d)
        y : array, shape (n,)
        """
        rows = _unit(feature_matrix(X))
        self.classes_, codes = class_codes(y, len(rows))
        self.n_features_in_ = rows.shape[1]
        grid = sorted({int(k) for k in self.neighbours})
        if not grid or grid[0] < 1:
            raise UsageError(f"neighbours={self.neighbours!r}: expected whole numbers of at least 1")
        K = len(self.classes_)
        folds = inner_folds(codes, self.cv, self.random_state)
        smallest = min((len(train) for train, _ in folds.pairs), default=len(rows))
        grid = [k for k in grid if k <= smallest] or [min(grid[0], smallest)]
        accuracies = []
        for train, test in folds.pairs:
            prior = np.bincount(codes[train], minlength=K) / len(train)
            counted = _votes(rows[test], rows[train], codes[train], grid, K)
            accuracies.append([balanced_accuracy(codes[test], (votes + prior).argmax(axis=1)) for votes in counted])
        if accuracies:
            means = np.mean(accuracies, axis=0)
            self.path_ = {k: float(value) for k, value in zip(grid, means)}
            self.k_ = int(grid[len(grid) - 1 - int(np.argmax(np.round(means[::-1], 12)))])
        else:
            self.path_, self.k_ = {}, min(DEFAULT_K, len(rows))
        self.rows_, self.codes_, self.prior_ = rows, codes, np.bincount(codes) / len(codes)
        self.chosen_: dict[str, Any] = {"k": self.k_, **folds.recorded()}
        if self.path_:
            self.chosen_["inner_balanced_accuracy"] = self.path_[self.k_]
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Smoothed shares of the votes ``(n, K)``, columns as in ``classes_``."""
        check_is_fitted(self)
        query = _unit(feature_matrix(X, width=self.n_features_in_))
        votes = _votes(query, self.rows_, self.codes_, [self.k_], len(self.classes_))[0]
        return (votes + self.prior_) / (self.k_ + 1.0)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, shape ``(n,)``."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def _votes(query: np.ndarray, rows: np.ndarray, codes: np.ndarray, grid: list[int], n_classes: int) -> list[np.ndarray]:
    """Votes ``(n, K)`` for each k of the rising ``grid``, by one product and one partial sort a block of queries."""
    index, labels = torch.from_numpy(rows).T, torch.from_numpy(codes)
    blocks: list[list[np.ndarray]] = [[] for _ in grid]
    for block in torch.from_numpy(query).split(QUERY_ROWS):
        nearest = labels[(block @ index).topk(grid[-1], dim=1).indices]  # (b, k), the most similar first
        for k, kept in zip(grid, blocks):
            counts = torch.zeros(len(block), n_classes, dtype=torch.float64)
            kept.append(counts.scatter_add_(1, nearest[:, :k], torch.ones(len(block), k, dtype=torch.float64)).numpy())
    return [np.concatenate(kept) for kept in blocks]
