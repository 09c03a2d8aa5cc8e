"""Kernel support vector machine whose grid shares one kernel matrix.

The Gram matrix of all rows is one matrix product; every C, gamma and inner fold then works on sub-blocks of it through
libsvm's precomputed kernel. Same machine and same accuracies as scikit-learn's SVC under GridSearchCV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.svm import SVC
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from offshelf.errors import UsageError
from offshelf.transfer.feature_matrix import class_codes, feature_matrix
from offshelf.transfer.inner_folds import balanced_accuracy, inner_folds
from offshelf.transfer.score_calibration import Calibration, by_logistic, uncalibrated
from offshelf.transfer.voting import class_pairs, summed_margins, vote_scores, votes

DEFAULT_C = 1.0  # with gamma "scale": used, and said so in `chosen_`, where no inner fold can be had
QUERY_ROWS = 2048  # kernel rows formed at once when predicting


@dataclass
class _Machine:
    """A fitted SVC on a precomputed kernel, as arrays in libsvm's packing (support rows sorted by class)."""

    support: np.ndarray  # (S,) positions among the training rows
    dual: np.ndarray  # (K' - 1, S)
    counts: np.ndarray  # (K',) support rows of each class
    bias: np.ndarray  # (pairs,)
    seen: np.ndarray  # (K',) class codes it was fitted on

    def pairwise(self, block: np.ndarray) -> np.ndarray:
        """Scores ``(n, pairs)`` from kernel values with the support rows ``(n, S)``.

        Positive speaks for the first class of a pair; with two classes in all, for the second (scikit-learn's sign).
        """
        if len(self.counts) == 2:
            return block @ self.dual.T + self.bias
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        # For the support rows of class i, line j - 1 (j > i) or j (j < i) of the packing belongs to the pair (i, j).
        shares = [block[:, a:b] @ self.dual[:, a:b].T for a, b in zip(ends, ends[1:])]  # K' of (n, K' - 1)
        pairs = class_pairs(len(self.counts))
        return np.stack([shares[i][:, j - 1] + shares[j][:, i] for i, j in pairs], axis=1) + self.bias


