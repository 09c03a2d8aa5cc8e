"""Tiles, copies and the blanked centre, by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offshelf.data.geometry import blank_centre, copies, join_tiles, split_tiles
from offshelf.errors import ImageError, UsageError


def numbered(channels: int, height: int, width: int) -> torch.Tensor:
    return torch.arange(channels * height * width).remainder(251).to(torch.uint8).reshape(channels, height, width)


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 2), (2, 5), (7, 7)])
@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 9), (13, 11), (20, 20), (7, 31)])
def test_tiles_are_lossless(grid: tuple[int, int], height: int, width: int) -> None:
    image = numbered(3, height, width)
    tiles = split_tiles(image, grid)
    assert len(tiles) == grid[0] * grid[1]
    assert torch.equal(join_tiles(tiles, grid), image)
    assert sum(tile[0].numel() for tile in tiles) == height * width
    rows = [len(part) for part in np.array_split(np.arange(height), grid[0])]
    assert [tiles[row * grid[1]].shape[1] for row in range(grid[0])] == rows


def test_tiles_run_row_by_row() -> None:
    image = torch.tensor([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], dtype=torch.uint8)
    assert [tile.flatten().tolist() for tile in split_tiles(image, (2, 2))] == [[1, 2, 4, 5], [3, 6], [7, 8], [9]]


def test_tiles_refuse() -> None:
    with pytest.raises(ImageError, match="x.png: 5 x 3 pixels cannot be cut into 4 x 4"):
        split_tiles(numbered(1, 3, 5), (4, 4), "x.png")
    for grid in [(0, 2), (2,), (1.5, 2)]:
        with pytest.raises(UsageError, match="rows and columns"):
            split_tiles(numbered(1, 3, 5), grid)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="3 tiles do not fill"):
        join_tiles([numbered(1, 2, 2)] * 3, (2, 2))


def test_copies_order_and_content() -> None:
    image = numbered(3, 30, 60)
    assert len(copies(image, 1)) == 1 and torch.equal(copies(image, 1)[0], image)
    assert torch.equal(copies(image, 2)[1], image.flip(-1))
    sixteen = copies(image, 16)
    assert len(sixteen) == 16 and torch.equal(sixteen[0], image)
    for number in range(8):
        assert torch.equal(sixteen[number + 8], sixteen[number].flip(-1))
    corners = [(0, 0), (0, 20), (10, 0), (10, 20), (5, 10)]
    for copy, (top, left) in zip(sixteen[1:6], corners):
        assert torch.equal(copy, image[:, top : top + 20, left : left + 40])  # 4/9 of the surface
    assert sixteen[6].shape == sixteen[7].shape == image.shape


def test_rotation_direction_and_corners() -> None:
    image = torch.full((1, 41, 41), 200, dtype=torch.uint8)
    assert all((copy == 200).all() for copy in copies(image, 16))  # nothing black comes in at the corners
    image = torch.zeros(1, 41, 41, dtype=torch.uint8)
    image[0, 19:22, 34:37] = 255  # right of the centre: +10 degrees lifts it by 15 sin(10) = 2.6 pixels
    lifted, lowered = (copies(image, 16)[number][0].float() for number in (6, 7))
    rows = torch.arange(41.0)[:, None]
    assert float((lifted * rows).sum() / lifted.sum()) == pytest.approx(20 - 2.6, abs=0.2)
    assert float((lowered * rows).sum() / lowered.sum()) == pytest.approx(20 + 2.6, abs=0.2)


def test_copies_refuse() -> None:
    with pytest.raises(UsageError, match="expected 1"):
        copies(numbered(1, 4, 4), 3)


def test_blank_centre() -> None:
    image = torch.full((3, 100, 50), 9, dtype=torch.uint8)
    blanked = blank_centre(image, 0.64)  # sides 80 and 40
    assert (image == 9).all()
    assert (blanked[:, 10:90, 5:45] == 127).all()
    assert int((blanked == 127).sum()) == 3 * 80 * 40
    assert float((blank_centre(image)[0] == 127).float().mean()) == pytest.approx(0.6, abs=0.02)
    assert torch.equal(blank_centre(image, 0), image) and (blank_centre(image, 1) == 127).all()
    with pytest.raises(UsageError, match="between 0 and 1"):
        blank_centre(image, 60)
