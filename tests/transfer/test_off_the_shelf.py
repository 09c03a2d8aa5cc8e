from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.svm import LinearSVC

from offshelf.errors import DataError, UsageError
from offshelf.transfer.off_the_shelf import OffTheShelf, RetrievalWhitening, l2_normalise, signed_power
from offshelf.transfer.spatial_search import mean_of_minima, rank, spatial_distance, sub_patches


def directions(n: int, d: int = 20, classes: int = 3, copies: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative features whose direction tells the class, as noisy copies side by side."""
    random = np.random.default_rng(seed)
    y = random.integers(0, classes, n)
    centres = np.random.default_rng(50).random((classes, d))
    X = np.abs(centres[y][:, None, :] + 0.4 * random.normal(size=(n, copies, d))) * random.uniform(0.5, 3, (n, 1, 1))
    return X.reshape(n, copies * d).astype(np.float32), y


def test_signed_power_by_hand() -> None:
    np.testing.assert_allclose(signed_power([0.6, -0.8], 2.0), [0.36, -0.64])
    z = np.random.default_rng(0).normal(size=50)
    np.testing.assert_allclose(signed_power(-z, 1.7), -signed_power(z, 1.7))
    assert signed_power(z, 1.0) is z


def test_unit_length_and_zero_rows() -> None:
    z = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(l2_normalise(z), axis=1), 1.0, rtol=1e-6)
    z[3] = 0
    with pytest.warns(UserWarning, match="1 feature vectors are all zeros"):
        assert l2_normalise(z)[3].tolist() == [0, 0, 0, 0]


def test_sum_over_copies_is_the_mean_feature_times_their_number() -> None:
    X, y = directions(80, copies=4)
    model = OffTheShelf(copies=4, C=1.0, random_state=0).fit(X, y)
    fresh, _ = directions(30, copies=4, seed=1)
    each = l2_normalise(fresh.reshape(30, 4, 20))
    summed = (each @ model.coef_.T + model.intercept_).sum(axis=1)
    mean = 4 * (each.mean(axis=1) @ model.coef_.T + model.intercept_)
    np.testing.assert_allclose(model.decision_function(fresh), summed, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mean, summed, rtol=1e-5, atol=1e-5)
    powered = OffTheShelf(copies=4, power=2.0, C=1.0, random_state=0).fit(X, y)
    scores = (signed_power(each, 2.0) @ powered.coef_.T + powered.intercept_).sum(axis=1)
    np.testing.assert_allclose(powered.decision_function(fresh), scores, rtol=1e-5, atol=1e-5)


def test_duplicated_samples_with_half_the_penalty_give_the_same_solution() -> None:
    X, y = directions(60)
    Z = l2_normalise(X)
    once = LinearSVC(C=2.0, tol=1e-8, dual=False).fit(Z, y)
    twice = LinearSVC(C=1.0, tol=1e-8, dual=False).fit(np.vstack([Z, Z]), np.concatenate([y, y]))
    np.testing.assert_allclose(once.coef_, twice.coef_, atol=1e-4)
    # Here C counts an image once, so identical copies with the same C are the same model.
    one, two = OffTheShelf(C=2.0, cv=2).fit(X, y), OffTheShelf(copies=2, C=2.0, cv=2).fit(np.hstack([X, X]), y)
    np.testing.assert_allclose(one.coef_, two.coef_, atol=2e-3)


def test_C_to_zero_gives_constant_predictions() -> None:
    X, y = directions(100, classes=2)
    few = np.concatenate([np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:8]])
    model = OffTheShelf(C=1e-7, cv=2).fit(X[few], y[few])
    assert set(model.predict(X)) == {0}
    assert np.abs(model.coef_).max() < 1e-4
    assert set(OffTheShelf(C=20.0, cv=2).fit(X[few], y[few]).predict(X)) == {0, 1}


@pytest.mark.parametrize("multi_class", ["ovr", "ovo"])
@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
def test_learns_with_every_variant(multi_class: str, loss: str) -> None:
    X, y = directions(150)
    fresh, truth = directions(150, seed=1)
    names = np.array(["x", "y", "z"])
    model = OffTheShelf(multi_class=multi_class, loss=loss, C=(0.2, 2.0), random_state=0).fit(X, names[y])
    assert (model.predict(fresh) == names[truth]).mean() > 0.75
    p = model.predict_proba(fresh)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    assert -np.log(p[np.arange(150), truth]).mean() < 0.75 * np.log(3)


def test_one_against_all_equals_scikit_learn() -> None:
    X, y = directions(120)
    ours = OffTheShelf(C=0.6, random_state=0).fit(X, y)
    theirs = LinearSVC(C=0.6, dual=False, random_state=0).fit(l2_normalise(X), y)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(l2_normalise(X)), atol=1e-3)


def test_wide_features_are_solved_in_the_span_of_their_rows() -> None:
    X, y = directions(40, d=200, copies=2)
    model = OffTheShelf(copies=2, C=1.0, random_state=0).fit(X, y)
    Z = l2_normalise(X.reshape(40, 2, 200)).reshape(80, 200)
    exact = LinearSVC(C=0.5, tol=1e-8, max_iter=100_000).fit(Z, np.repeat(y, 2))
    fresh, _ = directions(30, d=200, copies=2, seed=1)
    unit = l2_normalise(fresh.reshape(30, 2, 200))
    expected = (unit @ exact.coef_.T + exact.intercept_).sum(axis=1)
    np.testing.assert_allclose(model.decision_function(fresh), expected, atol=5e-3)


def test_copies_of_an_image_stay_in_one_inner_fold() -> None:
    # Labels are drawn at random and copies are equal: only copies on both sides of a split could be recognised.
    random = np.random.default_rng(0)
    X = np.tile(random.normal(size=(60, 400)), (1, 3)).astype(np.float32)
    model = OffTheShelf(copies=3, random_state=0).fit(X, random.integers(0, 2, 60))
    assert model.chosen_["inner_balanced_accuracy"] < 0.75


def test_contract_single_rows_and_refusals() -> None:
    X, y = directions(60)
    model = clone(OffTheShelf(C=(0.2, 2.0)))
    assert cross_validate(model, X, y, cv=3)["test_score"].mean() > 0.6
    assert GridSearchCV(model, {"power": [1.0, 2.0]}, cv=2).fit(X, y).best_params_["power"] in (1.0, 2.0)
    y[0] = 11
    assert OffTheShelf(C=(0.2, 2.0)).fit(X, y).predict_proba(X).shape == (60, 4)
    assert OffTheShelf(multi_class="ovo").fit(X, y).predict(X).shape == (60,)
    assert OffTheShelf().fit(np.eye(3), [4, 5, 6]).chosen_["inner_folds"] == 0
    with pytest.raises(UsageError, match="multiple of the number of copies"):
        OffTheShelf(copies=3).fit(X, y)
    with pytest.raises(UsageError, match="multi_class='all'"):
        OffTheShelf(multi_class="all").fit(X, y)


@pytest.mark.parametrize(("n", "d", "dim", "kept"), [(80, 30, 10, 10), (20, 50, 500, 19), (100, 12, 500, 12)])
def test_whitened_covariance_is_the_identity(n: int, d: int, dim: int, kept: int) -> None:
    X = np.random.default_rng(0).normal(size=(n, d)) * np.linspace(1, 3, d) + 1
    model = RetrievalWhitening(dim).fit(X)
    assert model.dim_ == kept
    np.testing.assert_allclose(np.cov(model.whiten(X).T), np.eye(kept), atol=1e-4)
    unit = RetrievalWhitening(dim, power=1.0).fit(X).transform(X)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(model.transform(X), np.sign(unit) * unit**2, atol=1e-6)
    assert len(model.get_feature_names_out()) == kept


def test_whitening_refuses_rows_of_one_direction() -> None:
    with pytest.raises(DataError, match="point the same way"):
        RetrievalWhitening().fit(np.outer([1.0, 2.0, 3.0], np.ones(4)))


@pytest.mark.parametrize(("levels", "count"), [(1, 1), (2, 5), (3, 14), (4, 30)])
def test_sub_patch_counts_and_places(levels: int, count: int) -> None:
    boxes = sub_patches(60, 90, levels)
    assert len(boxes) == count
    assert boxes[0].tolist() == [15, 0, 75, 60]  # the largest centred square
    assert (boxes[:, 2] - boxes[:, 0] == boxes[:, 3] - boxes[:, 1]).all()
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 90 and boxes[:, 3].max() <= 60
    assert sub_patches(60, 60, 1)[0].tolist() == [0, 0, 60, 60]


def test_sub_patches_cover_a_square_picture_at_every_level() -> None:
    for level, first, last in ((2, 1, 5), (3, 5, 14), (4, 14, 30)):
        covered = np.zeros((64, 64), dtype=bool)
        for x0, y0, x1, y1 in sub_patches(64, 64, level)[first:last]:
            covered[y0:y1, x0:x1] = True
        assert covered.all()


def test_distances_by_hand() -> None:
    assert mean_of_minima([[1, 3], [2, 0.5]]) == 0.75
    b = 2.25  # reference patches at 0 and b on a line; query patches at distances (1, 3) and (2, 0.5) from them
    query = []
    for near, far in ((1.0, 3.0), (2.0, 0.5)):
        x = (near**2 - far**2 + b**2) / (2 * b)
        query.append((x, np.sqrt(max(near**2 - x**2, 0.0))))
    assert spatial_distance(query, [(0, 0), (b, 0)]) == pytest.approx(0.75, abs=1e-9)


def test_identical_images_are_at_zero_and_more_patches_never_farther() -> None:
    random = np.random.default_rng(0)
    patches, other = random.normal(size=(5, 16)), random.normal(size=(14, 16))
    assert spatial_distance(patches, patches) == 0.0
    distances = [spatial_distance(patches, other[:k]) for k in range(1, 15)]
    assert all(a >= b for a, b in zip(distances, distances[1:]))


def test_rank_equals_a_loop_and_cosine_order_for_unit_vectors() -> None:
    random = np.random.default_rng(0)
    queries, references = random.normal(size=(7, 5, 16)), random.normal(size=(11, 14, 16))
    order, distances = rank(queries, references, block_rows=12)
    loop = [[spatial_distance(q, r) for r in references] for q in queries]
    np.testing.assert_allclose(distances, loop, atol=1e-5)
    assert (order == np.argsort(loop, axis=1, kind="stable")).all()
    one, many = l2_normalise(random.normal(size=(6, 9))), l2_normalise(random.normal(size=(40, 9)))
    order, distances = rank(one, many)
    assert (order == np.argsort(-(one @ many.T), axis=1, kind="stable")).all()
    np.testing.assert_allclose(distances**2, 2 - 2 * one @ many.T, atol=1e-5)
    with pytest.raises(DataError, match="same width"):
        rank(one, many[:, :4])


def test_no_warning_where_nothing_is_wrong() -> None:
    X, y = directions(60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OffTheShelf(C=(0.2, 2.0), random_state=0).fit(X, y).predict_proba(X)
