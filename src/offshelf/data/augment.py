"""Augmentation of whole batches with an own draw for every sample (one shared draw would be another method)."""

from __future__ import annotations

import numpy as np
import torch


def shift_and_flip(
    batch: np.ndarray, draws: np.random.Generator, shift: float = 0.125, flip: bool = True
) -> torch.Tensor:
    """Move every picture by its own offset, edges repeated, and mirror each with probability one half.

    Parameters
    ----------
    batch : ndarray (B, C, S, S) uint8
    draws : the generator of this step.
    shift : largest offset as a share of the side; 0 switches it off.
    flip : mirror left and right; off where sides have a meaning, as in a chest X-ray.

    Returns
    -------
    tensor (B, C, S, S) uint8
    """
    n, _, side, _ = batch.shape
    reach = round(shift * side)
    if reach:
        padded = np.pad(batch, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3))
        top, left = draws.integers(0, 2 * reach + 1, (2, n))
        batch = windows[np.arange(n), :, top, left]
    moved = torch.from_numpy(np.ascontiguousarray(batch))
    if flip:
        mirrored = torch.from_numpy(draws.random(n) < 0.5)
        moved[mirrored] = moved[mirrored].flip(-1)
    return moved
