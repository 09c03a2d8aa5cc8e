from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import SVC

from offshelf.errors import UsageError
from offshelf.transfer.kernel_svm import KernelSVM

GRID = (0.1, 1.0, 10.0)


def rings(n: int, classes: int, d: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Classes at growing distance from one centre, off the origin: no line parts them."""
    random = np.random.default_rng(seed)
    y = random.integers(0, classes, n)
    X = random.normal(size=(n, d)) * (1.0 + 0.6 * y[:, None]) + 4
    return X.astype(np.float32), y


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("classes", [2, 4])
def test_grid_equals_scikit_learns_search_to_four_digits(kernel: str, classes: int) -> None:
    X, y = rings(160, classes)
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, y))
    ours = KernelSVM(kernel, C=GRID, gamma_factors=(1.0,), cv=folds).fit(X, y)
    search = GridSearchCV(SVC(kernel=kernel), {"C": list(GRID)}, cv=folds, scoring="balanced_accuracy").fit(X, y)
    np.testing.assert_allclose(ours.path_[:, 0], search.cv_results_["mean_test_score"], atol=1e-4)
    assert search.best_params_["C"] == ours.C_
    fresh, _ = rings(200, classes, seed=1)
    np.testing.assert_allclose(ours.decision_function(fresh), search.decision_function(fresh), atol=2e-3)
    assert (ours.predict(fresh) == search.predict(fresh)).mean() >= 0.995


def test_gamma_is_chosen_and_recorded() -> None:
    X, y = rings(160, 3)
    model = KernelSVM("rbf", C=GRID, random_state=0).fit(X, y)
    assert model.path_.shape == (3, 3)
    scale = 1 / (X.shape[1] * X.var(dtype=np.float64))
    assert min(abs(model.gamma_ / scale / factor - 1) for factor in (0.1, 1.0, 10.0)) < 1e-4
    assert model.chosen_["gamma"] == model.gamma_


def test_ties_take_the_smaller_C() -> None:
    X = np.concatenate([np.full((20, 2), -5.0), np.full((20, 2), 5.0)]) + np.random.default_rng(0).normal(size=(40, 2))
    assert KernelSVM("linear", C=(0.1, 1.0, 10.0)).fit(X, np.repeat([0, 1], 20)).C_ == 0.1


def test_probabilities_are_calibrated_on_rows_the_machine_had_not_seen() -> None:
    X, y = rings(400, 3)
    fresh, truth = rings(2000, 3, seed=1)
    model = KernelSVM("rbf", C=(1.0, 10.0), random_state=0).fit(X, y)
    p = model.predict_proba(fresh)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    confidence, hit = p.max(axis=1), p.argmax(axis=1) == truth
    assert abs(confidence.mean() - hit.mean()) < 0.05
    # The decision is the machine's own and may differ from the likeliest class, which is no worse an answer.
    decided, likeliest = model.predict(fresh), p.argmax(axis=1)
    assert (decided != likeliest).any()
    accuracy = balanced_accuracy_score(truth, decided)
    assert accuracy > 0.6
    assert balanced_accuracy_score(truth, likeliest) > accuracy - 0.02


def test_without_probability_there_is_no_predict_proba() -> None:
    X, y = rings(60, 2)
    model = KernelSVM("linear", probability=False).fit(X, y)
    assert not hasattr(model, "predict_proba") and model.decision_function(X).shape == (60,)


def test_class_weights_are_those_of_svc() -> None:
    X, y = rings(200, 2)
    keep = np.concatenate([np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:15]])
    X, y = X[keep], np.array(["many", "few"])[y[keep]]
    for weight in ("balanced", {"few": 5.0, "many": 1.0}):
        ours = KernelSVM("linear", C=1.0, class_weight=weight).fit(X, y)
        theirs = SVC(kernel="linear", C=1.0, class_weight=weight).fit(X, y)
        np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=5e-3)


def test_single_rows_and_absent_classes_in_given_folds() -> None:
    X, y = rings(60, 3)
    y[0] = 8
    model = KernelSVM("rbf", C=GRID).fit(X, y)
    assert model.predict_proba(X).shape == (60, 4)
    assert model.chosen_["calibration"] == "temperature"  # the single row's class has no held-out score
    lonely = KernelSVM().fit(np.eye(3), [5, 6, 9])
    assert lonely.chosen_["inner_folds"] == 0 and lonely.C_ == 1.0
    np.testing.assert_allclose(lonely.predict_proba(np.eye(3)).sum(axis=1), 1.0)
    y = np.sort(rings(60, 3)[1])
    pairs = [(np.arange(45), np.arange(45, 60)), (np.arange(15, 60), np.arange(15))]
    assert KernelSVM("linear", cv=pairs).fit(X, y).classes_.tolist() == [0, 1, 2]


def test_refuses_wrong_settings() -> None:
    X, y = rings(30, 2)
    for wrong in ({"kernel": "poly"}, {"C": (0.0, 1.0)}, {"gamma": "auto"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            KernelSVM(**wrong).fit(X, y)
