"""Augmentation of whole batches with an own draw for every sample (one shared draw would be another method).

Pictures are ``(B, 3, H, W)``; what is drawn comes from the samples' own `Draws`, so a batch and its pictures one by one
give the same result.
"""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F

from offshelf.engine.draws import Draws

GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma, as PIL and torchvision take it


# -- geometry ----------------------------------------------------------------------------------------------------------


def random_resized_crop(
    pixels: torch.Tensor,
    draws: Draws,
    size: int,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bicubic",
) -> torch.Tensor:
    """Cut an own rectangle out of every picture and bring it to ``size`` (Szegedy et al. 2015).

    Parameters
    ----------
    pixels : uint8 (B, 3, H, W)
    scale, ratio : bounds of the share of the area (evenly drawn) and of width / height (evenly in its logarithm). A
        rectangle that does not fit is drawn again up to ten times, then the largest centred one is taken.

    Returns
    -------
    float32 (B, 3, size, size) in [0, 1]
    """
    shape = (int(pixels.shape[-2]), int(pixels.shape[-1]))
    return resized_boxes(pixels, random_boxes(draws, shape, scale, ratio), size, interpolation)


def random_boxes(
    draws: Draws, shape: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """Rectangles ``(B, 4)`` as top, left, height, width in whole pixels of a picture of ``shape`` (H, W)."""
    height, width = shape
    area = draws.uniform(10, low=scale[0], high=scale[1]) * height * width
    aspect = np.exp(draws.uniform(10, low=np.log(ratio[0]), high=np.log(ratio[1])))
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.argmax(axis=1)
    rows = np.arange(len(draws))
    # the fall-back: the whole picture, trimmed to the nearest allowed ratio
    whole_w = min(width, round(height * ratio[1]))
    whole_h = min(height, round(width / ratio[0]))
    w = np.where(fits.any(axis=1), w[rows, first], whole_w)
    h = np.where(fits.any(axis=1), h[rows, first], whole_h)
    place = draws.uniform(2)
    top = np.floor(place[:, 0] * (height - h + 1))
    left = np.floor(place[:, 1] * (width - w + 1))
    centred = ~fits.any(axis=1)
    top[centred], left[centred] = (height - whole_h) // 2, (width - whole_w) // 2
    return np.stack([top, left, h, w], axis=1)


def resized_boxes(pixels: torch.Tensor, boxes: np.ndarray, size: int, interpolation: str = "bicubic") -> torch.Tensor:
    """Bring the rectangle ``boxes[i]`` (top, left, height, width) of picture i to ``(size, size)``, antialiased.

    uint8 (B, C, H, W) -> float32 (B, C, size, size) in [0, 1]. One call a picture, on 8-bit pixels: torch's kernel for
    those is as quick as a product with interpolation matrices at 32 pixels, and six times quicker at 224.
    """
    cut = pixels.new_empty(*pixels.shape[:2], size, size)
    for row, (top, left, height, width) in enumerate(boxes.astype(int).tolist()):
        part = pixels[row : row + 1, :, top : top + height, left : left + width]
        cut[row] = F.interpolate(part, (size, size), mode=interpolation, antialias=True, align_corners=False)[0]
    return cut.float() / 255


def resized(pixels: torch.Tensor, size: int, interpolation: str = "bicubic") -> torch.Tensor:
    """uint8 (B, C, H, W) -> float32 (B, C, size, size) in [0, 1]; the whole picture, its shape is not kept."""
    if tuple(pixels.shape[-2:]) != (size, size):
        pixels = F.interpolate(pixels, (size, size), mode=interpolation, antialias=True, align_corners=False)
    return pixels.float() / 255


def random_flip(x: torch.Tensor, draws: Draws, probability: float = 0.5) -> torch.Tensor:
    """Mirror each picture left and right with a probability; not where sides have a meaning."""
    mirrored = torch.from_numpy(draws.uniform() < probability)
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)


