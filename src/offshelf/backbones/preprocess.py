"""From decoded pixels to what one network expects, by the card of its weights.

Pixels stay 8-bit until they have the right size, as PIL keeps them: antialiased resizing of uint8 is as exact as PIL's
and faster. Grey pictures are resized as one channel and then repeated.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch.nn.functional import interpolate, pad

from offshelf.backbones.card import BackboneCard
from offshelf.errors import UsageError

Resize = Literal["squash", "crop"]


def to_input(tile: torch.Tensor, card: BackboneCard, resize: Resize = "squash") -> torch.Tensor:
    """Resize and normalise one picture.

    Parameters
    ----------
    tile : torch.Tensor
        uint8 (C, h, w), C = 1 (grey) or 3 (red, green, blue).
    card : BackboneCard
        Gives size (H, W), interpolation, mean and standard deviation.
    resize : {"squash", "crop"}
        ``"squash"``: the whole picture is brought to (H, W), its shape is not kept. ``"crop"``: timm's evaluation
        geometry: short side to ``floor(size / crop_pct)``, then the centre.

    Returns
    -------
    torch.Tensor
        float32 (3, H, W).
    """
    if tile.dtype != torch.uint8 or tile.ndim != 3 or tile.shape[0] not in (1, 3) or 0 in tile.shape:
        raise UsageError(f"to_input: got {tile.dtype} {tuple(tile.shape)}; expected uint8 (C, h, w), C = 1 or 3")
    if resize == "squash":
        pixels = _resized(tile, card.input_size, card.interpolation)
    elif resize == "crop":
        pixels = _centre(_resized(tile, _before_crop(tile, card), card.interpolation), card.input_size)
    else:
        raise UsageError(f"resize={resize!r}: expected 'squash' or 'crop'")
    mean = torch.tensor(card.mean).view(3, 1, 1)
    std = torch.tensor(card.std).view(3, 1, 1)
    return (pixels.expand(3, -1, -1).float() / 255 - mean) / std


def _resized(tile: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    if tuple(tile.shape[1:]) == size:
        return tile
    return interpolate(tile[None], size=size, mode=interpolation, antialias=True)[0]


def _before_crop(tile: torch.Tensor, card: BackboneCard) -> tuple[int, int]:
    """The size at which the centre is cut out. The long side is cut down to a whole number, as torchvision does."""
    height, width = tile.shape[1:]
    wanted_height, wanted_width = (math.floor(side / card.crop_pct) for side in card.input_size)
    if wanted_height == wanted_width:
        short, long = sorted((height, width))
        stretched = int(wanted_height * long / short)
        return (wanted_height, stretched) if height <= width else (stretched, wanted_height)
    # a picture that is not square: the smallest scale at which both sides are covered (timm's ResizeKeepRatio)
    ratio = min(height / wanted_height, width / wanted_width)
    return round(height / ratio), round(width / ratio)


def _centre(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Cut out the centre; where the picture is smaller (crop_pct above 1), black stands around it."""
    height, width = pixels.shape[1:]
    missing_height, missing_width = max(size[0] - height, 0), max(size[1] - width, 0)
    if missing_height or missing_width:
        left, top = missing_width // 2, missing_height // 2
        pixels = pad(pixels, (left, missing_width - left, top, missing_height - top))
        height, width = pixels.shape[1:]
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return pixels[:, top : top + size[0], left : left + size[1]]
