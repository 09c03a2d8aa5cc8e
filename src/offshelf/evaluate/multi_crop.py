"""Multi-crop evaluation: probabilities averaged over 10, 12 or 144 crops of a picture (arXiv 1602.07261, section 5).

10: the four corners and the centre, and their mirror images (Krizhevsky et al. 2012). 12: the same five and the whole
square, shrunk to the size, and their mirror images. 144: those twelve of the left, middle and right square (in an
upright picture top, middle and bottom) at four scales, where the shorter side is 8, 9, 10 and 11 sevenths of the crop
(256, 288, 320 and 352 pixels for 224; Szegedy et al. 2015). The twelve are of the middle square at the first scale. The
three squares of a square picture are one and the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from offshelf.errors import UsageError

Crops = Literal[10, 12, 144]
SCALES = (8 / 7, 9 / 7, 10 / 7, 11 / 7)
PASS = 144  # crops that go through the network at once


def multi_crops(picture: torch.Tensor, size: int, crops: Crops = 10) -> torch.Tensor:
    """All crops of one picture.

    Parameters
    ----------
    picture : float (C, H, W).
    size : side of a crop in pixels.
    crops : 10, 12 or 144.

    Returns
    -------
    float (crops, C, size, size); the second half of each six (or five) mirrors the first.
    """
    if crops not in (10, 12, 144):
        raise UsageError(f"crops={crops!r}: expected 10, 12 or 144.")
    if picture.ndim != 3 or size < 1:
        raise UsageError(
            f"a picture of shape {tuple(picture.shape)} and size={size}: expected (C, H, W) and 1 or more."
        )
    found = []
    for scale in SCALES if crops == 144 else SCALES[:1]:
        side = round(scale * size)
        whole = _shorter_side(picture, side)
        for square in _squares(whole, side) if crops == 144 else [_squares(whole, side)[1]]:
            views = _five(square, size)
            if crops != 10:
                views.append(_resized(square, size, size))
            found += views + [view.flip(-1) for view in views]
    return torch.stack(found)


def multi_crop_probabilities(
    model: nn.Module, pictures: Iterable[torch.Tensor], size: int, crops: Crops = 10
) -> torch.Tensor:
    """Mean over the crops of a classifier's softmax.

    Parameters
    ----------
    model : gives logits (B, K) of float (B, C, size, size); used in evaluation mode, left in the mode it was in.
    pictures : float (C, H, W), each of its own size, normalised as the network expects.

    Returns
    -------
    float32 (n, K)
    """
    training = model.training
    model.eval()
    found = []
    try:
        with torch.inference_mode():
            for picture in pictures:
                table = multi_crops(picture, size, crops)
                parts = [model(part).float().softmax(dim=1) for part in table.split(PASS)]
                found.append(torch.cat(parts).mean(dim=0))
    finally:
        model.train(training)
    if not found:
        raise UsageError("no pictures: expected at least one.")
    return torch.stack(found)


def _resized(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if picture.shape[-2:] == (height, width):
        return picture
    return F.interpolate(picture[None], (height, width), mode="bicubic", antialias=True, align_corners=False)[0]


def _shorter_side(picture: torch.Tensor, side: int) -> torch.Tensor:
    height, width = picture.shape[-2:]
    factor = side / min(height, width)
    return _resized(picture, max(side, round(height * factor)), max(side, round(width * factor)))


def _squares(picture: torch.Tensor, side: int) -> list[torch.Tensor]:
    """The first, middle and last square along the longer side."""
    height, width = picture.shape[-2:]
    room = max(height, width) - side
    starts = (0, room // 2, room)
    if width >= height:
        return [picture[:, :, start : start + side] for start in starts]
    return [picture[:, start : start + side] for start in starts]


def _five(square: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Four corners and the centre."""
    room = square.shape[-1] - size
    places = [(0, 0), (0, room), (room, 0), (room, room), (room // 2, room // 2)]
    return [square[:, top : top + size, left : left + size] for top, left in places]
