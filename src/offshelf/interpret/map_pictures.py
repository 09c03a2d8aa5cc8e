"""Maps as pictures: evidence over the picture, signs in two colours, and a B-cos network's weights in their colours.

Each picture is drawn by itself: the strongest place of a map is as bright as can be, whatever its units. So colours say
where within a picture, and never how much between two pictures; the numbers beside them do.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from offshelf.interpret.b_cos_explanation import SMOOTH, explain_b_cos
from offshelf.interpret.explanations import EXPLANATIONS, maps_of
from offshelf.interpret.saliency import overlaid

LEAST_SIDE = 224  # of a drawn map; smaller ones are enlarged by a whole number, each pixel a square
FOR, AGAINST = (0xB3, 0x58, 0x06), (0x21, 0x66, 0xAC)  # orange and blue, told apart by all eyes; white is nought
PAPER_SIDE = 224  # of the pictures for which the paper's smoothing was chosen
BRIGHTEST = 99.5  # percentile of the absolute values at which the colours are full


class Mapped(NamedTuple):
    """Maps of B pictures by one method.

    maps : float32 (B, H, W); colours : (B, 4, H, W) red, green, blue and opacity in [0, 1], of B-cos networks; offset :
    (B,) what the logit has beside the sum of the contributions, of B-cos networks.
    """

    maps: torch.Tensor
    colours: torch.Tensor | None = None
    offset: torch.Tensor | None = None


def mapped(method: str, model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> Mapped:
    """Maps with what is needed to draw them; see `offshelf.interpret.explanations.explain`."""
    if method != "contributions":
        return Mapped(maps_of(method, model, x, classes))
    found = explain_b_cos(model, x, classes, smooth=smoothing(x.shape[-1]))  # type: ignore[arg-type]
    return Mapped(found.contributions.cpu(), found.colours.cpu(), found.offset.cpu())


def smoothing(side: int) -> int:
    """The paper's box of 15 pixels at 224, for pictures of another side: odd, 3 at least."""
    return max(3, 2 * (SMOOTH * side // PAPER_SIDE // 2) + 1)


def views(method: str) -> list[str]:
    """Names of the pictures drawn of one method's map; the first is the method's own."""
    return [method, f"{method}-signed"] if method == "contributions" else [method]


def drawn(method: str, picture: np.ndarray, found: Mapped, row: int) -> dict[str, np.ndarray]:
    """The map of one picture as pictures, by the names of `views`.

    Parameters
    ----------
    picture : uint8 (3, h, w), of any size; brought to that of the map.
    found : of this method; ``row`` says which of its pictures.

    Returns
    -------
    dict of uint8 (3, H', W')
        The map's size, enlarged by a whole number to 224 pixels at least.
    """
    heat = found.maps[row].numpy()
    if found.colours is not None:
        pictures = [on_white(found.colours[row].numpy()), two_coloured(heat)]
    elif EXPLANATIONS[method].signed:
        pictures = [two_coloured(heat)]
    else:
        pictures = [overlaid(fitted(picture, heat.shape), heat)]
    return {name: enlarged(one) for name, one in zip(views(method), pictures, strict=True)}


def two_coloured(values: np.ndarray) -> np.ndarray:
    """A signed map ``(H, W)`` as uint8 ``(3, H, W)``: white is nought, orange speaks for the class, blue against it.

    Colours are full at the 99.5th percentile of the absolute values, the same for both signs.
    """
    limit = float(np.percentile(np.abs(values), BRIGHTEST)) or float(np.abs(values).max())
    share = np.clip(values / limit, -1, 1) if limit > 0 else np.zeros_like(values)
    full = np.where((share > 0)[None], np.array(FOR)[:, None, None], np.array(AGAINST)[:, None, None])
    return (255 + (full - 255) * np.abs(share)[None]).round().astype(np.uint8)


def on_white(colours: np.ndarray) -> np.ndarray:
    """``(4, H, W)`` in [0, 1], the last the opacity, on white paper: uint8 ``(3, H, W)``."""
    return (255 * (1 - colours[3:] * (1 - colours[:3]))).round().clip(0, 255).astype(np.uint8)


def fitted(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A picture uint8 ``(3, h, w)`` at the size ``(H, W)``."""
    if picture.shape[-2:] == tuple(shape):
        return picture
    table = torch.from_numpy(np.ascontiguousarray(picture))[None]
    return F.interpolate(table, tuple(shape), mode="bilinear", antialias=True)[0].numpy()


def enlarged(picture: np.ndarray, side: int = LEAST_SIDE) -> np.ndarray:
    """Each pixel as a square of as many as bring the shorter side to ``side`` at least."""
    factor = -(-side // min(picture.shape[-2:]))
    return picture.repeat(factor, axis=1).repeat(factor, axis=2)


def png(picture: np.ndarray) -> bytes:
    """uint8 ``(3, H, W)`` as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.moveaxis(picture, 0, -1))).save(buffer, "PNG")
    return buffer.getvalue()
