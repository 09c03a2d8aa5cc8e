"""A supervised network with the reproductive encoder's shape: what the same width would hold if labels had a say.

x -> act(W1 x + b1) -> W2 . + b2 (the k-vector) -> W3 . + b3 (class scores), trained by cross-entropy. The comparison
arm of arXiv 2304.10677's claim and the source of the discriminative features in its nesting analysis.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from offshelf.transfer.early_stopping import (
    activation_named,
    affine_stack,
    single_thread,
    through,
    train,
    validation_rows,
)
from offshelf.transfer.feature_matrix import class_codes, feature_matrix
from offshelf.transfer.row_space import framed


class SupervisedBottleneck(ClassifierMixin, TransformerMixin, BaseEstimator):
    """Classifier whose penultimate k-vector is its ``transform``; settings as in ReproductiveFeatures.

    Attributes
    ----------
    coefs_, intercepts_ : lists of three float32 arrays
        Weights as (out, in) of the layers D-h-k-K, on ``x - mean_``.
    mean_ : float32 array, (D,)
    classes_ : array, (K,)
    history_ : dict
        "train" and "validation" cross-entropy an epoch, and "best_epoch".
    n_parameters_ : int
    """

    def __init__(
        self,
        hidden_dim: int = 512,
        code_dim: int = 128,
        activation: str = "relu",
        code_activation: str | None = None,
        learning_rate: float = 1e-3,
        batch_size: int = 64,
        max_epochs: int = 50,
        patience: int = 5,
        validation_fraction: float = 0.1,
        row_space: bool = True,
        random_state: int = 0,
    ) -> None:
        self.hidden_dim = hidden_dim
        self.code_dim = code_dim
        self.activation = activation
        self.code_activation = code_activation
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.row_space = row_space
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> SupervisedBottleneck:
        """Train on the rows given; ``groups`` keep the rows left out for stopping whole.

        Parameters
        ----------
        X : array, shape (n, D)
        y : array, shape (n,)
        groups : array-like, shape (n,), optional
        """
        rows = feature_matrix(X)
        self.classes_, codes = class_codes(y, len(rows))
        self.n_features_in_ = rows.shape[1]
        n, K, seed = len(rows), len(self.classes_), int(self.random_state)
        with single_thread(), threadpool_limits(1):
            Z, frame = framed(rows, rotate=self.row_space)
            generator = torch.Generator().manual_seed(seed)
            parameters = affine_stack([Z.shape[1], self.hidden_dim, self.code_dim, K], generator)
            alone = np.bincount(codes)[codes] == 1
            watched = validation_rows(n, self.validation_fraction, seed, groups, alone)
            data, truth, activations = torch.from_numpy(Z), torch.from_numpy(codes), self._activations()

            def loss(batch: torch.Tensor) -> torch.Tensor:
                return torch.nn.functional.cross_entropy(through(parameters, data[batch], activations), truth[batch])

            history = train(
                parameters,
                loss,
                np.setdiff1d(np.arange(n), watched),
                watched,
                learning_rate=self.learning_rate,
                batch_size=self.batch_size,
                max_epochs=self.max_epochs,
                patience=self.patience,
                generator=generator,
            )
        W1, b1, W2, b2, W3, b3 = (p.numpy() for p in parameters)
        self.mean_ = frame.mean
        self.coefs_, self.intercepts_ = [frame.inward(W1), W2, W3], [b1, b2, b3]
        self.history_ = history.to_dict()
        self.n_parameters_ = int(sum(w.size + b.size for w, b in zip(self.coefs_, self.intercepts_)))
        return self

    def _activations(self) -> list[Any]:
        return [activation_named(self.activation), activation_named(self.code_activation), activation_named(None)]

    def _run(self, X: Any, layers: int) -> np.ndarray:
        check_is_fitted(self)
        x = torch.from_numpy(feature_matrix(X, width=self.n_features_in_) - self.mean_)
        parameters = [torch.from_numpy(p) for pair in zip(self.coefs_, self.intercepts_) for p in pair]
        with torch.inference_mode():
            return through(parameters, x, self._activations()[:layers]).numpy()

    def transform(self, X: Any) -> np.ndarray:
        """The k-vectors ``(n, k)``: discriminative features."""
        return self._run(X, 2)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Softmax of the class scores, ``(n, K)``."""
        return softmax(self._run(X, 3).astype(np.float64), axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, shape ``(n,)``."""
        return self.classes_[self._run(X, 3).argmax(axis=1)]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """``bottleneck0`` to ``bottleneck{k-1}``."""
        return np.array([f"bottleneck{i}" for i in range(self.code_dim)], dtype=object)