def random_shift(x: torch.Tensor, draws: Draws, share: float = 0.125) -> torch.Tensor:
    """Move each picture by up to ``share`` of its side along both axes, edges repeated."""
    reach = round(share * x.shape[-1])
    if not reach:
        return x
    offsets = torch.from_numpy(draws.integers(2 * reach + 1, 2) - reach)
    height, width = x.shape[-2:]
    rows = (torch.arange(height)[None] + offsets[:, :1]).clamp_(0, height - 1)
    columns = (torch.arange(width)[None] + offsets[:, 1:]).clamp_(0, width - 1)
    number = torch.arange(len(x)).view(-1, 1, 1)
    return x.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def random_affine(
    x: torch.Tensor,
    draws: Draws,
    degrees: float = 0.0,
    translate: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
) -> torch.Tensor:
    """Turn, enlarge and move each picture about its centre, bilinear, zeros outside.

    Parameters
    ----------
    x : float (B, C, S, S)
    degrees : angle drawn from [-degrees, degrees], counter-clockwise.
    translate : shift along both axes drawn from [-translate, translate] of the side.
    scale : bounds of the factor.
    """
    angle = np.deg2rad(draws.uniform(low=-degrees, high=degrees))
    factor = draws.uniform(low=scale[0], high=scale[1])
    moved = draws.uniform(2, low=-translate, high=translate)
    return affine(x, angle, factor, moved)


def affine(x: torch.Tensor, angle: np.ndarray, factor: np.ndarray, moved: np.ndarray) -> torch.Tensor:
    """`random_affine` with given angles (B,) in radians, factors (B,) and shifts (B, 2) as shares (down, right)."""
    if not (np.any(angle) or np.any(factor != 1) or np.any(moved)):
        return x
    cos, sin = np.cos(angle) / factor, np.sin(angle) / factor
    down, right = 2 * moved[:, 0], 2 * moved[:, 1]
    # grid_sample asks where each output pixel comes from: the inverse of turn, enlarge, move
    theta = np.stack(
        [np.stack([cos, -sin, -cos * right + sin * down], 1), np.stack([sin, cos, -sin * right - cos * down], 1)], 1
    )
    grid = F.affine_grid(torch.from_numpy(theta).to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


# -- colour ------------------------------------------------------------------------------------------------------------


def color_jitter(
    x: torch.Tensor,
    draws: Draws,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    probability: float = 1.0,
) -> torch.Tensor:
    """Scale brightness, contrast and saturation, in this order, each by an own factor from [1 - s, 1 + s].

    The usual recipe shuffles the order and turns the hue as well; neither is done here.

    Parameters
    ----------
    x : float (B, 3, H, W) in [0, 1]
    """
    chosen = torch.from_numpy(draws.uniform() < probability).view(-1, 1, 1, 1)
    strengths = (brightness, contrast, saturation)
    factors = [
        torch.from_numpy(draws.uniform(low=max(0.0, 1 - s), high=1 + s)).to(x.dtype).view(-1, 1, 1, 1)
        for s in strengths
    ]
    y = (x * factors[0]).clamp(0, 1)
    y = y.lerp(_grey(y).mean(dim=(2, 3), keepdim=True).expand_as(y), 1 - factors[1]).clamp(0, 1)
    y = y.lerp(_grey(y).expand_as(y), 1 - factors[2]).clamp(0, 1)
    return torch.where(chosen, y, x)


def random_grayscale(x: torch.Tensor, draws: Draws, probability: float = 0.2) -> torch.Tensor:
    """Take the colour out of each picture with a probability."""
    chosen = torch.from_numpy(draws.uniform() < probability).view(-1, 1, 1, 1)
    return torch.where(chosen, _grey(x).expand_as(x), x)


def _grey(x: torch.Tensor) -> torch.Tensor:
    return (x * x.new_tensor(GREY).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def rand_augment(pixels: torch.Tensor, draws: Draws, recipe: str = "rand-m6-mstd0.5-inc1") -> torch.Tensor:
    """timm's RandAugment (Cubuk et al. 2020), picture by picture: uint8 (B, 3, H, W) -> the same shape.

    Its generators are Python's and NumPy's global ones; they are seeded from the sample's draw and put back.
    """
    from PIL import Image
    from timm.data.auto_augment import rand_augment_transform

    transform = rand_augment_transform(
        recipe, {"translate_const": int(0.45 * pixels.shape[-1]), "img_mean": (128,) * 3}
    )
    state = random.getstate(), np.random.get_state()
    changed = torch.empty_like(pixels)
    try:
        for row, seed in enumerate(draws.seeds()):
            random.seed(int(seed))
            np.random.seed(int(seed))
            picture = transform(Image.fromarray(pixels[row].permute(1, 2, 0).contiguous().numpy()))
            changed[row] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
    return changed


def normalised(
    x: torch.Tensor, mean: tuple[float, ...] | list[float], std: tuple[float, ...] | list[float]
) -> torch.Tensor:
    """Pictures in [0, 1] with the mean and standard deviation of each channel that the weights expect."""
    return (x - x.new_tensor(mean).view(1, -1, 1, 1)) / x.new_tensor(std).view(1, -1, 1, 1)
