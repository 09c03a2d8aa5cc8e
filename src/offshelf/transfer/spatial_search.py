"""Spatial search for retrieval (arXiv 1403.6382, instance retrieval): patches of one image against another's.

Level i of a picture has i x i overlapping squares; a query patch is as far from a picture as from its nearest patch,
and a query image as its patches are on average.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from offshelf.errors import DataError, UsageError


def sub_patches(height: int, width: int, levels: int) -> np.ndarray:
    """Squares of levels 1 to ``levels`` as integer boxes ``(P, 4)``, xyxy in pixels, P = 1 + 4 + ... + levels^2.

    Level 1 is the largest centred square; level i >= 2 has sides of 2 min(H, W) / (i + 1) (half overlapping on a square
    picture; the side is our choice) with centres spread evenly.
    """
    if levels < 1 or min(height, width) < 1:
        raise UsageError(f"levels={levels} on {height} x {width} pixels: expected at least one level and one pixel")
    short = min(height, width)
    boxes = []
    for level in range(1, levels + 1):
        side = short if level == 1 else max(1, round(2 * short / (level + 1)))
        for top in _starts(height - side, level):
            for left in _starts(width - side, level):
                boxes.append((left, top, left + side, top + side))
    return np.array(boxes, dtype=np.int64)


def _starts(room: int, level: int) -> list[int]:
    return [room // 2] if level == 1 else [round(room * i / (level - 1)) for i in range(level)]


def mean_of_minima(distances: Any) -> np.ndarray:
    """Distances ``(..., query patches, reference patches)`` to one a pair: the nearest reference patch, averaged.

    [[1, 3], [2, 0.5]] gives (1 + 0.5) / 2 = 0.75.
    """
    return np.asarray(distances).min(axis=-1).mean(axis=-1)


def spatial_distance(query_patches: Any, reference_patches: Any) -> float:
    """Distance of a query image ``(q, d)`` to a reference image ``(r, d)``; 0 for identical patches, not symmetric."""
    query, reference = (torch.as_tensor(np.asarray(p, dtype=np.float64)) for p in (query_patches, reference_patches))
    if query.ndim != 2 or reference.ndim != 2 or query.shape[1] != reference.shape[1]:
        raise DataError(
            f"patches have shapes {tuple(query.shape)} and {tuple(reference.shape)}, expected (q, d) and (r, d)"
        )
    # The product form of the distance loses half the digits near zero, where identical patches lie.
    return float(mean_of_minima(torch.cdist(query, reference, compute_mode="donot_use_mm_for_euclid_dist").numpy()))


def rank(queries: Any, references: Any, block_rows: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """Order references for each query, nearest first.

    Parameters
    ----------
    queries : array, shape (Q, q, d) or (Q, d)
    references : array, shape (R, r, d) or (R, d)
    block_rows : int
        Query patches compared at once.

    Returns
    -------
    order : int array, shape (Q, R)
    distances : float32 array, shape (Q, R)
        In the references' own order; equal distances keep that order in ``order``.
    """
    query, reference = (_patches(name, a) for name, a in (("queries", queries), ("references", references)))
    if query.shape[2] != reference.shape[2]:
        raise DataError(
            f"queries are {query.shape[2]} wide and references {reference.shape[2]}, expected the same width"
        )
    Q, q, d = query.shape
    R, r, _ = reference.shape
    flat = reference.reshape(R * r, d)
    square = (flat**2).sum(dim=1)
    rows = []
    step = max(1, block_rows // q)
    for block in query.split(step):
        patches = block.reshape(-1, d)
        squared = (patches**2).sum(dim=1, keepdim=True) + square - 2.0 * (patches @ flat.T)
        nearest = squared.view(-1, R, r).amin(dim=2).clamp(min=0.0).sqrt()  # (b q, R)
        rows.append(nearest.view(-1, q, R).mean(dim=1))
    distances = torch.cat(rows)
    return distances.argsort(dim=1, stable=True).numpy(), distances.float().numpy()


def _patches(name: str, array: Any) -> torch.Tensor:
    patches = torch.as_tensor(np.asarray(array, dtype=np.float64))  # double: differences of squares follow
    if patches.ndim == 2:
        patches = patches[:, None, :]
    if patches.ndim != 3 or 0 in patches.shape:
        raise DataError(f"{name} have shape {tuple(patches.shape)}, expected (images, patches, d) or (images, d)")
    if not bool(torch.isfinite(patches).all()):
        bad = torch.nonzero(~torch.isfinite(patches).all(dim=2).all(dim=1)).flatten().tolist()
        raise DataError(f"{name} hold NaN or infinite values in images {bad[:10]}; compute their features again")
    return patches
