from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from offshelf.errors import DataError, UsageError
from offshelf.transfer.early_stopping import validation_rows
from offshelf.transfer.reproductive_features import ReproductiveFeatures, nesting, parameter_count
from offshelf.transfer.supervised_bottleneck import SupervisedBottleneck


def described(n: int, d: int = 120, factors: int = 10, seed: int = 0) -> np.ndarray:
    """Standardised features that a few factors explain for the most part."""
    loadings = np.random.default_rng(99).normal(size=(factors, d))
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, factors)) @ loadings + random.normal(size=(n, d))
    return (X / np.sqrt(1 + (loadings**2).sum(axis=0))).astype(np.float32)


def small(**settings: object) -> ReproductiveFeatures:
    return ReproductiveFeatures(**{"hidden_dim": 64, "code_dim": 12, "max_epochs": 30, **settings})


def test_parameter_counts_of_the_sheet() -> None:
    assert parameter_count(32_000, 1024, 256) == 66_094_592
    model = small(max_epochs=1).fit(described(50))
    stored = model.encoder_coefs_ + model.encoder_intercepts_ + model.decoder_coefs_ + model.decoder_intercepts_
    assert model.n_parameters_ == sum(a.size for a in stored) == parameter_count(120, 64, 12)


@pytest.mark.parametrize("rotate", [True, False])
def test_linear_limit_is_pca_on_the_worked_points(rotate: bool) -> None:
    X = np.array([[2, 0], [-2, 0], [0, 1], [0, -1]], dtype=np.float32)
    model = ReproductiveFeatures(
        8, 1, "identity", learning_rate=1e-2, max_epochs=1500, validation_fraction=0, row_space=rotate
    ).fit(X)
    assert model.reconstruction_error(X) == pytest.approx(0.25, abs=1e-3)


def test_linear_limit_is_pca_in_more_dimensions() -> None:
    X = described(100, d=30, factors=4)
    model = ReproductiveFeatures(
        32, 4, "identity", learning_rate=3e-3, batch_size=100, max_epochs=1500, validation_fraction=0
    ).fit(X)
    pca = PCA(4).fit(X)
    best = float(((pca.inverse_transform(pca.transform(X)) - X) ** 2).mean())
    assert best * 0.9999 <= model.reconstruction_error(X) <= best * 1.01


def test_test_rows_are_reconstructed_far_better_than_by_the_mean() -> None:
    train, test = described(300), described(100, seed=1)
    model = small().fit(train)
    assert model.reconstruction_error(test) < 0.5
    assert np.allclose(model.inverse_transform(model.transform(test)).mean(), test.mean(), atol=0.05)


def test_train_error_does_not_rise_with_the_width_of_the_code() -> None:
    X = described(300)
    errors = [small(code_dim=k).fit(X).reconstruction_error(X) for k in (1, 4, 16)]
    assert errors == sorted(errors, reverse=True) and errors[2] < 0.6 * errors[0]


def test_labels_change_nothing_and_a_seed_gives_the_same_bytes() -> None:
    X, random = described(80), np.random.default_rng(0)
    threads = torch.get_num_threads()
    first = small(max_epochs=4).fit(X, random.integers(0, 2, 80))
    torch.set_num_threads(2)
    state = torch.random.get_rng_state()
    second = small(max_epochs=4).fit(X, random.integers(0, 9, 80))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    for name in ("encoder_coefs_", "encoder_intercepts_", "decoder_coefs_", "decoder_intercepts_"):
        for a, b in zip(getattr(first, name), getattr(second, name)):
            assert a.tobytes() == b.tobytes()
    assert torch.equal(state, torch.random.get_rng_state())  # the global generator is left alone
    other = small(max_epochs=4, random_state=1).fit(X)
    assert not np.array_equal(other.transform(X), first.transform(X))


def test_noise_for_test_images_changes_no_fitted_parameter() -> None:
    X, y = described(90), np.tile([0, 1, 2], 30)
    noisy = X.copy()
    train, test = next(StratifiedKFold(3).split(X, y))
    noisy[test] = np.random.default_rng(5).normal(size=noisy[test].shape)
    pipes = [make_pipeline(StandardScaler(), small(max_epochs=3), SVC()).fit(A[train], y[train]) for A in (X, noisy)]
    assert pipes[0][0].mean_.tobytes() == pipes[1][0].mean_.tobytes()
    assert pipes[0][1].encoder_coefs_[0].tobytes() == pipes[1][1].encoder_coefs_[0].tobytes()
    assert pipes[0][2].dual_coef_.tobytes() == pipes[1][2].dual_coef_.tobytes()


def test_row_space_gives_the_same_problem() -> None:
    X = described(60, d=200)
    rotated, plain = (small(row_space=r, max_epochs=150, validation_fraction=0).fit(X) for r in (True, False))
    a, b = rotated.reconstruction_error(X), plain.reconstruction_error(X)
    assert a == pytest.approx(rotated.history_["train"][-1] * X.var(axis=0).mean(), rel=0.1)
    assert a < 0.5 and b < 0.5  # not the same path, but both leave less than half of what the mean leaves


