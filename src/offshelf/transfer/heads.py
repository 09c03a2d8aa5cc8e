"""The written list of heads: classifiers on feature rows ``(n, d)`` that choose their regularisation inside those rows.

Every head takes classes of any kind, copes with a class of a single row, refuses NaN features by row number, has
``predict_proba`` with columns as in ``classes_``, and tells what it chose through ``chosen``. Put a StandardScaler
before them; all but "knn" care about the features' scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sklearn.base import BaseEstimator

from offshelf.errors import UsageError, near
from offshelf.transfer.kernel_svm import KernelSVM
from offshelf.transfer.logistic_path import LogisticPath
from offshelf.transfer.nearest_neighbours import NearestNeighbours
from offshelf.transfer.perceptron import Perceptron
from offshelf.transfer.ridge_path import RidgePath


class Head(NamedTuple):
    """One line of the list."""

    summary: str
    build: Callable[[Any, int], BaseEstimator]  # (cv, random_state) -> estimator


HEADS: dict[str, Head] = {
    "slp": Head(
        "single-layer perceptron: affine and softmax by Adam, epochs chosen",
        lambda cv, seed: Perceptron(hidden_dim=None, learning_rate=1e-2, cv=cv, random_state=seed),
    ),
    "mlp": Head(
        "multi-layer perceptron: 128 hidden ReLU units by Adam, epochs chosen",
        lambda cv, seed: Perceptron(hidden_dim=128, learning_rate=3e-3, cv=cv, random_state=seed),
    ),
    "svm-linear": Head(
        "support vector machine, linear kernel, C chosen",
        lambda cv, seed: KernelSVM(kernel="linear", C=(0.001, 0.01, 0.1, 1.0, 10.0), cv=cv, random_state=seed),
    ),
    "svm-rbf": Head(
        "support vector machine, Gaussian kernel, C and gamma chosen",
        lambda cv, seed: KernelSVM(kernel="rbf", cv=cv, random_state=seed),
    ),
    "logistic": Head(
        "multinomial logistic regression, penalty chosen",
        lambda cv, seed: LogisticPath(cv=cv, random_state=seed),
    ),
    "knn": Head(
        "nearest neighbours by cosine similarity, k chosen",
        lambda cv, seed: NearestNeighbours(cv=cv, random_state=seed),
    ),
    "ridge": Head(
        "one-hot ridge regression, penalty chosen; the quickest",
        lambda cv, seed: RidgePath(cv=cv, random_state=seed),
    ),
}


def make_head(name: str, cv: Any = None, random_state: int = 0) -> BaseEstimator:
    """A fresh, unfitted head.

    Parameters
    ----------
    name : str
        A name of ``HEADS``.
    cv : None, int or sequence of (train, test) index arrays
        Inner folds over the rows that ``fit`` will get: None is 3 stratified ones; index pairs keep groups whole.
    random_state : int
        Seed of folds, starts and batches.

    Raises
    ------
    UsageError
        For a name that is not on the list.
    """
    if name not in HEADS:
        raise UsageError(f"head {name!r} is not known{near(name, HEADS)}; expected one of {', '.join(HEADS)}")
    return HEADS[name].build(3 if cv is None else cv, random_state)


def chosen(head: Any) -> dict[str, Any]:
    """What a fitted head (or the last step of a fitted pipeline) chose: plain values that JSON can hold.

    Besides the settings: ``inner_folds``, the inner score of the choice, and ``notes`` on what had to be changed.
    """
    last = head.steps[-1][1] if hasattr(head, "steps") else head
    if not hasattr(last, "chosen_"):
        raise UsageError(f"{type(last).__name__} has chosen nothing yet; fit it first")
    return dict(last.chosen_)
