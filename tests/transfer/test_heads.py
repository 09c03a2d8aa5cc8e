from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from offshelf.errors import DataError, UsageError
from offshelf.transfer.heads import HEADS, chosen, make_head
from offshelf.transfer.nearest_neighbours import NearestNeighbours
from offshelf.transfer.perceptron import Perceptron


def classes_of_features(n: int = 120, d: int = 16, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = random.integers(0, classes, n)
    X = random.normal(size=(n, d)) + 1.2 * np.random.default_rng(77).normal(size=(classes, d))[y]
    return X.astype(np.float32), y


def test_the_list() -> None:
    assert sorted(HEADS) == ["knn", "logistic", "mlp", "ridge", "slp", "svm-linear", "svm-rbf"]
    with pytest.raises(UsageError, match="did you mean 'svm-rbf'"):
        make_head("svm-rfb")


@pytest.mark.parametrize("name", HEADS)
def test_every_head_learns_and_its_probabilities_mean_something(name: str) -> None:
    X, y = classes_of_features()
    fresh, truth = classes_of_features(200, seed=1)
    names = np.array([3, 17, 5])[y]
    head = make_head(name).fit(X, names)
    assert head.classes_.tolist() == [3, 5, 17]
    assert (head.predict(fresh) == np.array([3, 17, 5])[truth]).mean() > 0.9
    p = head.predict_proba(fresh)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    column = np.array([0, 2, 1])[truth]
    assert -np.log(p[np.arange(200), column]).mean() < 0.6
    told = json.loads(json.dumps(chosen(head)))
    assert told["inner_folds"] == 3 and "notes" not in told
    again = make_head(name).fit(X, names)
    assert again.predict_proba(fresh).tobytes() == p.tobytes()


@pytest.mark.parametrize("name", HEADS)
def test_every_head_copes_with_a_single_row_of_a_class_and_with_two_classes(name: str) -> None:
    X, y = classes_of_features(40)
    y[7] = 30
    head = make_head(name).fit(X, y)
    assert head.predict_proba(X).shape == (40, 4)
    assert any("single row" in note for note in chosen(head)["notes"])
    alone = make_head(name).fit(np.eye(4) * 3, ["a", "b", "c", "d"])
    assert chosen(alone)["inner_folds"] == 0 and any("defaults" in note for note in chosen(alone)["notes"])
    np.testing.assert_allclose(alone.predict_proba(np.eye(4)).sum(axis=1), 1.0)
    two = make_head(name).fit(X, (y > 0).astype(int))
    assert two.predict_proba(X).shape == (40, 2)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_keeps_given_folds_and_the_scikit_learn_contract(name: str) -> None:
    X, y = classes_of_features(60)
    pairs = [(np.arange(0, 30), np.arange(30, 60)), (np.arange(30, 60), np.arange(0, 30))]
    head = clone(make_head(name, cv=pairs, random_state=3))
    assert chosen(make_pipeline(StandardScaler(), head).fit(X, y))["inner_folds"] == 2
    pipe = make_pipeline(StandardScaler(), make_head(name, cv=2))
    assert cross_validate(pipe, X, y, cv=2, scoring="neg_log_loss")["test_score"].min() > -1.0
    step = type(make_head(name)).__name__.lower()
    assert GridSearchCV(pipe, {f"{step}__random_state": [0, 1]}, cv=2).fit(X, y).best_score_ > 0.7


@pytest.mark.parametrize("name", HEADS)
def test_every_head_names_rows_with_nan_and_refuses_other_widths(name: str) -> None:
    X, y = classes_of_features(30)
    fitted = make_head(name).fit(X, y)
    with pytest.raises(DataError, match="expected 16 as in fit"):
        fitted.predict(X[:, :5])
    X[11, 3] = np.nan
    with pytest.raises(DataError, match=r"1 of 30 rows: 11;"):
        make_head(name).fit(X, y)
    with pytest.raises(DataError, match=r"rows: 11;"):
        fitted.predict_proba(X)


def test_asking_an_unfitted_head_what_it_chose() -> None:
    with pytest.raises(UsageError, match="fit it first"):
        chosen(make_head("knn"))


@pytest.mark.parametrize("classes", [2, 5])
def test_single_layer_perceptron_has_a_weight_an_input_and_class(classes: int) -> None:
    X, y = classes_of_features(classes=classes)
    assert make_head("slp").fit(X, y).n_parameters_ == 16 * classes + classes
    mlp = make_head("mlp").fit(X, y)
    assert mlp.n_parameters_ == 16 * 128 + 128 + 128 * classes + classes


def test_perceptron_on_wide_rows_equals_its_weights_on_the_columns() -> None:
    X, y = classes_of_features(40, d=100)
    model = Perceptron(max_epochs=5, cv=2).fit(X, y)
    assert model.coefs_[0].shape == (3, 100)
    scores = (X - model.mean_) @ model.coefs_[0].T + model.intercepts_[0]
    np.testing.assert_allclose(scores, model.decision_function(X), atol=1e-5)
    assert model.chosen_["epochs"] == model.n_epochs_ <= 5


def test_neighbours_equal_those_of_scikit_learn() -> None:
    X, y = classes_of_features(150)
    fresh, _ = classes_of_features(50, seed=1)
    for k in (1, 7):
        ours = NearestNeighbours(neighbours=(k,)).fit(X, y)
        theirs = KNeighborsClassifier(k, metric="cosine").fit(X, y)
        votes = ours.predict_proba(fresh) * (k + 1) - ours.prior_
        np.testing.assert_allclose(votes, theirs.predict_proba(fresh) * k, atol=1e-9)


def test_neighbours_choose_k_inside_the_rows() -> None:
    X, y = classes_of_features(150)
    random = np.random.default_rng(2)
    noisy = np.where(random.random(150) < 0.25, random.integers(0, 3, 150), y)
    model = NearestNeighbours(random_state=0).fit(X, noisy)
    assert model.k_ > 1 and model.path_[model.k_] == max(model.path_.values())
    with pytest.raises(UsageError, match="neighbours"):
        NearestNeighbours(neighbours=(0,)).fit(X, y)
