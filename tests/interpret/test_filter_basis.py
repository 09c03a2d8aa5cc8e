"""Scaling and the basis, held against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from offshelf.interpret.filter_basis import FilterBasis, Moments, scaled


def filters(n: int = 3000, seed: int = 0, dtype: type = np.float64) -> np.ndarray:
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(n, 9)) @ np.diag([5, 3, 2, 1, 1, 0.5, 0.5, 0.2, 0.1]) @ random.normal(size=(9, 9))
    return (mixed + 0.7).astype(dtype)


def test_scaled_filters_reach_one_and_zeros_stay() -> None:
    rows = np.concatenate([filters(50), np.zeros((2, 9)), [[-4.0, 2, 0, 0, 0, 0, 0, 0, 0]]])
    found = scaled(rows)
    assert np.allclose(np.abs(found[:50]).max(axis=1), 1)
    assert (found[50:52] == 0).all() and found[52].tolist() == [-1, 0.5, 0, 0, 0, 0, 0, 0, 0]
    assert scaled(rows.astype(np.float32)).dtype == scaled(rows.astype(np.float16)).dtype == np.float32
    assert np.array_equal(scaled(np.array([[1, -2, 0]])), [[0.5, -1, 0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    rows = filters(5)
    rows[3, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        scaled(rows)


def test_the_basis_is_that_of_scikit_learn() -> None:
    rows = filters()
    basis, reference = FilterBasis().fit(rows), PCA(9).fit(scaled(rows))
    assert np.allclose(basis.explained_variance_ratio_, reference.explained_variance_ratio_, atol=1e-12)
    assert basis.explained_variance_ratio_.sum() == pytest.approx(1, abs=1e-12)
    signs = np.sign((basis.components_ * reference.components_).sum(axis=1))
    assert np.allclose(basis.components_, signs[:, None] * reference.components_, atol=1e-9)
    assert np.allclose(basis.transform(rows), signs * reference.transform(scaled(rows)), atol=1e-9)
    assert basis.n_filters_ == 3000
    largest = np.abs(basis.components_).argmax(axis=1)
    assert (basis.components_[np.arange(9), largest] > 0).all()


def test_nothing_is_lost_with_all_components() -> None:
    rows = filters()
    basis = FilterBasis().fit(rows)
    assert np.allclose(basis.inverse_transform(basis.transform(rows)), scaled(rows), atol=1e-12)


def test_blocks_give_the_basis_of_the_whole() -> None:
    rows = filters(dtype=np.float32)
    whole = FilterBasis().fit(rows)
    for size in (1, 7, 1000):
        parts = FilterBasis().fit_batches(rows[i : i + size] for i in range(0, len(rows), size))
        assert np.allclose(parts.components_, whole.components_, atol=1e-7)
        assert np.allclose(parts.mean_, whole.mean_, atol=1e-12)
    joined = Moments.of(scaled(rows[:100])) + Moments.of(scaled(rows[100:]))
    assert np.allclose(FilterBasis.of(joined).explained_variance_ratio_, whole.explained_variance_ratio_)


def test_filters_that_do_not_differ_have_no_shares() -> None:
    basis = FilterBasis().fit(np.ones((5, 9)))
    assert basis.explained_variance_ratio_.tolist() == [0.0] * 9
    assert FilterBasis().fit(np.ones((1, 9))).explained_variance_ratio_.tolist() == [0.0] * 9
    assert np.allclose(basis.transform(np.ones((2, 9))), 0)
