"""Shapes of convolution kernels that cover k x k pixels: square, factorised, stacked, dilated, masked, separable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from offshelf.errors import UsageError, near

Maker = Callable[..., nn.Module]
SHAPES = ("square", "factorised", "stacked", "dilated", "cross", "ring", "separable")


class MaskedConv2d(nn.Conv2d):
    """A convolution whose kernel has holes: taps outside ``mask`` (kh, kw) are 0 and stay 0 through any training."""

    def __init__(self, *args: Any, mask: torch.Tensor, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.mask: torch.Tensor
        self.taps = int(mask.sum())  # of one channel's kernel
        self.register_buffer("mask", mask.to(self.weight), persistent=False)
        with torch.no_grad():
            self.weight.mul_(self.mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` -> the map; no gradient reaches a hole."""
        return self._conv_forward(x, self.weight * self.mask, self.bias)


def mask_of(shape: str, size: int) -> torch.Tensor:
    """``(size, size)`` of 1 and 0: the middle row and column, or the outermost taps."""
    mask, middle = torch.zeros(size, size, device="cpu"), size // 2
    if shape == "cross":
        mask[middle], mask[:, middle] = 1, 1
    else:
        mask[:], mask[1:-1, 1:-1] = 1, 0
    return mask


def covering(shape: str, size: int, channels: int, width: int, between: Maker, bias: bool) -> list[nn.Module]:
    """Layers from ``channels`` to ``width`` that see ``size`` x ``size`` pixels and keep the map's size.

    Parameters
    ----------
    shape
        One of `SHAPES`. Factorised is 1 x k then k x 1, stacked are (k - 1) / 2 layers of 3 x 3, dilated is one 3 x 3
        whose taps lie (k - 1) / 2 apart, separable is depthwise k x k then 1 x 1.
    between
        ``between(width)`` makes what stands between two layers (norm and non-linearity).

    Raises
    ------
    UsageError
        For a shape that is none, an even size, or one too small for the shape.
    """
    check_shape(shape, size)

    def conv(a: int, b: int, kernel: int | tuple[int, int], **how: Any) -> nn.Conv2d:
        sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        step = how.get("dilation", 1)
        return nn.Conv2d(a, b, sides, padding=tuple(step * (one // 2) for one in sides), bias=bias, **how)

    if shape == "square":
        return [conv(channels, width, size)]
    if shape == "factorised":
        return [conv(channels, width, (1, size)), between(width), conv(width, width, (size, 1))]
    if shape == "dilated":
        return [conv(channels, width, 3, dilation=(size - 1) // 2)]
    if shape == "separable":
        return [conv(channels, channels, size, groups=channels), conv(channels, width, 1)]
    if shape == "stacked":
        layers: list[nn.Module] = [conv(channels, width, 3)]
        for _ in range((size - 1) // 2 - 1):
            layers += [between(width), conv(width, width, 3)]
        return layers
    mask = mask_of(shape, size)
    return [MaskedConv2d(channels, width, size, padding=size // 2, bias=bias, mask=mask)]


def check_shape(shape: str, size: int) -> None:
    """Refuse a shape or size that cannot be built (UsageError)."""
    if shape not in SHAPES:
        hint = near(shape, SHAPES) or "."
        raise UsageError(f"kernel shape {shape!r} is unknown{hint} Shapes: {', '.join(SHAPES)}.")
    least = 1 if shape in ("square", "separable") else 3
    if size < least or size % 2 == 0:
        raise UsageError(f"{shape} kernel of size {size}: expected an odd number of {least} or more.")
