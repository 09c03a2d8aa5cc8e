"""Off-the-shelf features: one frozen layer, unit length, a linear support vector machine; and whitening for retrieval.

Razavian, Azizpour, Sullivan, Carlsson: CNN features off-the-shelf: an astounding baseline for recognition, CVPR
workshops 2014, arXiv 1403.6382. The claim: such features with a linear SVM beat classical features and networks trained
from scratch on small sets, and jittered copies with a signed power improve them further.

Departures: liblinear machines with a squared hinge by default, whose bias takes part in the penalty (libsvm's does
not); C is chosen on inner folds instead of stated a data set, and counts an image once: the solver gets C / copies, so
that more copies do not mean less regularisation; whitening is learnt on the index set, never on queries. Patches of the
spatial search: spatial_search.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.svm import LinearSVC
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from offshelf.errors import DataError, UsageError
from offshelf.transfer.feature_matrix import class_codes, feature_matrix
from offshelf.transfer.inner_folds import balanced_accuracy, inner_folds
from offshelf.transfer.row_space import row_space
from offshelf.transfer.score_calibration import Calibration, by_logistic, uncalibrated
from offshelf.transfer.voting import class_pairs, summed_margins, vote_scores, votes

C_GRID = (0.02, 0.06, 0.2, 0.6, 2.0, 6.0, 20.0)
# The signed square shrinks unit vectors by about their length in numbers (256 of 1/16 become 256 of 1/256), so that C
# must reach as much further for the same machine.
C_GRID_POWERED = (0.2, 2.0, 20.0, 200.0, 2_000.0, 20_000.0)
DEFAULT_C = 0.2  # the paper's value for three of its sets: used, and said so in `chosen_`, without inner folds


def signed_power(z: Any, power: float = 2.0) -> np.ndarray:
    """``sign(z) |z|^power`` by component; 1 leaves z as it is. (0.6, -0.8) at power 2 gives (0.36, -0.64)."""
    z = np.asarray(z)
    return z if power == 1 else np.sign(z) * np.abs(z) ** power


def l2_normalise(z: Any) -> np.ndarray:
    """Divide vectors along the last axis by their length; a vector of zeros stays zero, with a warning."""
    z = np.asarray(z)
    length = np.linalg.norm(z, axis=-1, keepdims=True)
    empty = int((length == 0).sum())
    if empty:
        warnings.warn(f"{empty} feature vectors are all zeros and have no direction: they stay zero", stacklevel=2)
    return z / np.where(length > 0, length, 1.0).astype(z.dtype)


class OffTheShelf(ClassifierMixin, BaseEstimator):
    """Linear SVM on unit-length features, with copies of an image as separate training samples and summed test scores.

    ``predict`` is the machines' decision; the largest entry of ``predict_proba`` may differ from it near a border.

    Parameters
    ----------
    copies : int
        Copies an image in each row: X is ``(n, copies * d)``, copies outermost.
    power : float
        Signed power of the unit-length features; the paper takes 2 together with copies. 1 is off.
    C : None, float or sequence of float
        Values to try; None is 0.02 to 20, or 0.2 to 20,000 with a power above 1. Counts an image once (see the module).
    multi_class : {"ovr", "ovo"}
        One machine a class, or one a pair of classes with votes.
    loss : {"squared_hinge", "hinge"}
    cv : int or sequence of (train, test) index arrays over the images, default 3
        Inner folds; all copies of an image lie in the same one.
    random_state : int or None
        Seed of the inner folds and of the solver's order.

    Attributes
    ----------
    coef_ : float32 array, (machines, d)
    intercept_ : float32 array, (machines,)
    classes_ : array, (K,)
    C_ : float
    path_ : array, (number of C,)
        Mean inner-fold balanced accuracy.
    chosen_ : dict
    """

    def __init__(
        self,
        copies: int = 1,
        power: float = 1.0,
        C: float | Sequence[float] | None = None,
        multi_class: str = "ovr",
        loss: str = "squared_hinge",
        cv: Any = 3,
        random_state: int | None = None,
    ) -> None:
        self.copies = copies
        self.power = power
        self.C = C
        self.multi_class = multi_class
        self.loss = loss
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> OffTheShelf:
        """Choose C inside the rows given, calibrate on held-out scores, fit on all.

        Parameters
        ----------
        X : array, shape (n, copies * d)
        y : array, shape (n,)
        """
        with threadpool_limits(1):  # two BLAS pools in one process fight over the cores
            return self._fit(X, y)

    def _fit(self, X: Any, y: Any) -> OffTheShelf:
        rows = feature_matrix(X)
        self.classes_, codes = class_codes(y, len(rows))
        self.n_features_in_ = rows.shape[1]
        if self.multi_class not in ("ovr", "ovo"):
            raise UsageError(f"multi_class={self.multi_class!r}: expected 'ovr' or 'ovo'")
        if self.loss not in ("squared_hinge", "hinge"):
            raise UsageError(f"loss={self.loss!r}: expected 'squared_hinge' or 'hinge'")
        Cs = np.unique(np.atleast_1d(np.asarray(self._range() if self.C is None else self.C, dtype=float)))
        if not len(Cs) or not (np.isfinite(Cs) & (Cs > 0)).all():
            raise UsageError(f"C={self.C!r}: expected positive numbers")
        Z, basis = self._samples(rows), None
        if Z.shape[2] > len(Z) * self.copies:  # a linear machine lives in the span of its samples: nothing is lost
            coordinates, basis = row_space(Z.reshape(-1, Z.shape[2]), centred=False)
            Z = coordinates.reshape(len(Z), self.copies, -1)
        K = len(self.classes_)
        folds = inner_folds(codes, self.cv, self.random_state)
        held_out = [
            [self._scores(Z[test], *self._machines(Z[train], codes[train], K, C)) for C in Cs]
            for train, test in folds.pairs
        ]
        self.path_, self.C_ = np.empty(0), float(Cs[0]) if len(Cs) == 1 else DEFAULT_C
        calibration = uncalibrated(K)
        if held_out:
            tests = [codes[test] for _, test in folds.pairs]
            hits = [[balanced_accuracy(t, decided) for _, decided in fold] for t, fold in zip(tests, held_out)]
            self.path_ = np.mean(hits, axis=0)
            best = int(np.argmax(np.round(self.path_, 12)))
            self.C_ = float(Cs[best])
            unseen = np.concatenate([fold[best][0] for fold in held_out])
            calibration = by_logistic(unseen, np.concatenate(tests), K)
        coefficients, intercepts = self._machines(Z, codes, K, self.C_)
        coefficients = coefficients if basis is None else coefficients @ basis.T
        self.coef_, self.intercept_ = coefficients.astype(np.float32), intercepts.astype(np.float32)
        self.calibration_weight_, self.calibration_bias_ = calibration.weight, calibration.bias
        self.chosen_: dict[str, Any] = {"C": self.C_, **folds.recorded(), "calibration": calibration.kind}
        if len(self.path_):
            self.chosen_["inner_balanced_accuracy"] = float(self.path_.max())
        return self

    def _range(self) -> tuple[float, ...]:
        return C_GRID_POWERED if self.power > 1 else C_GRID

    def _samples(self, rows: np.ndarray) -> np.ndarray:
        """Copies of each image as unit-length, powered vectors ``(n, copies, d)``."""
        if self.copies < 1 or rows.shape[1] % self.copies:
            raise UsageError(
                f"copies={self.copies}: the features are {rows.shape[1]} wide, expected a multiple of the number of "
                "copies; give the number with which the features were made"
            )
        return signed_power(l2_normalise(rows.reshape(len(rows), self.copies, -1)), self.power)

    def _machines(self, Z: np.ndarray, codes: np.ndarray, K: int, C: float) -> tuple[np.ndarray, np.ndarray]:
        """Weights ``(machines, d)`` and biases; a machine of a class without rows here is minus infinity or no vote."""
        samples, labels = Z.reshape(-1, Z.shape[2]), np.repeat(codes, Z.shape[1])
        tasks: list[tuple[np.ndarray, np.ndarray]] = []  # rows, their side (True speaks for the first class)
        if K == 2 or self.multi_class == "ovr":
            tasks = [(np.ones(len(labels), bool), labels == k) for k in ([1] if K == 2 else range(K))]
        else:
            tasks = [(np.isin(labels, pair), labels == pair[0]) for pair in class_pairs(K)]
        coefficients, intercepts = np.zeros((len(tasks), Z.shape[2])), np.zeros(len(tasks))
        for machine, (mine, positive) in enumerate(tasks):
            side = positive[mine]
            if not len(side) or side.all() or not side.any():  # a class absent here: it can win nothing
                intercepts[machine] = 1.0 if len(side) and side.all() else -1.0
                if self.multi_class == "ovr":
                    intercepts[machine] = -1e3
                continue
            svc = LinearSVC(
                C=C / Z.shape[1], loss=self.loss, dual="auto", max_iter=5000, random_state=self.random_state
            )
            svc.fit(samples[mine], side)
            coefficients[machine], intercepts[machine] = svc.coef_[0], svc.intercept_[0]
        return coefficients, intercepts

    def _scores(self, Z: np.ndarray, coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Margins ``(n, K)`` summed over copies (and pairs), and the decisions ``(n,)``."""
        K = len(self.classes_)
        summed = self._summed(Z, coef, intercept)
        if K == 2:
            return np.hstack([-summed, summed]), (summed[:, 0] > 0).astype(int)
        if self.multi_class == "ovr":
            return summed, summed.argmax(axis=1)
        return summed_margins(summed, K), votes(summed, K).argmax(axis=1)

    def _summed(self, Z: np.ndarray, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        """Machine scores summed over copies: exactly their number times the score of the mean copy, one product."""
        return Z.shape[1] * (Z.mean(axis=1) @ coef.T + intercept)

    def _decisions(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self)
        Z = self._samples(feature_matrix(X, width=self.n_features_in_))
        return self._scores(Z, self.coef_, self.intercept_)

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores summed over copies ``(n, K)`` ("ovo": votes); ``(n,)`` for two classes (positive: the second)."""
        check_is_fitted(self)
        K = len(self.classes_)
        Z = self._samples(feature_matrix(X, width=self.n_features_in_))
        summed = self._summed(Z, self.coef_, self.intercept_)
        if K == 2:
            return summed[:, 0]
        return summed if self.multi_class == "ovr" else vote_scores(summed, K)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities ``(n, K)`` by a logistic regression on held-out summed scores."""
        scores, _ = self._decisions(X)
        return Calibration(self.calibration_weight_, self.calibration_bias_, "").probabilities(scores)

    def predict(self, X: Any) -> np.ndarray:
        """The machines' decision, shape ``(n,)``."""
        return self.classes_[self._decisions(X)[1]]


class RetrievalWhitening(TransformerMixin, BaseEstimator):
    """Retrieval vectors: unit length, PCA with whitening, unit length, signed power (the paper's order).

    Fit it on the index set, never on queries.

    Parameters
    ----------
    dim : int
        Directions kept: at most min(dim, n - 1, d), and none without variance (which would whiten noise).
    power : float
        Signed power of the last step.

    Attributes
    ----------
    mean_ : float32 array, (d,)
    components_ : float32 array, (dim_, d)
        Directions, each divided by the standard deviation along it.
    dim_ : int
    """

    def __init__(self, dim: int = 500, power: float = 2.0) -> None:
        self.dim = dim
        self.power = power

    def fit(self, X: Any, y: Any = None) -> RetrievalWhitening:
        """Learn mean and directions of the unit-length rows ``(n, d)``."""
        rows = feature_matrix(X)
        if len(rows) < 2:
            raise DataError("one row was given, expected at least two to whiten by; give the whole index set")
        if self.dim < 1:
            raise UsageError(f"dim={self.dim}: expected at least 1")
        self.n_features_in_ = rows.shape[1]
        unit = l2_normalise(rows)
        self.mean_ = unit.mean(axis=0, dtype=np.float64).astype(np.float32)
        coordinates, basis = row_space(unit.astype(np.float64) - self.mean_)
        deviation = coordinates.std(axis=0, ddof=1, dtype=np.float64)
        keep = np.flatnonzero(deviation > 1e-5 * deviation.max())[: self.dim]
        if not len(keep):
            raise DataError(
                f"all {len(rows)} rows point the same way, so there is nothing to whiten; check the features"
            )
        self.components_ = (basis[:, keep] / deviation[keep]).T.astype(np.float32)
        self.dim_ = len(keep)
        return self

    def whiten(self, X: Any) -> np.ndarray:
        """The first two steps ``(n, dim_)``: on the fitted rows the covariance is the identity."""
        check_is_fitted(self)
        return (l2_normalise(feature_matrix(X, width=self.n_features_in_)) - self.mean_) @ self.components_.T

    def transform(self, X: Any) -> np.ndarray:
        """All four steps, ``(n, dim_)``."""
        return signed_power(l2_normalise(self.whiten(X)), self.power)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """``whitened0`` and so on."""
        return np.array([f"whitened{i}" for i in range(self.dim_)], dtype=object)
