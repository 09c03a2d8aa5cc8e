"""The script most people write: Pillow, timm's own transform, one pass over the pictures for each backbone, fp32.

A contestant, and nothing of offshelf in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch.utils.data import DataLoader, Dataset

from benchmarks._process import Watch


class Tiles(Dataset):
    """Pictures as stacks of tiles ``(rows * columns, 3, H, W)``."""

    def __init__(self, paths: list[str], grid: list[int], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths, self.grid, self.transform = paths, grid, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Open one picture, cut it, and transform each tile."""
        picture = Image.open(self.paths[index]).convert("RGB")
        width, height = picture.size
        across, down = _bounds(width, self.grid[1]), _bounds(height, self.grid[0])
        tiles = [
            self.transform(picture.crop((left, top, right, bottom)))
            for top, bottom in pairwise(down)
            for left, right in pairwise(across)
        ]
        return torch.stack(tiles)


def _bounds(length: int, parts: int) -> list[int]:
    """Borders of equal parts; where they cannot be equal, the first ones are a pixel longer."""
    size, longer = divmod(length, parts)
    return [part * size + min(part, longer) for part in range(parts + 1)]


def run(
    watch: Watch, folders: list[str], paths: list[str], grid: list[int], batch_size: int = 16, workers: int = 0
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Features ``(n, tiles * width)`` of every backbone folder; ``batch_size`` tiles a forward pass."""
    watch.start()
    models = [timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval() for folder in folders]
    watch.lap("prepared")
    found = {}
    with torch.inference_mode():
        for number, model in enumerate(models):
            config = resolve_model_data_config(model)
            transform = create_transform(**{**config, "crop_mode": "squash", "crop_pct": 1.0}, is_training=False)
            size = max(1, batch_size // (grid[0] * grid[1]))
            parts = [model(batch.flatten(0, 1)) for batch in _batches(Tiles(paths, grid, transform), size, workers)]
            found[str(number)] = torch.cat(parts).reshape(len(paths), -1).numpy()
    watch.stop()
    return {}, found


def _batches(tiles: Tiles, size: int, workers: int) -> Iterable[torch.Tensor]:
    if workers:
        return DataLoader(tiles, batch_size=size, num_workers=workers)
    return (
        torch.stack([tiles[i] for i in range(first, min(first + size, len(tiles)))])
        for first in range(0, len(tiles), size)
    )
