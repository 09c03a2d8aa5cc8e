"""Deep reproductive features: an autoencoder code of many networks' outputs, made without labels.

Kayan, Koksal, Sevinc, Gumus: Deep reproductive feature generation framework for the diagnosis of COVID-19 and viral
pneumonia using chest X-ray images, 2023, arXiv 2304.10677.

The outputs of several frozen networks on four sections of an image, concatenated and standardised, are compressed by an
autoencoder with three hidden layers. Its code can reproduce the whole description, so it serves several label sets
without being fitted again. The claim: such codes classify at least as well as the best single network's features and as
a supervised bottleneck of equal width.

    a1 = act(W1 x + b1),  r = W2 a1 + b2,  a3 = act(W3 r + b3),  x^ = W4 a3 + b4,   loss = mean (x^ - x)^2

Departures and readings: widths, loss and optimiser are not stated in the abstract and are ours; the code is linear by
default; weights are not tied. Training sees the rows in the coordinates of their own row space (row_space), which
keeps the loss of training rows exactly and replaces tens of thousands of inputs by hundreds; the weights kept are those
of the plain network on the original columns.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from offshelf.errors import DataError, UsageError
from offshelf.transfer.early_stopping import (
    activation_named,
    affine_stack,
    single_thread,
    through,
    train,
    validation_rows,
)
from offshelf.transfer.feature_matrix import feature_matrix
from offshelf.transfer.row_space import framed


def parameter_count(width: int, hidden_dim: int, code_dim: int) -> int:
    """Weights and biases of the autoencoder width-h-k-h-width: 2 D h + 2 h k + 2 h + k + D."""
    return 2 * width * hidden_dim + 2 * hidden_dim * code_dim + 2 * hidden_dim + code_dim + width


class ReproductiveFeatures(TransformerMixin, BaseEstimator):
    """Unsupervised codes ``(n, k)`` of standardised features ``(n, D)``; put a StandardScaler before it.

    Parameters
    ----------
    hidden_dim, code_dim : int
        h and k. (The full-size setting is 1024 and 256.)
    activation : {"relu", "identity", "tanh", "sigmoid", "gelu", "elu"}
        Of both hidden layers beside the code.
    code_activation : str or None
        Of the code; None leaves it linear.
    learning_rate : float
        Of Adam.
    batch_size, max_epochs, patience : int
        Training stops after ``patience`` epochs without a lower loss on the rows left out; the best epoch is kept.
    validation_fraction : float
        Share of the rows given that is left out for stopping; 0 runs all epochs on all rows.
    row_space : bool
        Train in the row space of the training rows; the loss is the same, a step is many times cheaper when D is large.
    random_state : int
        Seed of the start, the batches and the rows left out. The same seed gives the same bytes.

    Attributes
    ----------
    encoder_coefs_, encoder_intercepts_, decoder_coefs_, decoder_intercepts_ : lists of two float32 arrays
        Weights as (out, in), on ``x - mean_``.
    mean_ : float32 array, (D,)
    history_ : dict
        "train" and "validation" losses an epoch, as shares of the features' variance (1 is predicting the mean), and
        "best_epoch".
    n_parameters_ : int

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(60, 40)).astype("float32")
    >>> ReproductiveFeatures(hidden_dim=16, code_dim=4, max_epochs=2).fit_transform(X).shape
    (60, 4)
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

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> ReproductiveFeatures:
        """Train the autoencoder on the rows given; ``y`` is not looked at.

        Parameters
        ----------
        X : array, shape (n, D)
        groups : array-like, shape (n,), optional
            The rows left out for stopping are whole groups.

        Raises
        ------
        DataError
            For NaN or infinite features (rows named), or a single row.
        """
        rows = feature_matrix(X)
        n, width = rows.shape
        if n < 2:
            raise DataError("one row was given, expected at least two to learn codes from; give more images")
        for name in ("hidden_dim", "code_dim"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.code_dim > n - 1:
            warnings.warn(
                f"code_dim={self.code_dim} is more than the {n - 1} directions that {n} rows span: the code can copy "
                "the training rows; take a smaller code_dim or more images",
                stacklevel=2,
            )
        self.n_features_in_ = width
        with single_thread(), threadpool_limits(1):
            Z, frame = framed(rows, rotate=self.row_space)
            generator = torch.Generator().manual_seed(int(self.random_state))
            h, k, r = self.hidden_dim, self.code_dim, Z.shape[1]
            parameters = affine_stack([r, h, k, h, r], generator)
            watched = validation_rows(n, self.validation_fraction, int(self.random_state), groups)
            data, activations = torch.from_numpy(Z), self._activations()

            def loss(batch: torch.Tensor) -> torch.Tensor:
                x = data[batch]
                return torch.nn.functional.mse_loss(through(parameters, x, activations), x)

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
            W1, b1, W2, b2, W3, b3, W4, b4 = (p.numpy() for p in parameters)
            self.mean_ = frame.mean
            self.encoder_coefs_, self.encoder_intercepts_ = [frame.inward(W1), W2], [b1, b2]
            self.decoder_coefs_, self.decoder_intercepts_ = [W3, frame.outward(W4)], [b3, frame.outward(b4)]
        self.history_ = history.to_dict()
        self.n_parameters_ = parameter_count(width, h, k)
        return self

    def _activations(self) -> list[Any]:
        inner, code = activation_named(self.activation), activation_named(self.code_activation)
        return [inner, code, inner, activation_named(None)]

    def transform(self, X: Any) -> np.ndarray:
        """Features ``(n, D)`` to codes ``(n, k)``, float32."""
        check_is_fitted(self)
        rows = feature_matrix(X, width=self.n_features_in_) - self.mean_
        return _run(rows, self.encoder_coefs_, self.encoder_intercepts_, self._activations()[:2])

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Codes ``(n, k)`` to the features ``(n, D)`` that the decoder makes of them."""
        check_is_fitted(self)
        codes = feature_matrix(X, width=self.code_dim, what="codes")
        return _run(codes, self.decoder_coefs_, self.decoder_intercepts_, self._activations()[2:]) + self.mean_

    def reconstruction_error(self, X: Any) -> float:
        """Mean squared error over rows and columns, in the features' units squared (standardised: 1 is the mean's)."""
        rows = feature_matrix(X)
        return float(((self.inverse_transform(self.transform(rows)) - rows).astype(np.float64) ** 2).mean())

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """``reproductive0`` to ``reproductive{k-1}``."""
        return np.array([f"reproductive{i}" for i in range(self.code_dim)], dtype=object)


def _run(x: np.ndarray, coefs: list[np.ndarray], intercepts: list[np.ndarray], activations: list[Any]) -> np.ndarray:
    parameters = [torch.from_numpy(p) for pair in zip(coefs, intercepts) for p in pair]
    with torch.inference_mode():
        return through(parameters, torch.from_numpy(x), activations).numpy()


class Nesting(NamedTuple):
    """How well each representation is a linear function of the other on unseen rows (R2, variance-weighted)."""

    discriminative_from_reproductive: float
    reproductive_from_discriminative: float


def nesting(codes: Any, discriminative: Any, train: Any, test: Any) -> Nesting:
    """Measure whether discriminative features behave as a subset of the reproductive ones: R2(d | r) and R2(r | d).

    Ridge regressions on standardised inputs, their penalty chosen on the training rows by generalised cross-validation.
    The first number high and clearly above the second is subset-like behaviour. Supervised features of K classes tend
    towards K - 1 directions, so a wide margin is nearly built in; say so beside the numbers.

    Parameters
    ----------
    codes : array, shape (n, k)
        Reproductive features r.
    discriminative : array, shape (n, m)
        Supervised features d of the same rows.
    train, test : int arrays
        Rows to fit on and rows to score.
    """
    r, d = feature_matrix(codes, what="codes"), feature_matrix(discriminative, what="discriminative features")
    if len(r) != len(d):
        raise DataError(f"{len(r)} rows of codes and {len(d)} of discriminative features, expected the same images")
    return Nesting(_explained(r, d, train, test), _explained(d, r, train, test))


def _explained(source: np.ndarray, target: np.ndarray, train: Any, test: Any) -> float:
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-3, 5, 17)))
    with threadpool_limits(1):
        model.fit(source[train].astype(np.float64), target[train].astype(np.float64))
        predicted = model.predict(source[test].astype(np.float64)).reshape(len(target[test]), -1)
    return float(r2_score(target[test], predicted, multioutput="variance_weighted"))
