"""Perceptrons with softmax output, trained by Adam for as many epochs as the inner folds ask for.

Without a hidden layer this is the single-layer perceptron of arXiv 2304.10677 (multinomial logistic regression reached
by gradient steps, d K + K weights), with one it is its multi-layer perceptron. scikit-learn's MLPClassifier stops on a
random tenth of the rows, which divides groups and fails on a class with one row; here every inner fold is watched, the
middle one of their best epochs is taken, and the final fit uses all rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from offshelf.transfer.early_stopping import (
    Activation,
    History,
    activation_named,
    affine_stack,
    single_thread,
    through,
    train,
)
from offshelf.transfer.feature_matrix import class_codes, feature_matrix
from offshelf.transfer.inner_folds import inner_folds
from offshelf.transfer.row_space import Frame, framed

DEFAULT_EPOCHS = 30  # used, and said so in `chosen_`, where no inner fold can be had


class Perceptron(ClassifierMixin, BaseEstimator):
    """Affine layers and a softmax, cross-entropy, Adam, early stopping; put a StandardScaler before it.

    Rows with more columns than there are rows are trained on in their row space, which changes no prediction's freedom.

    Parameters
    ----------
    hidden_dim : int or None
        Width of the hidden layer; None: no hidden layer.
    activation : str
        Of the hidden layer.
    learning_rate, weight_decay : float
        Of Adam; ``weight_decay`` is an L2 penalty.
    batch_size, max_epochs, patience : int
    cv : int or sequence of (train, test) index arrays, default 3
        Inner folds whose test parts say when to stop; see inner_folds.
    random_state : int
        The same seed gives the same bytes.

    Attributes
    ----------
    coefs_, intercepts_ : lists of float32 arrays
        Weights as (out, in), on ``x - mean_``.
    classes_ : array, (K,)
    n_epochs_ : int
    n_parameters_ : int
    chosen_ : dict
    """

    def __init__(
        self,
        hidden_dim: int | None = None,
        activation: str = "relu",
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-4,
        batch_size: int = 64,
        max_epochs: int = 100,
        patience: int = 5,
        cv: Any = 3,
        random_state: int = 0,
    ) -> None:
        self.hidden_dim = hidden_dim
        self.activation = activation
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Perceptron:
        """Choose the number of epochs on the inner folds, then fit on all rows.

        Parameters
        ----------
        X : array, shape (n, d)
        y : array, shape (n,)
        """
        rows = feature_matrix(X)
        self.classes_, codes = class_codes(y, len(rows))
        self.n_features_in_ = rows.shape[1]
        folds = inner_folds(codes, self.cv, int(self.random_state))
        with single_thread(), threadpool_limits(1):
            histories = [self._train(rows, codes, pair, self.max_epochs)[1] for pair in folds.pairs]
            best = [history.best_epoch for history in histories]
            self.n_epochs_ = int(np.ceil(np.median(best))) if best else min(DEFAULT_EPOCHS, self.max_epochs)
            everyone, nobody = np.arange(len(rows)), np.empty(0, dtype=np.int64)
            parameters, _, frame = self._train(rows, codes, (everyone, nobody), self.n_epochs_)
        weights = [p.numpy() for p in parameters[0::2]]
        self.coefs_ = [frame.inward(weights[0]), *weights[1:]]
        self.intercepts_ = [p.numpy() for p in parameters[1::2]]
        self.mean_ = frame.mean
        self.n_parameters_ = int(sum(w.size + b.size for w, b in zip(self.coefs_, self.intercepts_)))
        self.chosen_: dict[str, Any] = {"epochs": self.n_epochs_, **folds.recorded()}
        if histories:
            lowest = [history.validation[history.best_epoch - 1] for history in histories]
            self.chosen_["inner_log_loss"] = float(np.mean(lowest))
        return self

    def _train(
        self, rows: np.ndarray, codes: np.ndarray, pair: tuple[np.ndarray, np.ndarray], epochs: int
    ) -> tuple[list[torch.Tensor], History, Frame]:
        learnt, watched = pair
        seed = int(self.random_state)
        Z, frame = framed(rows[learnt], rotate=rows.shape[1] >= len(learnt))
        outside = rows[watched] - frame.mean
        outside = (outside if frame.basis is None else outside @ frame.basis) / np.float32(frame.scale)
        data = torch.from_numpy(np.concatenate([Z, outside.astype(np.float32)]))
        truth = torch.from_numpy(np.concatenate([codes[learnt], codes[watched]]))
        generator = torch.Generator().manual_seed(seed)
        hidden = [] if self.hidden_dim is None else [self.hidden_dim]
        parameters = affine_stack([Z.shape[1], *hidden, len(self.classes_)], generator)
        activations = self._activations()

        def loss(batch: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(through(parameters, data[batch], activations), truth[batch])

        history = train(
            parameters,
            loss,
            np.arange(len(learnt)),
            np.arange(len(learnt), len(data)),
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            max_epochs=epochs,
            patience=self.patience,
            generator=generator,
            weight_decay=self.weight_decay,
        )
        return parameters, history, frame

    def _activations(self) -> list[Activation]:
        hidden = [] if self.hidden_dim is None else [activation_named(self.activation)]
        return [*hidden, activation_named(None)]

    def decision_function(self, X: Any) -> np.ndarray:
        """Class scores before the softmax ``(n, K)``, or ``(n,)`` for two classes: the second's less the first's."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        x = torch.from_numpy(feature_matrix(X, width=self.n_features_in_) - self.mean_)
        parameters = [torch.from_numpy(p) for pair in zip(self.coefs_, self.intercepts_) for p in pair]
        with torch.inference_mode():
            return through(parameters, x, self._activations()).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities ``(n, K)``, columns as in ``classes_``."""
        return softmax(self._scores(X).astype(np.float64), axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, shape ``(n,)``."""
        return self.classes_[self._scores(X).argmax(axis=1)]
