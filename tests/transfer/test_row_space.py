from __future__ import annotations

import numpy as np
import pytest

from offshelf.transfer.row_space import framed, row_space


@pytest.mark.parametrize(("n", "d"), [(30, 200), (200, 30), (40, 40)])
def test_rotation_loses_nothing(n: int, d: int) -> None:
    X = np.random.default_rng(0).normal(size=(n, d)) * np.logspace(0, -3, d)
    X -= X.mean(axis=0)
    coordinates, basis = row_space(X)
    assert coordinates.shape[1] == min(n - 1, d)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)
    np.testing.assert_allclose(coordinates @ basis.T, X, atol=1e-5)
    assert (np.diff(coordinates.std(axis=0)) <= 1e-6).all()


def test_rank_below_width_is_found() -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(50, 3)) @ random.normal(size=(3, 100))
    assert row_space(X - X.mean(axis=0))[0].shape[1] == 3
    assert row_space(np.zeros((5, 8)))[0].shape == (5, 1)


def test_frame_carries_weights_back_to_the_columns() -> None:
    random = np.random.default_rng(0)
    X = (random.normal(size=(20, 50)) * 3 + 7).astype(np.float32)
    Z, frame = framed(X, rotate=True)
    assert float((Z**2).mean()) == pytest.approx(1.0, rel=1e-4)
    assert Z.std(axis=0).min() > 0.5 and Z.std(axis=0).max() < 2  # each coordinate has its share of everything
    inward = random.normal(size=(4, Z.shape[1])).astype(np.float32)
    np.testing.assert_allclose(Z @ inward.T, (X - frame.mean) @ frame.inward(inward).T, atol=1e-3)
    outward = random.normal(size=(Z.shape[1], 4)).astype(np.float32)
    hidden = random.normal(size=(20, 4)).astype(np.float32)
    expected = ((Z - hidden @ outward.T) ** 2).sum() * frame.scale**2
    found = ((X - frame.mean - hidden @ frame.outward(outward).T) ** 2).sum()
    assert found == pytest.approx(expected, rel=1e-4)  # squared error kept
