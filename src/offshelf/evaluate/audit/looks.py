"""What every picture looks like at a glance: its header, and two thumbnails of it, read in one pass."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from offshelf.data.images import FORMATS, decode_image, read_bytes
from offshelf.data.samples import Samples
from offshelf.engine.threads import readers
from offshelf.errors import ImageError

SIDE, COARSE = 64, 8  # pixels of the two thumbnails
WIDE_MODES = {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I": 32, "F": 32}


@dataclass(frozen=True)
class Header:
    """What a file says of its picture before a pixel is decoded; ``quantisation`` is 0 where there is no such table."""

    width: int
    height: int
    format: str
    mode: str
    bit_depth: int
    quantisation: float  # mean of a JPEG's first (luminance) table: the smaller, the finer
    bytes: int


@dataclass(eq=False)
class Looks:
    """Of n pictures.

    grey : ``(n, 64, 64)`` uint8; colour : ``(n, 8, 8, 3)`` uint8, both without keeping the shape of the picture;
    headers : n; rows of unreadable pictures are 0 and None.
    """

    grey: np.ndarray
    colour: np.ndarray
    headers: list[Header | None]

    def take(self, rows: np.ndarray) -> Looks:
        """The same of some rows."""
        return Looks(self.grey[rows], self.colour[rows], [self.headers[row] for row in rows])


def look_at(samples: Samples, advance: Callable[[int], None] = lambda n: None) -> tuple[Looks, dict[int, ImageError]]:
    """Decode every picture once, a large JPEG at reduced scale, and keep what the checks need of it.

    Returns
    -------
    looks : Looks
    errors : ``{row: ImageError}``
    """
    n = len(samples)
    grey, colour = np.zeros((n, SIDE, SIDE), np.uint8), np.zeros((n, COARSE, COARSE, 3), np.uint8)
    looks, errors = Looks(grey, colour, [None] * n), {}

    def one(row: int) -> ImageError | None:
        try:
            data = read_bytes(samples.image(row))
            picture = decode_image(data, name=samples.name(row), at_least=2 * SIDE)
        except ImageError as error:
            return error
        looks.headers[row] = read_header(data, picture)
        grey[row] = _shrunk(_grey(picture), SIDE)[0].numpy()
        colour[row] = _shrunk(picture.expand(3, -1, -1), COARSE).permute(1, 2, 0).numpy()
        return None

    with readers(4) as pool:
        for row, error in enumerate(pool.map(one, range(n))):
            if error is not None:
                errors[row] = error
            advance(1)
    return looks, errors


def read_header(data: bytes, picture: torch.Tensor) -> Header:
    """The header of a picture that has been decoded to ``picture`` (C, H, W)."""
    found: Any = None
    try:
        found = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:  # what our own reader knows and Pillow does not, such as DICOM
        height, width = picture.shape[-2:]
        return Header(width, height, "other", "L" if len(picture) == 1 else "RGB", 8, 0.0, len(data))
    table = (getattr(found, "quantization", None) or {}).get(0) if found.format in ("JPEG", "MPO") else None
    depth = data[24] if found.format == "PNG" else WIDE_MODES.get(found.mode, 8)
    kind = "JPEG" if found.format == "MPO" else str(found.format)  # a JPEG with further pictures behind the first
    width, height = found.size
    return Header(width, height, kind, found.mode, depth, float(np.mean(table)) if table else 0.0, len(data))


def _grey(picture: torch.Tensor) -> torch.Tensor:
    """``(1, H, W)`` uint8 luma (ITU-R BT.601)."""
    if len(picture) == 1:
        return picture
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return (picture * weights).sum(dim=0, keepdim=True).round().to(torch.uint8)


def _shrunk(picture: torch.Tensor, side: int) -> torch.Tensor:
    """``(C, side, side)`` uint8, each pixel the mean of what it covers."""
    small = F.interpolate(picture[None].float(), (side, side), mode="bilinear", antialias=True)[0]
    return small.round().clamp(0, 255).to(torch.uint8)
