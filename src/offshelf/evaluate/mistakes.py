"""The most confident mistakes, with a thumbnail each: what a person should look at first."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from offshelf.data.images import decode_image, read_bytes
from offshelf.data.samples import Samples


def confident_mistakes(
    samples: Samples,
    labels: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
    classes: list[str],
    limit: int = 24,
) -> list[dict[str, Any]]:
    """Wrongly predicted rows, the surest first.

    Parameters
    ----------
    samples : n pictures; labels, predicted : (n,); probabilities : (n, K); rows with ``predicted`` -1 were not tested.
    """
    wrong = np.flatnonzero((predicted >= 0) & (predicted != labels))
    sure = np.nan_to_num(probabilities[wrong, predicted[wrong]]) if len(wrong) else np.empty(0)
    found = []
    for row in wrong[np.argsort(-sure, kind="stable")][:limit]:
        found.append(
            {
                "path": samples.name(int(row)),
                "truth": classes[labels[row]],
                "predicted": classes[predicted[row]],
                "confidence": float(probabilities[row, predicted[row]]),
                "thumbnail": thumbnail(samples.image(int(row))),
            }
        )
    return found


def thumbnail(image: dict[str, Any], side: int = 112) -> str:
    """A picture as a JPEG data URI whose longer side is ``side`` pixels."""
    picture = decode_image(read_bytes(image), name=str(image.get("path") or "image"), at_least=2 * side)
    scale = side / max(picture.shape[-2:])
    size = tuple(max(1, round(length * scale)) for length in picture.shape[-2:])
    small = F.interpolate(picture[None], size, mode="bicubic", antialias=True)[0]
    array = small[0].numpy() if len(small) == 1 else small.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def data_uri(picture: torch.Tensor) -> str:
    """A picture (3, H, W) in [0, 1] as a PNG data URI."""
    array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
