from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from offshelf.errors import DataError, UsageError
from offshelf.transfer.logistic_path import LogisticPath


def correlated(n: int, d: int, classes: int, seed: int = 0, signal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes whose features are mixed, of unlike scales and off centre."""
    random = np.random.default_rng(seed)
    y = random.integers(0, classes, n)
    centres = signal * random.normal(size=(classes, d))
    mixing = random.normal(size=(d, d)) / np.sqrt(np.arange(1, d + 1))[:, None]
    X = (random.normal(size=(n, d)) + centres[y]) @ mixing * 10 ** random.uniform(-1, 1, d) + 3
    return X.astype(np.float32), y


def objective(coef: np.ndarray, intercept: np.ndarray, X: np.ndarray, y: np.ndarray, C: float) -> float:
    """scikit-learn's: C times the summed loss plus half the squared weights, written a second time."""
    scores = X.astype(np.float64) @ coef.T.astype(np.float64) + intercept
    if scores.shape[1] == 1:
        scores = np.hstack([np.zeros_like(scores), scores])
    loss = -log_softmax(scores, axis=1)[np.arange(len(y)), y].sum()
    return float(C * loss + 0.5 * (coef.astype(np.float64) ** 2).sum()) / (C * len(y))


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0])
def test_objective_is_no_higher_than_scikit_learns_and_predictions_agree(classes: int, C: float) -> None:
    X, y = correlated(500, 60, classes, signal=0.25)
    X = StandardScaler().fit_transform(X).astype(np.float32)
    ours = LogisticPath(penalties=[C], standardise=False).fit(X, y)
    with threadpool_limits(1):
        theirs = LogisticRegression(C=C).fit(X.astype(np.float64), y)
        exact = LogisticRegression(C=C, tol=1e-9, max_iter=5000).fit(X.astype(np.float64), y)
    mine = objective(ours.coef_, ours.intercept_, X, y, C)
    assert ours.coef_.shape == theirs.coef_.shape
    assert mine <= objective(theirs.coef_, theirs.intercept_, X, y, C) + 1e-7
    assert mine <= objective(exact.coef_, exact.intercept_, X, y, C) + 5e-6
    assert (ours.predict(X) == exact.predict(X)).mean() >= 0.995
    np.testing.assert_allclose(ours.predict_proba(X), exact.predict_proba(X), atol=0.01)


def test_wide_features_with_fewer_rows_than_columns() -> None:
    X, y = correlated(80, 300, 3)
    ours = LogisticPath(penalties=[0.01]).fit(X, y)
    with threadpool_limits(1):
        scaler = StandardScaler().fit(X)
        exact = LogisticRegression(C=0.01, tol=1e-9, max_iter=5000).fit(scaler.transform(X).astype(np.float64), y)
    fresh, _ = correlated(200, 300, 3, seed=1)
    np.testing.assert_allclose(
        ours.predict_proba(fresh), exact.predict_proba(scaler.transform(fresh).astype(np.float64)), atol=5e-3
    )


def test_path_equals_a_loop_over_folds_and_penalties() -> None:
    X, y = correlated(240, 30, 4, signal=0.4)
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, y))
    grid = [1e-3, 1e-2, 1e-1, 1.0]
    ours = LogisticPath(penalties=grid, cv=folds, tol=1e-9).fit(X, y)
    expected = np.zeros(len(grid))
    with threadpool_limits(1):
        for train, test in folds:
            for i, C in enumerate(grid):
                model = make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-8, max_iter=2000))
                p = model.fit(X[train].astype(np.float64), y[train]).predict_proba(X[test].astype(np.float64))
                expected[i] -= np.log(p[np.arange(len(test)), y[test]]).mean() / 3
    np.testing.assert_allclose(ours.path_, expected, rtol=2e-3)
    assert grid[int(np.argmin(expected))] == ours.C_
    assert ours.chosen_["inner_folds"] == 3


def test_a_class_with_a_single_row_and_labels_that_are_not_contiguous() -> None:
    X, y = correlated(60, 8, 3)
    y = np.array([2, 7, 40])[y]
    y[0] = 99
    model = LogisticPath(random_state=0).fit(X, y)
    assert model.classes_.tolist() == [2, 7, 40, 99]
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1.0)
    assert "single row" in model.chosen_["notes"][0]


def test_no_inner_folds_possible_takes_the_stated_default() -> None:
    X = np.eye(4, dtype=np.float32)
    model = LogisticPath().fit(X, [0, 1, 2, 3])
    assert model.C_ == 1.0 and model.chosen_["inner_folds"] == 0
    assert model.predict(X).tolist() == [0, 1, 2, 3]


def test_string_classes_clone_search_and_refusals() -> None:
    X, y = correlated(90, 6, 3)
    names = np.array(["cat", "dog", "eel"])[y]
    assert set(clone(LogisticPath(penalties=3)).fit(X, names).predict(X)) <= {"cat", "dog", "eel"}
    assert len(cross_validate(LogisticPath(penalties=3), X, names, cv=3)["test_score"]) == 3
    search = GridSearchCV(LogisticPath(penalties=3), {"standardise": [True, False]}, cv=2).fit(X, names)
    assert search.best_params_["standardise"] in (True, False)
    X[4, 2] = np.nan
    with pytest.raises(DataError, match=r"rows: 4;"):
        LogisticPath().fit(X, y)
    with pytest.raises(UsageError, match="penalties"):
        LogisticPath(penalties=[0.0]).fit(X[5:], y[5:])
    with pytest.raises(DataError, match="at least 2 classes"):
        LogisticPath().fit(X[5:], np.zeros(85))


def test_constant_features_are_harmless() -> None:
    X, y = correlated(90, 6, 3)
    padded = np.hstack([X, np.full((90, 2), 7.0, dtype=np.float32)])
    a, b = LogisticPath(penalties=[0.1]).fit(X, y), LogisticPath(penalties=[0.1]).fit(padded, y)
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(padded), atol=1e-3)
