from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.model_selection import StratifiedKFold

from offshelf.transfer.ridge_path import RidgePath


def clusters(n: int, d: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = random.integers(0, classes, n)
    X = random.normal(size=(n, d)) + 0.7 * np.random.default_rng(9).normal(size=(classes, d))[y] + 5
    return X.astype(np.float32), y


@pytest.mark.parametrize(("n", "d"), [(150, 20), (60, 200)])
def test_equals_ridge_of_scikit_learn_at_the_chosen_penalty(n: int, d: int) -> None:
    X, y = clusters(n, d)
    model = RidgePath(random_state=0).fit(X, y)
    exact = Ridge(alpha=model.alpha_, solver="cholesky").fit(X.astype(np.float64), np.eye(3)[y])
    fresh, _ = clusters(50, d, seed=1)
    np.testing.assert_allclose(model.decision_function(fresh), exact.predict(fresh), atol=2e-4)


def test_path_equals_a_loop_over_folds() -> None:
    X, y = clusters(120, 15)
    folds = list(StratifiedKFold(4, shuffle=True, random_state=1).split(X, y))
    model = RidgePath(strengths=[1e-3, 1.0, 100.0], cv=folds).fit(X, y)
    unit = model.alpha_ / model.chosen_["strength"]
    for i, strength in enumerate(model.strengths_):
        scores = []
        for train, test in folds:
            ridge = Ridge(alpha=strength * unit, solver="cholesky").fit(
                X[train].astype(np.float64), np.eye(3)[y[train]]
            )
            scores.append(balanced_accuracy_score(y[test], ridge.predict(X[test]).argmax(axis=1)))
        assert model.path_[i] == pytest.approx(np.mean(scores), abs=1e-9)


def test_temperature_keeps_the_decision_and_lowers_the_log_loss() -> None:
    X, y = clusters(300, 20)
    fresh, truth = clusters(300, 20, seed=1)
    model = RidgePath(random_state=0).fit(X, y)
    p = model.predict_proba(fresh)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    assert (model.classes_[p.argmax(axis=1)] == model.predict(fresh)).all()
    plain = np.exp(model.decision_function(fresh))
    assert log_loss(truth, p) < log_loss(truth, plain / plain.sum(axis=1, keepdims=True)) - 0.05


def test_two_classes_and_single_rows() -> None:
    X, y = clusters(60, 5, classes=2)
    two = RidgePath().fit(X, y)
    assert ((two.decision_function(X) > 0) == two.predict(X)).all()
    model = RidgePath().fit(np.eye(3, dtype=np.float32), ["a", "b", "c"])
    assert model.chosen_["inner_folds"] == 0 and model.chosen_["strength"] == 1.0
    assert model.predict(np.eye(3)).tolist() == ["a", "b", "c"]
