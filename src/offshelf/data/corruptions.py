"""Damaged copies of a picture, to ask how far a classifier holds when the camera, the light or the file is worse.

Four of the fifteen corruptions of ImageNet-C with its five levels of severity: Hendrycks and Dietterich, "Benchmarking
Neural Network Robustness to Common Corruptions and Perturbations" (ICLR 2019, arXiv 1903.12261). Departure: the blur's
width is that of a picture of 224 pixels and goes with the picture's short side, so that small pictures are not erased.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional

from offshelf.errors import UsageError, near

GAUSSIAN_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation, of pixels in 0 to 1
GAUSSIAN_BLUR = (1.0, 2.0, 3.0, 4.0, 6.0)  # standard deviation in pixels at a short side of 224
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # what is left of the distance to the picture's mean
JPEG = (25, 18, 15, 10, 7)  # quality
CORRUPTIONS = ("gaussian-noise", "gaussian-blur", "contrast", "jpeg")
REFERENCE_SIDE = 224


def parse_corruption(text: str) -> tuple[str, int]:
    """``"gaussian-noise/3"`` -> ``("gaussian-noise", 3)``.

    Raises
    ------
    UsageError
        Naming near ones.
    """
    kind, _, level = text.partition("/")
    if kind not in CORRUPTIONS:
        raise UsageError(f"corruption {text!r} is unknown{near(kind, CORRUPTIONS)}; known: {', '.join(CORRUPTIONS)}")
    if level not in ("1", "2", "3", "4", "5"):
        raise UsageError(f"corruption {text!r}: expected a severity of 1 to 5 after the stroke, such as {kind}/3")
    return kind, int(level)


def corrupt(picture: torch.Tensor, corruption: str, key: bytes = b"") -> torch.Tensor:
    """A damaged copy of one picture.

    Parameters
    ----------
    picture : uint8 (C, H, W), C 1 or 3
    corruption : ``"kind/severity"``, see `parse_corruption`
    key : what the noise hangs on; the hash of the picture's bytes gives every picture its own, and always the same.

    Returns
    -------
    uint8 (C, H, W)
    """
    kind, severity = parse_corruption(corruption)
    if kind == "gaussian-noise":
        seed = int.from_bytes(hashlib.sha256(corruption.encode() + key).digest()[:8], "little") >> 1
        noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed))
        return _bytes(picture / 255 + GAUSSIAN_NOISE[severity - 1] * noise)
    if kind == "gaussian-blur":
        return _blur(picture, GAUSSIAN_BLUR[severity - 1] * min(picture.shape[-2:]) / REFERENCE_SIDE)
    if kind == "contrast":
        x = picture / 255
        mean = x.mean(dim=(-2, -1), keepdim=True)
        return _bytes((x - mean) * CONTRAST[severity - 1] + mean)
    return decode_jpeg(encode_jpeg(picture, quality=JPEG[severity - 1]))


def _blur(picture: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur, its kernel cut at four standard deviations, the picture continued by its edge."""
    radius = max(1, round(4 * sigma))
    x = F.pad(picture[None].float(), (radius,) * 4, mode="replicate")
    blurred = functional.gaussian_blur(x, [2 * radius + 1] * 2, [sigma, sigma])
    return _bytes(blurred[0, :, radius:-radius, radius:-radius] / 255)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)