class KernelSVM(ClassifierMixin, BaseEstimator):
    """C-support-vector machine with C (and gamma) chosen by mean balanced accuracy of the inner folds.

    Among equals the smallest C, then the smallest gamma, is taken. ``predict`` is the machine's own decision
    (one-vs-one votes, as in ``SVC``). ``predict_proba`` comes from a multinomial logistic regression on held-out
    decision values: its largest entry **may differ** from ``predict`` for rows near a border.

    Parameters
    ----------
    kernel : {"rbf", "linear"}
        ``exp(-gamma ||x - z||^2)`` or ``x.z``.
    C : float or sequence of float
        Values to try.
    gamma : "scale" or float
        Centre of the gamma grid; "scale" is ``1 / (d * variance)`` of the training rows at hand, as in scikit-learn.
    gamma_factors : sequence of float
        Multiples of ``gamma`` to try (rbf only).
    cv : int or sequence of (train, test) index arrays, default 3
        Inner folds; see inner_folds.
    class_weight : None, "balanced" or dict of class -> weight
        As in SVC.
    probability : bool
        Calibrate probabilities; without it there is no ``predict_proba``.
    random_state : int or None
        Seed of the inner folds.

    Attributes
    ----------
    support_vectors_ : float32 array, (S, d)
    n_support_ : int array, (K,)
    dual_coef_ : array, (K - 1, S)
    intercept_ : array, (pairs,)
        As in SVC: support vectors sorted by class, dual coefficients in libsvm's packing, pairs (i, j) with i < j.
    classes_ : array, (K,)
    C_, gamma_ : float
        ``gamma_`` is NaN for the linear kernel.
    path_ : array, (number of C, number of gamma)
        Mean inner-fold balanced accuracy.
    chosen_ : dict
    """

    def __init__(
        self,
        kernel: str = "rbf",
        C: float | Sequence[float] = (0.01, 0.1, 1.0, 10.0, 100.0),
        gamma: str | float = "scale",
        gamma_factors: Sequence[float] = (0.1, 1.0, 10.0),
        cv: Any = 3,
        class_weight: Any = None,
        probability: bool = True,
        random_state: int | None = None,
    ) -> None:
        self.kernel = kernel
        self.C = C
        self.gamma = gamma
        self.gamma_factors = gamma_factors
        self.cv = cv
        self.class_weight = class_weight
        self.probability = probability
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> KernelSVM:
        """Choose C and gamma inside the rows given, calibrate on held-out scores, fit on all rows.

        Parameters
        ----------
        X : array, shape (n, d)
        y : array, shape (n,)
        """
        with threadpool_limits(1):  # two BLAS pools in one process fight over the cores
            return self._fit(X, y)

    def _fit(self, X: Any, y: Any) -> KernelSVM:
        rows = feature_matrix(X)
        self.classes_, codes = class_codes(y, len(rows))
        self.n_features_in_ = rows.shape[1]
        self.centre_ = rows.mean(axis=0)  # no kernel difference or decision changes, but less cancellation
        centred = rows - self.centre_
        Cs, factors = self._grids()
        products = _products(centred, centred)
        folds = inner_folds(codes, self.cv, self.random_state)

        n, K = len(rows), len(self.classes_)
        self.path_ = np.empty((0, 0))
        c_best, factor_best = DEFAULT_C, 1.0
        best_scores, truth = np.empty((0, K)), np.empty(0, dtype=np.int64)
        if folds.pairs:
            accuracy = np.zeros((len(folds.pairs), len(Cs), len(factors)))
            held_out: dict[tuple[int, int], list[np.ndarray]] = {}
            for f, (train, test) in enumerate(folds.pairs):
                base = self._gamma(centred[train])
                for g, factor in enumerate(factors):
                    inner = self._kernel(products[np.ix_(train, train)], products, train, train, base * factor)
                    outer = self._kernel(products[np.ix_(test, train)], products, test, train, base * factor)
                    for c, C in enumerate(Cs):
                        machine = self._machine(inner, codes[train], C)
                        margins, predicted = _decide(outer[:, machine.support], machine, K)
                        accuracy[f, c, g] = balanced_accuracy(codes[test], predicted)
                        held_out.setdefault((c, g), []).append(margins)
            self.path_ = accuracy.mean(axis=0)
            c, g = divmod(int(np.argmax(np.round(self.path_, 12))), len(factors))
            c_best, factor_best = float(Cs[c]), float(factors[g])
            best_scores = np.concatenate(held_out[c, g])
            truth = np.concatenate([codes[test] for _, test in folds.pairs])

        self.C_ = c_best
        self.gamma_ = float(self._gamma(centred) * factor_best) if self.kernel == "rbf" else float("nan")
        everyone = np.arange(n)
        machine = self._machine(self._kernel(products, products, everyone, everyone, self.gamma_), codes, self.C_)
        self.support_vectors_ = centred[machine.support] + self.centre_
        self.dual_coef_, self.n_support_, self.intercept_ = machine.dual, machine.counts, machine.bias
        self.chosen_: dict[str, Any] = {"kernel": self.kernel, "C": self.C_}
        if self.kernel == "rbf":
            self.chosen_["gamma"] = self.gamma_
        self.chosen_.update(folds.recorded())
        if self.path_.size:
            self.chosen_["inner_balanced_accuracy"] = float(self.path_.max())
        if self.probability:
            calibration = by_logistic(best_scores, truth, K) if len(truth) else uncalibrated(K)
            self.calibration_weight_, self.calibration_bias_ = calibration.weight, calibration.bias
            self.chosen_["calibration"] = calibration.kind
        return self

    def _grids(self) -> tuple[np.ndarray, np.ndarray]:
        if self.kernel not in ("rbf", "linear"):
            raise UsageError(f"kernel={self.kernel!r}: expected 'rbf' or 'linear'")
        Cs = np.unique(np.atleast_1d(np.asarray(self.C, dtype=float)))
        factors = np.unique(np.asarray(self.gamma_factors, dtype=float)) if self.kernel == "rbf" else np.ones(1)
        for name, values in (("C", Cs), ("gamma_factors", factors)):
            if not len(values) or not (np.isfinite(values) & (values > 0)).all():
                raise UsageError(f"{name}={getattr(self, name)!r}: expected positive numbers")
        if self.gamma != "scale" and not (isinstance(self.gamma, int | float) and self.gamma > 0):
            raise UsageError(f"gamma={self.gamma!r}: expected 'scale' or a positive number")
        return Cs, factors

    def _gamma(self, rows: np.ndarray) -> float:
        if self.gamma != "scale":
            return float(self.gamma)
        # The variance of all entries (not by column) of the rows as given, so the centre is put back.
        variance = float((rows + self.centre_).var(dtype=np.float64))
        return 1.0 / (rows.shape[1] * variance) if variance > 0 else 1.0

    def _kernel(
        self, block: np.ndarray, products: np.ndarray, left: np.ndarray, right: np.ndarray, gamma: float
    ) -> np.ndarray:
        if self.kernel == "linear":
            return block
        square = np.diag(products)
        return _rbf(block, square[left], square[right], gamma)

    def _machine(self, kernel: np.ndarray, codes: np.ndarray, C: float) -> _Machine:
        weight = self.class_weight
        if isinstance(weight, dict):
            weight = {int(np.flatnonzero(self.classes_ == k)[0]): v for k, v in weight.items() if k in self.classes_}
        svc = SVC(kernel="precomputed", C=C, class_weight=weight, cache_size=500)
        svc.fit(kernel, codes)
        fitted = (svc.support_, svc.dual_coef_, svc.n_support_, svc.intercept_, svc.classes_)
        return _Machine(*(np.asarray(array) for array in fitted))

    def _pairwise(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        rows = feature_matrix(X, width=self.n_features_in_) - self.centre_
        support = self.support_vectors_ - self.centre_
        K = len(self.classes_)
        machine = _Machine(np.arange(len(support)), self.dual_coef_, self.n_support_, self.intercept_, np.arange(K))
        square = (support.astype(np.float64) ** 2).sum(axis=1)
        parts = []
        for start in range(0, len(rows), QUERY_ROWS):
            query = rows[start : start + QUERY_ROWS]
            block = _products(query, support)
            if self.kernel == "rbf":
                block = _rbf(block, (query.astype(np.float64) ** 2).sum(axis=1), square, self.gamma_)
            parts.append(machine.pairwise(block))
        return np.concatenate(parts)

    def decision_function(self, X: Any) -> np.ndarray:
        """As SVC: ``(n,)`` for two classes (positive: the second), else votes and summed pairwise scores ``(n, K)``."""
        pairwise, K = self._pairwise(X), len(self.classes_)
        return pairwise[:, 0] if K == 2 else vote_scores(pairwise, K)

    @available_if(lambda self: bool(self.probability))
    def predict_proba(self, X: Any) -> np.ndarray:
        """Calibrated probabilities ``(n, K)``; near a border the largest may be of another class than ``predict``."""
        margins, _ = _verdict(self._pairwise(X), len(self.classes_))
        return Calibration(self.calibration_weight_, self.calibration_bias_, "").probabilities(margins)

    def linear_margins(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights ``(K, d)`` and intercepts ``(K,)`` of the margins behind the probabilities; linear kernel only.

        A margin is the sum of a class's pairwise scores; with two classes, plus and minus the one score.
        """
        check_is_fitted(self)
        if self.kernel != "linear":
            raise UsageError(f"kernel={self.kernel!r}: its margins are not linear in the features; expected 'linear'")
        K = len(self.classes_)
        at_centre, _ = _verdict(self._pairwise(self.centre_[None]), K)
        support = self.support_vectors_ - self.centre_
        machine = _Machine(np.arange(len(support)), self.dual_coef_, self.n_support_, self.intercept_, np.arange(K))
        slopes, _ = _verdict(machine.pairwise(support.T.astype(np.float64)) - self.intercept_, K)  # (d, K)
        return slopes.T, at_centre[0] - self.centre_.astype(np.float64) @ slopes

    def predict(self, X: Any) -> np.ndarray:
        """The machine's own decision, shape ``(n,)``."""
        return self.classes_[_verdict(self._pairwise(X), len(self.classes_))[1]]


def _products(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Inner products ``(n, m)`` in double precision: squared distances are differences of these."""
    return A.astype(np.float64) @ B.astype(np.float64).T


def _rbf(block: np.ndarray, left: np.ndarray, right: np.ndarray, gamma: float) -> np.ndarray:
    distance = np.maximum(left[:, None] + right[None, :] - 2.0 * block, 0.0)
    return np.exp(-gamma * distance)


def _decide(block: np.ndarray, machine: _Machine, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Summed margins ``(n, K)`` and decisions ``(n,)`` from kernel values with the support rows ``(n, S)``.

    A class the machine never saw gets a margin below all others.
    """
    own, decided = _verdict(machine.pairwise(block), len(machine.seen))
    margins = np.full((len(block), n_classes), own.min() - 1.0)
    margins[:, machine.seen] = own
    return margins, machine.seen[decided]


def _verdict(pairwise: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Summed margins ``(n, K)`` and decisions ``(n,)`` from pairwise scores."""
    if n_classes == 2:
        return np.hstack([-pairwise, pairwise]), (pairwise[:, 0] > 0).astype(int)
    return summed_margins(pairwise, n_classes), votes(pairwise, n_classes).argmax(axis=1)
