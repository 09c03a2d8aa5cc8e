"""How far a map can be trusted: three tests of explanations, none of which needs to know where the evidence lies.

`grid_pointing_game` (Böhle et al. 2021, arXiv 2104.00032; as B-cosification uses it, arXiv 2411.00715): pictures of
different classes side by side, and how much of the map of a class lies on the picture of that class.

    mosaic = n x n pictures of n^2 distinct classes
    map(class) -> mean over a square of `smooth` pixels -> max(0, .) -> share of its sum in the cell of that class

A map that shows nothing at all (all of it at or below 0) found nothing: its share is 0. The mean over a square carries
a map over the edge of its cell, so a map on all of the right cell has a share just below 1, and one that keeps
`smooth // 2` pixels from the edge has exactly 1. Chance, a map alike everywhere, is 1 / n^2. A departure: the paper's
mosaics are of pictures that the network is right and sure about; which those are is the caller's to say
(`confident_rows`), since the rows of a claim must be the same for all of its networks.

`deletion_insertion` (Petsiuk et al. 2018, arXiv 1806.07421): the probability of the class while the picture is taken
away, the most important part first, and while it is put back. Departures: parts are squares and not single pixels, and
what stands in their place is the picture's mean colour: single pixels taken out are noise, which destroys any answer
whatever the map says. The same squares in random order are the control.

`weight_randomisation` (Adebayo et al. 2018, arXiv 1810.03292): how much of a map is left when the network's layers lose
what they have learnt, from the last to the first. A map that stays alike does not explain this network. A departure:
the weights of a layer are shuffled and not drawn anew, which keeps their distribution exactly and needs no rule for
each kind of layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.integrate import trapezoid
from scipy.stats import rankdata
from torch import nn

from offshelf.errors import BackboneError, UsageError

Explain = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(pictures (B, 3, H, W), classes (B,)) -> maps (B, H, W)``, or coarser maps, which are enlarged."""

MAPS_AT_ONCE, PICTURES_AT_ONCE = 32, 64


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


@dataclass(frozen=True)
class Areas:
    """Areas under the probability of the class over the share of the picture, one a picture ``(B,)``, 0 to 1.

    ``deletion`` is the better the lower, ``insertion`` the better the higher; the random ones are the mean over random
    orders of the same squares, what a map that says nothing reaches.
    """

    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray


def deletion_insertion(
    model: nn.Module,
    x: torch.Tensor,
    maps: torch.Tensor,
    classes: torch.Tensor,
    steps: int = 16,
    squares: int = 8,
    orders: int = 3,
    probability: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits.softmax(dim=1),
    seed: int = 0,
) -> Areas:
    """Take the picture away in the order of a map, and put it back, beside a random order.

    Parameters
    ----------
    model : gives logits ``(B, K)``; should be in evaluation mode.
    x : float (B, 3, H, W), as the network expects.
    maps : (B, h, w), the higher the more it speaks for the class.
    classes : integer (B,)
    steps : how often the network is asked on the way.
    squares : along each side of the picture, which is cut into ``squares^2`` parts.
    orders : random orders behind the control.
    probability : logits to probabilities; the sigmoid where the network answers each class by itself.
    """
    if not 1 <= steps <= squares * squares:
        raise UsageError(f"steps={steps}: expected 1 to {squares * squares}, the number of squares.")
    importance = F.adaptive_avg_pool2d(maps.detach().float().cpu()[:, None], squares).flatten(1)  # (B, squares^2)
    own = _areas(model, x, importance.argsort(dim=1, descending=True, stable=True), classes, steps, probability)
    generator = np.random.default_rng(seed)
    random = [
        _areas(
            model,
            x,
            torch.from_numpy(generator.permuted(np.tile(np.arange(squares**2), (len(x), 1)), axis=1)),
            classes,
            steps,
            probability,
        )
        for _ in range(orders)
    ]
    controls = [np.mean([one[k] for one in random], axis=0) for k in range(2)]
    return Areas(*own, *controls)


def weight_randomisation(
    model: nn.Module,
    explain: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    classes: torch.Tensor,
    stages: int = 4,
    seed: int = 0,
) -> tuple[list[int], np.ndarray]:
    """Rank correlation of the maps with themselves while layers lose what they learnt, from the last to the first.

    Parameters
    ----------
    model : left as it is; a copy is shuffled.
    explain : ``(model, x, classes) -> maps (B, h, w)``.
    stages : how often the maps are made again; the first time with the last layer alone shuffled, the last time all.

    Returns
    -------
    shuffled : how many layers with weights were shuffled at each stage; the last number is that of all.
    correlations : (stages, B), Spearman's over the places of the map; NaN where a map is the same everywhere, or where
        the method has none to give for the shuffled network.
    """
    twin = copy.deepcopy(model)
    layers = [layer for layer in twin.modules() if any(True for _ in layer.parameters(recurse=False))][::-1]
    if not layers:
        raise UsageError("this network has no weights to shuffle; give one with layers.")
    counts = np.unique(np.ceil(np.geomspace(1, len(layers), stages)).astype(int)).tolist()
    original = explain(model, x, classes).detach().double().cpu().flatten(1).numpy()
    generator, done, found = torch.Generator().manual_seed(seed), 0, []
    for count in counts:
        for layer in layers[done:count]:
            _shuffle(layer, generator)
        done = count
        try:
            maps = explain(twin, x, classes).detach().double().cpu().flatten(1).numpy()
        except BackboneError:  # such as a gradient that has become nought
            maps = np.zeros_like(original)
        found.append([_rank_correlation(one, other) for one, other in zip(original, maps)])
    return counts, np.array(found)


def _shuffle(layer: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in layer.parameters(recurse=False):
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _areas(
    model: nn.Module,
    x: torch.Tensor,
    order: torch.Tensor,
    classes: torch.Tensor,
    steps: int,
    probability: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[np.ndarray, np.ndarray]:
    """Areas of deletion and insertion in the given order of squares ``(B, squares^2)``."""
    cells = order.shape[1]
    places = order.argsort(dim=1)  # when the turn of each square comes
    rank = _on_pixels(places.float().view(len(x), 1, round(cells**0.5), -1), x.shape[-2:]).to(x.device)
    mean = x.mean(dim=(2, 3), keepdim=True)
    turned = [round(step * cells / steps) for step in range(steps + 1)]

    def curve(kept: Callable[[torch.Tensor, int], torch.Tensor]) -> np.ndarray:
        values = [_asked(model, torch.where(kept(rank, count), x, mean), classes, probability) for count in turned]
        return trapezoid(np.stack(values), np.array(turned) / cells, axis=0)

    return curve(lambda when, count: when >= count), curve(lambda when, count: when < count)


def _on_pixels(squares: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return F.interpolate(squares, tuple(shape), mode="nearest")


def _asked(
    model: nn.Module,
    x: torch.Tensor,
    classes: torch.Tensor,
    probability: Callable[[torch.Tensor], torch.Tensor],
) -> np.ndarray:
    """The probability of each picture's class, ``(B,)`` float64."""
    found = []
    with torch.no_grad():
        for first in range(0, len(x), PICTURES_AT_ONCE):
            part = slice(first, first + PICTURES_AT_ONCE)
            share = probability(model(x[part]).float())
            found.append(share.gather(1, classes[part].view(-1, 1).to(share.device))[:, 0].double().cpu())
    return torch.cat(found).numpy()


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
