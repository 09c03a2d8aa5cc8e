"""Lay one thumbnail over another, and say how well they agree.

Lucas and Kanade (1981), "An iterative image registration technique": Gauss-Newton steps on shift and scale along both
axes, many pairs at once, first on coarse and then on finer structure. Pictures are band-passed and scaled to length 1
over the part that both show, so that brightness and contrast do not count.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

STEPS = (5, 3)  # on the coarse structure at half the size, then on the fine one at full size
FURTHEST = 0.25  # most shift in half sides, and most change of scale
BATCH = 128


def agreement(grey: np.ndarray, pairs: np.ndarray, side: int | None = None) -> np.ndarray:
    """Correlation ``(m,)`` of the band-passed thumbnails of each pair after overlaying; -1 to 1.

    Parameters
    ----------
    grey : ``(n, S, S)`` uint8.
    pairs : ``(m, 2)`` rows.
    side : compare at this size, for speed.
    """
    table = torch.from_numpy(grey)
    found = [np.empty(0, np.float32)]
    for start in range(0, len(pairs), BATCH):
        batch = torch.from_numpy(np.ascontiguousarray(pairs[start : start + BATCH]))
        one, other = (table[batch[:, k]].float() for k in (0, 1))
        if side is not None and side != one.shape[-1]:
            one, other = (
                F.interpolate(x[:, None], (side, side), mode="bilinear", antialias=True)[:, 0] for x in (one, other)
            )
        found.append(overlaid(one, other)[0].numpy())
    return np.concatenate(found)


def overlaid(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlation ``(B,)`` of two batches ``(B, S, S)``, and how the second was moved.

    The move is ``(B, 4)``: change of scale and shift along x, then along y; shifts in half sides.
    """
    move = torch.zeros(len(one), 4)
    for halved, sigma, steps in ((True, 1.25, STEPS[0]), (False, 1.0, STEPS[1])):
        images = [F.avg_pool2d(image[:, None], 2)[:, 0] if halved else image for image in (one, other)]
        size = images[0].shape[-1]
        still, moving = (_band(image, sigma * one.shape[-1] / 64) for image in images)
        place = torch.linspace(-1 + 1 / size, 1 - 1 / size, size)
        y, x = torch.meshgrid(place, place, indexing="ij")
        slope_y, slope_x = torch.gradient(moving, dim=(1, 2), spacing=2 / size)
        for _ in range(steps):
            (warped, to_x, to_y), both = _warp([moving, slope_x, slope_y], move, x, y)
            target, _ = _normal(still, both)
            now, length = _normal(warped, both)
            jacobian = torch.stack([to_x * x, to_x, to_y * y, to_y], dim=1) * (both / length)[:, None]
            jacobian = (jacobian - jacobian.mean(dim=(2, 3), keepdim=True)).flatten(2)  # (B, 4, S * S)
            direction = now.flatten(1)[..., None]
            jacobian = jacobian - (jacobian @ direction) @ direction.transpose(1, 2)  # the length is not free
            square = jacobian @ jacobian.transpose(1, 2) + 1e-4 * torch.eye(4)
            step = torch.linalg.solve(square, jacobian @ (target - now).flatten(1)[..., None])[..., 0]
            move = (move + step.clamp(-0.1, 0.1)).clamp(-FURTHEST, FURTHEST)
    (warped,), both = _warp([moving], move, x, y)
    return (_normal(still, both)[0] * _normal(warped, both)[0]).sum(dim=(1, 2)), move


def _warp(
    images: list[torch.Tensor], move: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The images as the move shows them, and a mask of what they have there."""
    to_x = x * (1 + move[:, 0, None, None]) + move[:, 1, None, None]
    to_y = y * (1 + move[:, 2, None, None]) + move[:, 3, None, None]
    grid = torch.stack([to_x, to_y], dim=-1)
    warped = F.grid_sample(torch.stack(images, dim=1), grid, align_corners=False, padding_mode="border")
    return list(warped.unbind(dim=1)), ((to_x.abs() <= 1) & (to_y.abs() <= 1)).float()


def _normal(image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean 0 and length 1 under the mask, and what the length was."""
    mean = (image * mask).sum(dim=(1, 2), keepdim=True) / mask.sum(dim=(1, 2), keepdim=True)
    centred = (image - mean) * mask
    length = centred.pow(2).sum(dim=(1, 2), keepdim=True).sqrt().clamp_min(1e-6)
    return centred / length, length


def _band(image: torch.Tensor, sigma: float) -> torch.Tensor:
    return _blurred(image, sigma) - _blurred(image, 4 * sigma)


def _blurred(image: torch.Tensor, sigma: float) -> torch.Tensor:
    radius = min(int(3 * sigma + 0.5), image.shape[-1] - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(image[:, None], (radius,) * 4, mode="reflect")
    across = F.conv2d(padded, kernel[None, None, None, :])
    return F.conv2d(across, kernel[None, None, :, None])[:, 0]
