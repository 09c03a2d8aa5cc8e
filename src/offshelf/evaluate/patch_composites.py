"""Test pictures with known sets of labels: pictures of single objects pasted into the cells of a grid.

After PatchML of arXiv 2412.18409, whose layout, counts and sizes are not known to us: cells here are equal, lie in a
1 x 2 or 2 x 2 grid (or any other), and those without an object hold blurred noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from offshelf.errors import DataError

BLUR = 2.0  # standard deviation in pixels
CHUNK = 512  # composites whose background is made at once


@dataclass(frozen=True, eq=False)
class Composites:
    """Of n composites: ``pictures (n, 3, H, W)`` uint8; ``label_sets (n, K)`` bool; ``labels (n,)``, one valid label
    drawn at random; ``sources (n, cells)``, the pasted row of the base in each cell, -1 where there is none.
    """

    pictures: np.ndarray
    label_sets: np.ndarray
    labels: np.ndarray
    sources: np.ndarray


def patch_composites(
    pictures: np.ndarray,
    labels: np.ndarray,
    counts: Mapping[int, int],
    *,
    grid: tuple[int, int] = (2, 2),
    exclude: Iterable[int] = (),
    seed: int = 0,
    n_classes: int | None = None,
) -> Composites:
    """Paste pictures of distinct classes side by side; no picture is used twice.

    Parameters
    ----------
    pictures
        ``(m, 3, h, w)`` uint8, each showing one object.
    labels
        ``(m,)`` their class numbers.
    counts
        How many composites of how many objects: ``{1: 84, 2: 16}``. Their order is shuffled.
    grid
        Rows and columns; a composite is ``rows * h`` high and ``columns * w`` wide.
    exclude
        Rows of ``pictures`` that must not be used, such as those that were trained on.
    seed
        Of classes, pictures, cells, backgrounds and the one label.
    n_classes
        K; by default one more than the highest label.

    Raises
    ------
    DataError
        More objects than cells, or than pictures of distinct classes are left.
    """
    base, y = np.asarray(pictures), np.asarray(labels)
    cells = grid[0] * grid[1]
    if any(not 1 <= k <= cells or number < 0 for k, number in counts.items()):
        raise DataError(
            f"counts {dict(counts)}: expected 1 to {cells} objects, the cells of a {grid[0]} x {grid[1]} grid"
        )
    if not sum(counts.values()):
        raise DataError(f"counts {dict(counts)}: expected at least one composite")
    random = np.random.default_rng([seed, 17])
    sizes = random.permutation(np.repeat(np.array(list(counts), dtype=int), list(counts.values())))
    chosen = _sources(y, sizes, np.array(sorted(set(exclude)), dtype=int), random)
    place = random.permuted(np.tile(np.arange(cells), (len(sizes), 1)), axis=1)
    sources = np.full((len(sizes), cells), -1)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    order = np.concatenate([np.arange(k) for k in sizes])
    sources[rows, place[rows, order]] = chosen
    table = np.zeros((len(sizes), n_classes or int(y.max()) + 1), dtype=bool)
    table[rows, y[chosen]] = True
    drawn = np.where(table, random.random(table.shape), -1.0).argmax(axis=1)
    return Composites(_paste(base, sources, grid, random), table, drawn, sources)


def _sources(y: np.ndarray, sizes: np.ndarray, excluded: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Rows for all objects, one composite after the other.

    Classes are drawn in proportion to the pictures they have left, so that every picture is as likely as any other.
    """
    free = np.setdiff1d(np.arange(len(y)), excluded)
    shuffled = random.permutation(free)
    stacks = [shuffled[y[shuffled] == k].tolist() for k in range(int(y.max()) + 1)]
    left = np.array([len(stack) for stack in stacks], dtype=float)
    found: list[int] = []
    for number, k in enumerate(sizes):
        if np.count_nonzero(left) < k:
            raise DataError(
                f"composite {number + 1} of {len(sizes)}: {k} distinct classes are needed and "
                f"{np.count_nonzero(left)} have pictures left, of {len(free)} that may be used once each. Ask for "
                "fewer composites."
            )
        for one in random.choice(len(left), int(k), replace=False, p=left / left.sum()):
            found.append(stacks[one].pop())
            left[one] -= 1
    return np.array(found, dtype=int)


def _paste(base: np.ndarray, sources: np.ndarray, grid: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Backgrounds of blurred noise, with the mean and the spread of each channel of the base, and the objects on it."""
    n, (_, channels, high, wide) = len(sources), base.shape
    mean, spread = (
        np.asarray(of(base[:1000], axis=(0, 2, 3)), dtype=np.float32)[:, None, None] for of in (np.mean, np.std)
    )
    canvas = np.empty((n, channels, grid[0] * high, grid[1] * wide), dtype=np.uint8)
    for start in range(0, n, CHUNK):
        part = canvas[start : start + CHUNK]
        noise = random.standard_normal(part.shape, dtype=np.float32)
        noise = gaussian_filter(noise, (0, 0, BLUR, BLUR), mode="wrap")
        part[:] = (mean + spread * noise / max(float(noise.std()), 1e-6)).clip(0, 255)
    tiles = canvas.reshape(n, channels, grid[0], high, grid[1], wide)
    rows, cells = np.nonzero(sources >= 0)
    tiles[rows, :, cells // grid[1], :, cells % grid[1], :] = base[sources[rows, cells]]
    return canvas
