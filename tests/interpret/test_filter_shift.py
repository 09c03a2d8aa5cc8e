"""Histograms and shifts on numbers worked by hand, and against SciPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.decomposition import PCA

from offshelf.interpret.filter_basis import FilterBasis, scaled
from offshelf.interpret.filter_shift import (
    EMPTY,
    distributions,
    histograms,
    shares,
    shift,
    shift_matrix,
    symmetric_kl,
)


def filters(seed: int, n: int = 4000, stretch: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(n, 9)) * np.array([stretch, 1, 1, 1, 1, 1, 1, 1, 1])


def test_symmetric_divergence_worked() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    assert symmetric_kl(p, q) == pytest.approx(0.274653, abs=5e-7)
    assert entropy(p, q) == pytest.approx(0.143841, abs=5e-7) and entropy(q, p) == pytest.approx(0.130812, abs=5e-7)


def test_empty_bins_have_the_density_of_epsilon() -> None:
    found = shares(np.array([3, 0, 1, 0]), low=-1.0, high=1.0)  # bins of 0.5
    density = np.array([1.5, EMPTY, 0.5, EMPTY])
    assert found == pytest.approx(density / density.sum(), abs=1e-15)
    assert found.sum() == pytest.approx(1, abs=1e-12)


def test_histograms_are_numpy_s() -> None:
    cut = np.random.default_rng(0).normal(size=(5000, 3))
    low, high = float(cut.min()), float(cut.max())
    found = histograms(cut, low, high, 70)
    for column in range(3):
        assert np.abs(found[column] - np.histogram(cut[:, column], bins=70, range=(low, high))[0]).sum() <= 2
    assert found.sum(axis=1).tolist() == [5000] * 3
    assert histograms(np.array([[0.0], [1.0]]), 0.0, 1.0, 4).tolist() == [[1, 0, 0, 1]]  # the upper edge is in
    assert histograms(np.zeros((3, 2)), 0.0, 0.0, 4).tolist() == [[3, 0, 0, 0]] * 2
    halves = np.random.default_rng(1).random(5000) < 0.3
    apart = histograms(cut, low, high, 70, halves=halves)
    assert np.array_equal(apart[0], histograms(cut[~halves], low, high, 70))
    assert np.array_equal(apart[1], histograms(cut[halves], low, high, 70))
    by_column = histograms(np.asfortranarray(cut.astype(np.float32)), low, high, 70)
    assert np.array_equal(by_column, histograms(cut.astype(np.float32), low, high, 70))


def test_the_whole_is_the_notebook_s_writing_with_scipy() -> None:
    """Scale, principal components of all, one common range, 70 bins, density, epsilon, weighted divergence."""
    groups = {"a": filters(0), "b": filters(1, stretch=4.0), "c": filters(2, 6000, stretch=0.2)}
    found = shift_matrix(groups)
    together = np.concatenate(list(groups.values()))
    pca = PCA(9).fit(scaled(together))
    signs = np.sign((pca.components_ * FilterBasis().fit(together).components_).sum(axis=1))
    cut = {name: signs * pca.transform(scaled(rows)) for name, rows in groups.items()}
    low, high = min(one.min() for one in cut.values()), max(one.max() for one in cut.values())

    def told(rows: np.ndarray) -> list[np.ndarray]:
        densities = [np.histogram(column, bins=70, range=(low, high), density=True)[0] for column in rows.T]
        return [np.where(one == 0, np.finfo(np.float32).eps, one) for one in densities]

    for i, one in enumerate(groups):
        for j, other in enumerate(groups):
            p, q = told(cut[one]), told(cut[other])
            expected = sum(a * (entropy(x, y) + entropy(y, x)) for a, x, y in zip(pca.explained_variance_ratio_, p, q))
            assert found.values[i, j] == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_shifts_are_symmetric_and_nothing_between_equals() -> None:
    found = shift_matrix({"a": filters(0), "b": filters(0), "c": filters(1, stretch=3.0)})
    assert np.array_equal(found.values, found.values.T) and (np.diag(found.values) == 0).all()
    assert found.values[0, 1] == 0 and found.values[0, 2] > 0.2
    assert found.sizes == [4000] * 3 and found.small == ["a", "b", "c"]
    assert len(found.pairs) == 3
    order = found.sorted()
    assert order.names[-1] == "c" and order.values[2, 0] == found.values[2, 0]


def test_one_component_alone() -> None:
    random = np.random.default_rng(0)
    p, q = random.integers(1, 50, (9, 70)), random.integers(1, 50, (9, 70))
    ratios = np.eye(9)[0]
    alone = float(symmetric_kl(shares(p[0], -1, 1), shares(q[0], -1, 1)))
    assert shift(p, q, ratios, -1, 1) == pytest.approx(alone, abs=1e-12)
    changed = q.copy()
    changed[1:] = 1
    assert shift(p, changed, ratios, -1, 1) == pytest.approx(alone, abs=1e-12)


def test_streams_give_what_the_whole_gives_and_layers_add_up() -> None:
    rows = [filters(0, 900), filters(1, 500, stretch=3.0), filters(2, 700)]

    def stream() -> list[tuple[int, np.ndarray]]:
        return [(layer, one[i : i + 64]) for layer, one in enumerate(rows) for i in range(0, len(one), 64)]

    parts = distributions(stream, 3, seed=1)
    whole = distributions(lambda: list(enumerate(rows)), 3, seed=1)
    assert np.allclose(parts.basis.components_, whole.basis.components_, atol=1e-9)
    assert parts.low == pytest.approx(whole.low) and parts.high == pytest.approx(whole.high)
    assert np.array_equal(parts.counts.sum(axis=1), whole.counts.sum(axis=1))
    assert np.array_equal(parts.counts, whole.counts)  # the halves, too: one draw over the stream
    assert parts.of([0, 2]).sum(axis=1).tolist() == [1600] * 9
    assert np.array_equal(parts.of([0, 2]), parts.of([0]) + parts.of([2]))
    merged = parts.basis_of([0, 2])
    assert merged.n_filters_ == 1600
    assert np.allclose(
        merged.explained_variance_ratio_,
        PCA(9).fit(scaled(np.concatenate([rows[0], rows[2]]))).explained_variance_ratio_,
    )


def test_halves_are_halves_and_their_shift_falls_with_the_number() -> None:
    floors = []
    for n in (300, 3000, 30000):
        found = distributions(lambda n=n: [(0, filters(0, n))], 1)
        first, second = found.counts[0, 0, 0].sum(), found.counts[0, 1, 0].sum()
        assert first + second == n and abs(first - second) < 5 * np.sqrt(n)
        floors.append(found.floor([0]))
    assert floors[0] > 3 * floors[1] > 9 * floors[2] > 0
    other = distributions(lambda: [(0, filters(0, 300))], 1, seed=5)
    assert other.floor([0]) != floors[0]


def test_controls_do_not_make_the_basis_but_are_in_the_range() -> None:
    study, control = filters(0, stretch=5.0), np.tile(np.eye(9) * 2 - 1, (50, 1))
    alone = distributions(lambda: [(0, study)], 1)
    both = distributions(lambda: [(0, study), (1, control)], 2, fit_on=[0])
    assert np.allclose(both.basis.components_, alone.basis.components_)
    assert both.high > alone.high or both.low < alone.low
    assert both.of([1]).sum(axis=1).tolist() == [450] * 9


def test_groups_without_filters_are_left_out() -> None:
    found = distributions(lambda: [(0, filters(0)), (2, filters(1))], 3)
    told = found.shifts({"a": [0], "nothing": [1], "b": [2]})
    assert told.names == ["a", "b"]
