"""offshelf's side of the features, and the weights for both sides; the other side is `benchmarks.timm_loop`.

All contestants load the same weights from the same folders in timm's format, squash each tile of each picture to the
input's size, and hand back one table ``(n, tiles * width)`` a backbone, in the same order.
"""

from __future__ import annotations

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
