from __future__ import annotations

import numpy as np
import pytest

from offshelf.errors import DataError
from offshelf.evaluate.patch_composites import patch_composites

Y = np.arange(200) % 5
BASE = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None, None], (200, 3, 8, 6))  # every pixel says its row


@pytest.mark.parametrize("grid", [(2, 2), (1, 2)])
def test_12_sets_of_labels_are_those_of_the_pasted_pictures(grid: tuple[int, int]) -> None:
    counts = {1: 30, 2: 20} if grid == (1, 2) else {1: 30, 2: 20, 4: 5}
    made = patch_composites(BASE, Y, counts, grid=grid, exclude=range(50), seed=3)
    assert made.pictures.shape == (sum(counts.values()), 3, 8 * grid[0], 6 * grid[1])
    assert {k: int((made.label_sets.sum(axis=1) == k).sum()) for k in counts} == counts
    seen = []
    for picture, valid, label, sources in zip(made.pictures, made.label_sets, made.labels, made.sources):
        assert valid[label]
        assert sorted(np.flatnonzero(valid)) == sorted(Y[sources[sources >= 0]])
        for cell, source in enumerate(sources):
            row, column = divmod(cell, grid[1])
            part = picture[:, 8 * row : 8 * row + 8, 6 * column : 6 * column + 6]
            if source >= 0:
                seen.append(source)
                assert (part == source).all()
            else:
                assert part.std() > 1  # noise, and no picture
    assert len(set(seen)) == len(seen)  # none is used twice
    assert min(seen) >= 50  # and none that was trained on


def test_every_cell_picture_and_label_is_as_likely() -> None:
    base, y = np.zeros((4000, 3, 2, 2), dtype=np.uint8), np.repeat(np.arange(4), [400, 800, 1200, 1600])
    made = patch_composites(base, y, {2: 1000})
    used = np.bincount(y[made.sources[made.sources >= 0]], minlength=4)
    assert used / used.sum() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.05)
    assert (made.sources >= 0).mean(axis=0) == pytest.approx(np.full(4, 0.5), abs=0.06)
    first = np.take_along_axis(made.label_sets.cumsum(axis=1), made.labels[:, None], axis=1) == 1
    assert first.mean() == pytest.approx(0.5, abs=0.06)


def test_equal_seeds_make_equal_pictures() -> None:
    a, b, c = (patch_composites(BASE, Y, {1: 10, 3: 10}, seed=seed) for seed in (0, 0, 1))
    assert (a.pictures == b.pictures).all() and (a.sources == b.sources).all()
    assert (a.sources != c.sources).any()


def test_the_background_is_blurred_and_has_the_spread_of_the_pictures() -> None:
    base = np.random.default_rng(0).integers(60, 200, (50, 3, 16, 16)).astype(np.uint8)
    made = patch_composites(base, np.zeros(50, dtype=int), {1: 50}, seed=0)
    empty = np.stack([picture[:, :16, :16] for picture, cells in zip(made.pictures, made.sources) if cells[0] < 0])
    assert empty.mean() == pytest.approx(base.mean(), abs=5)
    assert empty.std() == pytest.approx(base.std(), rel=0.15)
    neighbours = np.corrcoef(empty[..., 1:].ravel(), empty[..., :-1].ravel())[0, 1]
    assert neighbours > 0.8


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(DataError, match="1 to 2 objects, the cells of a 1 x 2 grid"):
        patch_composites(BASE, Y, {3: 1}, grid=(1, 2))
    with pytest.raises(DataError, match="at least one composite"):
        patch_composites(BASE, Y, {1: 0})
    with pytest.raises(DataError, match="composite 11 of 20: 1 distinct classes are needed and 0 have pictures left"):
        patch_composites(BASE, Y, {1: 20}, exclude=range(190))
    with pytest.raises(DataError, match="4 distinct classes are needed and 2"):
        patch_composites(BASE[:10], Y[:10] % 2, {4: 1})
