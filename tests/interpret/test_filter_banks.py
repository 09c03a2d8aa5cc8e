"""Fixed banks against numbers worked by hand and a second writing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.fft import dctn

from offshelf.errors import UsageError
from offshelf.interpret.filter_banks import (
    coloured,
    dct_filters,
    edge_filters,
    gabor,
    gabor_filters,
    haar_filters,
    random_sign_filters,
    spread,
)


def gram(bank: np.ndarray) -> np.ndarray:
    rows = bank.reshape(len(bank), -1)
    return rows @ rows.T


def test_the_dct_of_three_is_orthonormal_and_conserves_energy() -> None:
    bank = dct_filters(3, 3)
    assert np.allclose(bank[0], 1 / 3) and np.allclose(bank[1:].sum(axis=(1, 2)), 0, atol=1e-12)
    assert np.allclose(gram(bank), np.eye(9), atol=1e-12)
    patch = np.random.default_rng(0).normal(size=(3, 3))
    assert np.square((bank * patch).sum(axis=(1, 2))).sum() == pytest.approx(np.square(patch).sum())
    assert np.allclose(gram(coloured(bank, 3)), np.eye(27), atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (5, 5), (1, 1), (2, 7)])
def test_the_dct_answers_as_scipy_transforms(height: int, width: int) -> None:
    patch = np.random.default_rng(1).normal(size=(height, width))
    answers = np.sort(np.abs((dct_filters(height, width) * patch).sum(axis=(1, 2))))
    assert np.allclose(answers, np.sort(np.abs(dctn(patch, norm="ortho").ravel())))


def test_the_zig_zag_goes_from_low_to_high() -> None:
    patch = np.random.default_rng(2).normal(size=(3, 3))
    answers, table = (dct_filters(3, 3) * patch).sum(axis=(1, 2)), dctn(patch, norm="ortho")
    order = [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (1, 2), (2, 1), (2, 2)]
    assert np.allclose(answers, [table[place] for place in order])


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_haar_is_orthonormal_at_every_size(size: int) -> None:
    bank = haar_filters(size, size)
    assert np.allclose(gram(bank), np.eye(size * size), atol=1e-12) and np.allclose(bank[0], 1 / size)
    if size == 2:
        assert np.allclose(np.abs(bank), 0.5)


def test_gabor_turned_by_half_a_circle() -> None:
    for angle in (0.0, 0.4, 1.3):
        even, odd = (gabor(7, 7, angle, 4.0, phase) for phase in (0.0, np.pi / 2))
        assert np.allclose(gabor(7, 7, angle + np.pi, 4.0, 0.0), even, atol=1e-12)
        assert np.allclose(gabor(7, 7, angle + np.pi, 4.0, np.pi / 2), -odd, atol=1e-12)
    bank = gabor_filters(5, 5)
    assert bank.shape == (32, 5, 5) and np.abs(bank.sum(axis=(1, 2))).max() < 1e-7
    assert np.allclose(np.square(bank).sum(axis=(1, 2)), 1)
    # at angle 0 the wave runs along x: the same above and below the middle row
    assert np.allclose(bank[0], bank[0][::-1]) and not np.allclose(bank[0], bank[0].T)


def test_every_beginning_of_the_orientations_is_spread() -> None:
    assert spread(8) == [0, 4, 2, 6, 1, 5, 3, 7] and spread(1) == [0] and sorted(spread(6)) == list(range(6))
    horizontal, vertical = gabor_filters(5, 5)[0], gabor_filters(5, 5)[4]
    assert np.allclose(horizontal, vertical.T)  # the second orientation stands at a right angle to the first


def test_edges_of_three_are_sobel_and_laplace() -> None:
    across, down, *_, bend, mixed = edge_filters(3, 3)
    assert np.allclose(across, np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / np.sqrt(12))
    assert np.allclose(down, across.T) and np.allclose(bend, bend.T) and bend[1, 1] < 0
    assert np.allclose(mixed, np.array([[1, 0, -1], [0, 0, 0], [-1, 0, 1]]) / 2)
    for size in (3, 4, 5):
        bank = edge_filters(size, size)
        assert np.abs(bank.sum(axis=(1, 2))).max() < 1e-12 and np.allclose(np.square(bank).sum(axis=(1, 2)), 1)


def test_random_signs() -> None:
    bank = random_sign_filters(200, 3, 5, 5, seed=0)
    assert np.allclose(np.abs(bank), 1 / np.sqrt(75)) and abs(np.sign(bank).mean()) < 0.05
    assert np.array_equal(bank, random_sign_filters(200, 3, 5, 5, 0))
    assert not np.array_equal(bank, random_sign_filters(200, 3, 5, 5, 1))


def test_colours() -> None:
    bank = coloured(dct_filters(2, 2), 3)
    assert np.allclose(bank[0], 1 / np.sqrt(12))  # grey and constant
    assert np.allclose(bank[1].sum(axis=(1, 2)), [np.sqrt(2), -np.sqrt(2), 0])
    apart = coloured(dct_filters(2, 2), 3, by_filter=False)
    assert np.allclose(apart[:4], np.repeat(dct_filters(2, 2)[:, None] / np.sqrt(3), 3, axis=1))
    assert np.allclose(coloured(dct_filters(2, 2), 1)[:, 0], dct_filters(2, 2))
    assert np.allclose(gram(coloured(haar_filters(3, 3), 8)), np.eye(72), atol=1e-12)


@pytest.mark.parametrize("make", [gabor_filters, edge_filters])
def test_what_needs_room_says_so(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match="expected 3 x 3 or more"):
        make(1, 1)
