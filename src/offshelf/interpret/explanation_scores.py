"""How far a map can be trusted: three tests of explanations, none of which needs to know what is right.

`grid_pointing_game` (Böhle et al. 2021, arXiv 2104.00032; as B-cosification uses it, arXiv 2411.00715): pictures of
different classes side by side, and how much of the map of a class lies on the picture of that class.

    mosaic = n x n pictures of n^2 distinct classes
    map(class) -> mean over a square of `smooth` pixels -> max(0, .) -> share of its sum in the cell of that class

A map that shows nothing at all (all of it at or below 0) found nothing: its share is 0. The mean over a square carries
a map over the edge of its cell, so a map on all of the right cell has a share just below 1, and one that keeps
`smooth // 2` pixels from the edge has exactly 1. Chance, a map alike everywhere, is 1 / n^2.

A departure: the paper's mosaics are of pictures that the network is right and sure about; which pictures those are is
the caller's to say (`confident_rows`), since the rows of a claim must be the same for all of its networks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from offshelf.errors import UsageError

Explain = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(pictures (B, 3, H, W), classes (B,)) -> maps (B, H, W)``, or coarser maps, which are enlarged."""

MAPS_AT_ONCE = 32


def grid_pointing_game(
    explain: Explain,
    pictures: torch.Tensor,
    labels: np.ndarray | torch.Tensor,
    size: int = 2,
    mosaics: int = 100,
    smooth: int = 15,
    seed: int = 0,
) -> np.ndarray:
    """The share of each map that lies on the picture of its class, over mosaics of pictures.

    Parameters
    ----------
    explain : what is tested; gets mosaics ``(B, 3, size H, size W)`` as ``pictures`` are given, and one class each.
    pictures : float (n, 3, H, W), as ``explain`` wants them (normalised, or in [0, 1]); the most confident first.
    labels : integer (n,), class numbers as ``explain`` takes them.
    size : cells along each side of a mosaic.
    mosaics : how many; the same seed draws the same mosaics whatever is explained.
    smooth : side in pixels, odd, of the square whose mean is taken; 15 in the paper at 224 pixels a picture, 3 at 32.

    Returns
    -------
    float64 (mosaics, size^2)
        From 0 to 1; chance is 1 / size^2. Rows share pictures when there are few of a class: an interval should draw
        mosaics.

    Raises
    ------
    UsageError
        With fewer than size^2 classes among the labels, or settings out of their range.
    """
    if smooth < 1 or smooth % 2 == 0:
        raise UsageError(f"smooth={smooth}: expected an odd number of pixels, such as 15.")
    drawn = draw_mosaics(labels, size, mosaics, seed)
    known = torch.as_tensor(np.asarray(labels), dtype=torch.long)
    cells, (height, width) = size * size, pictures.shape[-2:]
    shares = np.empty((mosaics, cells))
    at_once = max(1, MAPS_AT_ONCE // cells)
    for first in range(0, mosaics, at_once):
        rows = torch.from_numpy(drawn[first : first + at_once])  # (m, cells)
        boards = _mosaic(pictures[rows], size)  # (m, 3, size H, size W)
        maps = explain(boards.repeat_interleave(cells, dim=0), known[rows].flatten())
        in_cells = _cell_sums(_positive(maps, (size * height, size * width), smooth), size)  # (m cells, cells)
        own = in_cells.view(len(rows), cells, cells).diagonal(dim1=1, dim2=2)
        whole = in_cells.sum(dim=1).view(len(rows), cells)
        shares[first : first + at_once] = torch.where(whole > 0, own / whole.clamp_min(1e-300), 0.0).numpy()
    return shares


def draw_mosaics(labels: np.ndarray | torch.Tensor, size: int, mosaics: int, seed: int = 0) -> np.ndarray:
    """Rows of the pictures in each mosaic, ``(mosaics, size^2)``, cells row by row.

    The classes of a mosaic are drawn without putting back; of each class the pictures are taken in the order in which
    they come, the first again after the last.
    """
    known = np.asarray(labels)
    classes, cells = np.unique(known), size * size
    if size < 1 or mosaics < 1:
        raise UsageError(f"size={size}, mosaics={mosaics}: expected 1 or more of both.")
    if len(classes) < cells:
        raise UsageError(
            f"{len(classes)} classes among the pictures: a {size} x {size} mosaic needs {cells} distinct ones; give "
            "pictures of more classes."
        )
    of_class = {k: np.flatnonzero(known == k) for k in classes}
    taken = dict.fromkeys(classes, 0)
    generator = np.random.default_rng(seed)
    found = np.empty((mosaics, cells), dtype=np.int64)
    for mosaic in found:
        for cell, k in enumerate(generator.choice(classes, cells, replace=False)):
            mosaic[cell] = of_class[k][taken[k] % len(of_class[k])]
            taken[k] += 1
    return found


def confident_rows(probabilities: np.ndarray, labels: np.ndarray, at_least: float = 0.5) -> np.ndarray:
    """Rows that a network names rightly with a probability above ``at_least``, the surest first.

    Parameters
    ----------
    probabilities : (n, K), of each class: the softmax, or the sigmoid where a network was trained by it.
    labels : integer (n,)
    """
    sure = probabilities[np.arange(len(labels)), labels]
    right = (probabilities.argmax(axis=1) == labels) & (sure > at_least)
    order = np.argsort(-sure, kind="stable")
    return order[right[order]]


def _mosaic(pictures: torch.Tensor, size: int) -> torch.Tensor:
    """``(m, size^2, 3, H, W)`` -> ``(m, 3, size H, size W)``, cells row by row."""
    m, _, channels, height, width = pictures.shape
    parted = pictures.view(m, size, size, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return parted.reshape(m, channels, size * height, size * width)


def _positive(maps: torch.Tensor, shape: tuple[int, int], smooth: int) -> torch.Tensor:
    """What speaks for the class, ``(B, H, W)`` float64, after the mean over squares with nothing beyond the edge."""
    maps = maps.detach().double().cpu()
    if maps.shape[-2:] != shape:
        maps = F.interpolate(maps[:, None], shape, mode="bilinear", align_corners=False)[:, 0]
    return F.avg_pool2d(maps[:, None], smooth, stride=1, padding=smooth // 2)[:, 0].clamp_min(0)


def _cell_sums(maps: torch.Tensor, size: int) -> torch.Tensor:
    """``(B, size H, size W)`` -> ``(B, size^2)``, sums over the cells row by row."""
    batch, height, width = maps.shape
    return maps.view(batch, size, height // size, size, width // size).sum(dim=(2, 4)).flatten(1)
