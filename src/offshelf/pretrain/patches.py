"""Pictures as square cells of pixels, and back, and the view that decides which cells are hidden.

Cells are numbered row by row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from offshelf.data.augment import normalised, random_flip, random_resized_crop
from offshelf.engine.draws import Draws


def patchify(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """(B, 3, H, W) -> (B, L, 3 side^2), cells row by row."""
    b, c, h, w = pictures.shape
    x = pictures.reshape(b, c, h // side, side, w // side, side)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // side) * (w // side), side * side * c)


def unpatchify(cells: torch.Tensor, side: int) -> torch.Tensor:
    """The inverse of `patchify` for square pictures."""
    b, n, width = cells.shape
    grid, c = math.isqrt(n), width // side**2
    x = cells.reshape(b, grid, grid, side, side, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, c, grid * side, grid * side)


def cell_moments(cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation ``sqrt(var + 1e-6)`` of each cell (B, L, 1); the variance is the unbiased one."""
    return cells.mean(-1, keepdim=True), (cells.var(-1, keepdim=True) + 1e-6).sqrt()


@dataclass(frozen=True)
class CellViews:
    """One crop, half of them mirrored, and a number for every cell, which decides what is hidden.

    size : side of the crop in pixels. cells : how many a crop has. scale : bounds of the share of the area it keeps.
    """

    size: int
    cells: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: tuple[float, float]
    flip: bool

    def __call__(self, pixels: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
        """uint8 (B, 3, H, W) -> ``pictures`` (B, 3, size, size) and ``noise`` (B, cells)."""
        pictures = random_resized_crop(pixels, draws, self.size, self.scale)
        if self.flip:
            pictures = random_flip(pictures, draws)
        noise = torch.from_numpy(draws.uniform(self.cells)).float()
        return {"pictures": normalised(pictures, self.mean, self.std), "noise": noise}
