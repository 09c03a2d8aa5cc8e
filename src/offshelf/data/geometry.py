"""Cuts and copies of one decoded picture: tiles, jittered copies, and the picture with its centre blanked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torchvision.transforms.v2 import InterpolationMode, functional

from offshelf.errors import ImageError, UsageError

MID_GREY = 127


def split_tiles(image: torch.Tensor, grid: tuple[int, int], name: str = "image") -> list[torch.Tensor]:
    """Cut a picture into a grid of tiles, row by row, without losing or repeating a pixel.

    Parameters
    ----------
    image : Tensor (C, H, W)
    grid : (rows, columns)
        Boundaries are those of ``numpy.array_split``: sizes differ by one pixel at most, the larger ones first.
    name : str
        Name of the picture in the error.

    Returns
    -------
    list of Tensor (C, h, w), ``rows * columns`` long; views of ``image``.

    Raises
    ------
    UsageError
        The grid is not two whole numbers of at least 1.
    ImageError
        The picture has fewer pixels than the grid has cells along a side.
    """
    rows, columns = _checked(grid)
    height, width = image.shape[-2:]
    if height < rows or width < columns:
        raise ImageError(
            name,
            f"{width} x {height} pixels cannot be cut into {rows} x {columns} tiles; expected at least one pixel "
            "a tile. Use a smaller grid or leave this picture out.",
        )
    return [
        tile for row in torch.tensor_split(image, rows, dim=-2) for tile in torch.tensor_split(row, columns, dim=-1)
    ]


def join_tiles(tiles: Sequence[torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
    """Put the tiles of :func:`split_tiles` together again: ``(C, H, W)``."""
    rows, columns = _checked(grid)
    if len(tiles) != rows * columns:
        raise UsageError(f"{len(tiles)} tiles do not fill a grid of {rows} x {columns}; expected {rows * columns}.")
    lines = [torch.cat(list(tiles[row * columns : (row + 1) * columns]), dim=-1) for row in range(rows)]
    return torch.cat(lines, dim=-2)


def _checked(grid: tuple[int, int]) -> tuple[int, int]:
    if len(grid) != 2 or any(int(n) != n or n < 1 for n in grid):
        raise UsageError(f"grid={grid!r}: expected two whole numbers of at least 1, rows and columns, such as (2, 2).")
    return int(grid[0]), int(grid[1])


def copies(image: torch.Tensor, n: int) -> list[torch.Tensor]:
    """Fixed copies of a picture whose features are used together, in a fixed order.

    Parameters
    ----------
    image : Tensor (C, H, W)
    n : {1, 2, 16}
        1: the picture. 2: the picture and its mirror image. 16: the picture, five crops of side 2/3 (top left, top
        right, bottom left, bottom right, centre), rotations by +10 and -10 degrees (counter-clockwise first), then
        the mirror images of these eight in the same order. Crops keep their own size; rotations keep the picture's,
        with the border pixels continued into the corners.

    Source: Razavian et al. 2014 (arXiv 1403.6382), the augmented setting; the angle is a choice of ours.
    """
    if n == 1:
        return [image]
    if n == 2:
        return [image, functional.horizontal_flip(image)]
    if n != 16:
        raise UsageError(
            f"copies={n!r}: expected 1 (as it is), 2 (with its mirror image) or 16 (crops, rotations, mirrors)."
        )
    height, width = image.shape[-2:]
    side = [max(1, round(height * 2 / 3)), max(1, round(width * 2 / 3))]
    eight = [image, *functional.five_crop(image, side), _rotate(image, 10.0), _rotate(image, -10.0)]
    return eight + [functional.horizontal_flip(copy) for copy in eight]


def _rotate(image: torch.Tensor, degrees: float) -> torch.Tensor:
    height, width = image.shape[-2:]
    margin = math.ceil(max(height, width) * math.sin(math.radians(abs(degrees)))) + 1
    padded = functional.pad(
        image, [margin] * 4, padding_mode="edge"
    )  # otherwise black corners would speak in the features
    turned = functional.rotate(padded, degrees, interpolation=InterpolationMode.BILINEAR)
    return functional.center_crop(turned, [height, width])


def blank_centre(image: torch.Tensor, area: float = 0.6) -> torch.Tensor:
    """A copy of the picture with a centred box, ``area`` of its surface, set to mid-grey (127).

    A classifier that still works on it reads the border: scanner marks, letters, crop, compression.

    Parameters
    ----------
    image : uint8 Tensor (C, H, W)
        Left as it is.
    area : float in [0, 1]
        Share of the surface; each side of the box is ``sqrt(area)`` of the picture's, to the nearest pixel.
    """
    if not 0 <= area <= 1:
        raise UsageError(f"area={area!r}: expected a share of the surface between 0 and 1, such as 0.6.")
    height, width = image.shape[-2:]
    box_height, box_width = round(height * math.sqrt(area)), round(width * math.sqrt(area))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    blanked = image.clone()
    blanked[..., top : top + box_height, left : left + box_width] = MID_GREY
    return blanked
