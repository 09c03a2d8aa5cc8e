"""Pictures as one uint8 table at one size, for training and for controls that need the pixels themselves."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from offshelf.data.images import decode_image, read_bytes
from offshelf.data.samples import Samples
from offshelf.engine.threads import readers
from offshelf.errors import ImageError

MEMORY_LIMIT = 2**31


def load_pixels(
    samples: Samples, size: int, advance: Callable[[int], None] = lambda n: None
) -> tuple[np.ndarray, dict[int, ImageError]]:
    """Decode every picture once to a ``(n, 3, size, size)`` uint8 table; the shape of the picture is not kept.

    Returns
    -------
    table : ndarray
        In memory up to two gigabytes, memory-mapped from a nameless temporary file above; rows of unreadable pictures
        are 0.
    errors : dict
        ``{row: ImageError}``.
    """
    shape = (len(samples), 3, size, size)
    table = np.zeros(shape, np.uint8) if int(np.prod(shape)) <= MEMORY_LIMIT else _mapped(shape)
    errors: dict[int, ImageError] = {}

    def one(row: int) -> ImageError | None:
        image = samples.image(row)
        try:
            picture = decode_image(read_bytes(image), name=samples.name(row), at_least=2 * size)
        except ImageError as error:
            return error
        table[row] = resize(picture, size).expand(3, -1, -1).numpy()
        return None

    with readers(4) as pool:
        for row, error in enumerate(pool.map(one, range(len(samples)))):
            if error is not None:
                errors[row] = error
            advance(1)
    return table, errors


def resize(picture: torch.Tensor, size: int) -> torch.Tensor:
    """``(C, H, W)`` uint8 to ``(C, size, size)``: antialiased bicubic, as PIL does it."""
    if picture.shape[-2:] == (size, size):
        return picture
    return F.interpolate(picture[None], (size, size), mode="bicubic", antialias=True, align_corners=False)[0]


def _mapped(shape: tuple[int, ...]) -> np.ndarray:
    with tempfile.NamedTemporaryFile(prefix="offshelf-pixels-") as handle:
        return np.memmap(handle.name, dtype=np.uint8, mode="w+", shape=shape)