def test_best_epoch_is_restored() -> None:
    X = described(60, factors=2)
    model = small(code_dim=40, learning_rate=2e-2, max_epochs=60, patience=3).fit(X)
    best = model.history_["best_epoch"]
    watched = validation_rows(60, 0.1, 0)
    assert len(model.history_["train"]) == best + 3
    centred = X - model.mean_
    error = ((model.inverse_transform(model.transform(X)) - X)[watched] ** 2).mean() / (centred**2).mean()
    assert error == pytest.approx(min(model.history_["validation"]), rel=1e-3)


def test_rows_left_out_are_whole_groups() -> None:
    groups = np.repeat(np.arange(10), 5)
    rows = validation_rows(50, 0.1, 0, groups)
    assert len(rows) == 5 and len(set(groups[rows])) == 1
    assert len(validation_rows(50, 0.0, 0)) == 0
    assert not np.array_equal(validation_rows(50, 0.2, 0), validation_rows(50, 0.2, 1))
    one = validation_rows(6, 0.1, 0, np.zeros(6))
    assert len(one) == 0  # a single group cannot be both learnt from and watched
    X = described(50)
    a, b = small(max_epochs=3).fit(X, groups=groups), small(max_epochs=3).fit(X)
    assert not np.array_equal(a.transform(X), b.transform(X))
    pipe = make_pipeline(StandardScaler(), small(max_epochs=3), SVC())
    pipe.fit(X, np.tile([0, 1], 25), reproductivefeatures__groups=groups)


def test_refusals_and_the_warning_about_wide_codes() -> None:
    X = described(20)
    with pytest.warns(UserWarning, match="more than the 9 directions that 10 rows span"):
        small(max_epochs=1).fit(X[:10])
    X[[3, 7], 0] = [np.nan, np.inf]
    with pytest.raises(DataError, match=r"2 of 20 rows: 3, 7;"):
        small().fit(X)
    with pytest.raises(DataError, match="at least two"):
        small().fit(X[:1])
    with pytest.raises(UsageError, match="activation='swish'"):
        small(activation="swish").fit(described(20))
    fitted = small(max_epochs=1).fit(described(20))
    with pytest.raises(DataError, match="7 wide, expected 120"):
        fitted.transform(np.zeros((2, 7)))


def test_works_as_a_scikit_learn_transformer() -> None:
    X, y = described(60), np.tile([0, 1], 30)
    X[y == 1, :40] += 3
    pipe = make_pipeline(StandardScaler(), small(max_epochs=20), SVC())
    assert clone(pipe).get_params()["reproductivefeatures__code_dim"] == 12
    assert cross_validate(pipe, X, y, cv=3)["test_score"].mean() > 0.8
    search = GridSearchCV(pipe, {"reproductivefeatures__code_dim": [2, 8]}, cv=2).fit(X, y)
    names = search.best_estimator_[:2].get_feature_names_out()
    assert names[0] == "reproductive0" and len(names) == search.best_params_["reproductivefeatures__code_dim"]
    one = search.best_estimator_[1].transform(X[:1])
    np.testing.assert_allclose(one, search.best_estimator_[1].transform(X)[:1], atol=1e-5)


def labelled(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    X = described(n, seed=seed)
    y = np.random.default_rng(seed).integers(0, 3, n)
    return X + 0.8 * np.random.default_rng(7).normal(size=(3, 120))[y].astype(np.float32), y


def test_bottleneck_learns_and_transforms() -> None:
    (X, y), (fresh, truth) = labelled(300, 0), labelled(200, 1)
    names = np.array(["a", "b", "c"])
    model = SupervisedBottleneck(64, 12, max_epochs=20).fit(X, names[y])
    assert (model.predict(fresh) == names[truth]).mean() > 0.9
    np.testing.assert_allclose(model.predict_proba(fresh).sum(axis=1), 1.0)
    assert model.n_parameters_ == 120 * 64 + 64 + 64 * 12 + 12 + 12 * 3 + 3
    codes = model.transform(fresh)
    scores = codes @ model.coefs_[2].T + model.intercepts_[2]
    assert (names[scores.argmax(axis=1)] == model.predict(fresh)).all()
    again = SupervisedBottleneck(64, 12, max_epochs=20).fit(X, names[y])
    assert again.coefs_[0].tobytes() == model.coefs_[0].tobytes()


def test_supervised_features_nest_in_reproductive_ones_and_not_the_other_way() -> None:
    X, y = labelled(400, 0)
    train, test = np.arange(300), np.arange(300, 400)
    r = small().fit(X[train]).transform(X)
    d = SupervisedBottleneck(64, 12, max_epochs=20).fit(X[train], y[train]).transform(X)
    found = nesting(r, d, train, test)
    assert found.discriminative_from_reproductive > found.reproductive_from_discriminative + 0.2
    assert found.discriminative_from_reproductive > 0.5


def test_nesting_by_construction() -> None:
    random = np.random.default_rng(0)
    r = random.normal(size=(300, 8))
    d = r[:, :2] @ random.normal(size=(2, 3))
    train, test = np.arange(200), np.arange(200, 300)
    found = nesting(r, d, train, test)
    assert found.discriminative_from_reproductive == pytest.approx(1.0, abs=1e-3)
    assert found.reproductive_from_discriminative == pytest.approx(0.25, abs=0.06)  # 2 of 8 equal directions
