"""Who computes the features: the loop a user writes with timm, and offshelf. Each runs in a process of its own.

All of them load the same weights from the same folders in timm's format, squash each tile of each picture to the
input's size, and hand back one table ``(n, tiles * width)`` a backbone, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._process import Watch

Handed = tuple[dict[str, Any], dict[str, np.ndarray]]


def write_backbones(watch: Watch, backbones: list[str], folder: str, paths: list[str]) -> Handed:
    """Write every backbone as a folder; the batch norms of random ones first see real pictures.

    A network drawn at random has batch norms that have seen nothing: its activations vanish or explode on the way, and
    neither its speed nor its sensitivity to rounding would say anything.
    """
    import torch

    from offshelf.backbones.card import card_of
    from offshelf.backbones.export import save_backbone
    from offshelf.backbones.load import load_backbone
    from offshelf.backbones.preprocess import to_input
    from offshelf.data.images import decode_image

    decoded = [decode_image(Path(path).read_bytes(), path) for path in paths]
    watch.start()
    facts = {}
    for number, name in enumerate(backbones):
        model = load_backbone(name)
        card = card_of(model)
        if card.weights == "random":
            _settle_batch_norms(model, torch.stack([to_input(pixels, card) for pixels in decoded]))
        save_backbone(model, Path(folder) / str(number), card=card)
        facts[name] = {"label": card.label, "width": card.width, "parameters": card.parameters}
    watch.stop()
    return facts, {}


def _settle_batch_norms(model: Any, batch: Any) -> None:
    import torch

    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over what it sees
        norm.train()
    with torch.no_grad():
        model(batch)
    model.eval()


def timm_loop(
    watch: Watch, folders: list[str], paths: list[str], grid: list[int], batch_size: int = 16, workers: int = 0
) -> Handed:
    """The script most people write: Pillow, timm's transform, one pass over the pictures for each backbone, fp32."""
    import timm
    import torch
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config
    from torch.utils.data import DataLoader, Dataset

    rows, columns = grid

    class Tiles(Dataset):
        def __init__(self, transform: Any) -> None:
            self.transform = transform

        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            picture = Image.open(paths[index]).convert("RGB")
            width, height = picture.size
            tiles = []
            for row in range(rows):
                for column in range(columns):
                    left, right = column * width // columns, (column + 1) * width // columns
                    top, bottom = row * height // rows, (row + 1) * height // rows
                    tiles.append(self.transform(picture.crop((left, top, right, bottom))))
            return torch.stack(tiles)

    def batches(transform: Any) -> Iterable[Any]:
        tiles, size = Tiles(transform), max(1, batch_size // (rows * columns))
        if workers:
            return DataLoader(tiles, batch_size=size, num_workers=workers)
        return (
            torch.stack([tiles[i] for i in range(first, min(first + size, len(tiles)))])
            for first in range(0, len(tiles), size)
        )

    watch.start()
    models = [timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval() for folder in folders]
    watch.lap("prepared")
    found = {}
    with torch.inference_mode():
        for number, model in enumerate(models):
            config = resolve_model_data_config(model)
            transform = create_transform(**{**config, "crop_mode": "squash", "crop_pct": 1.0}, is_training=False)
            parts = [model(batch.flatten(0, 1)) for batch in batches(transform)]
            features = torch.cat(parts)
            found[str(number)] = features.reshape(len(paths), -1).numpy()
    watch.stop()
    return {}, found


def offshelf_features(
    watch: Watch, folders: list[str], paths: list[str], grid: list[int], cache: str, exact: bool = False
) -> Handed:
    """The library as it comes: `DeepFeatures` with a cache, everything else at its default."""
    from offshelf.transfer.deep_features import DeepFeatures

    ticks: list[tuple[float, int]] = []
    watch.start()
    deep = DeepFeatures(folders, grid=(grid[0], grid[1]), exact=exact, cache_folder=cache).fit()
    watch.lap("prepared")
    extraction = deep.extract(paths, advance=lambda n: ticks.append((watch.elapsed(), n)))
    table = deep.pool(extraction.features)
    watch.stop()
    if extraction.errors:
        raise RuntimeError(f"pictures that cannot be read: {list(extraction.errors.values())[:3]}")
    found, start, tiles = {}, 0, grid[0] * grid[1]
    for number, width in enumerate(deep.widths_):
        found[str(number)] = np.ascontiguousarray(table[:, start : start + tiles * width])
        start += tiles * width
    return {"routes": extraction.routes, "computed": extraction.computed, "ticks": ticks}, found
