"""Cluster bootstrap: whole groups are drawn with replacement, as row weights; no loop over single resamples.

Groups are drawn without stratification, so class counts vary from resample to resample as they would between samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from offshelf.evaluate.groups import count_groups, group_codes
from offshelf.evaluate.intervals import metric_cell, wilson_interval
from offshelf.evaluate.reliability import weighted_mean
from offshelf.evaluate.scores import OVERALL, PER_CLASS, Sample, Scores

# Numbers in one chunk of weights (8 bytes each); bounds the memory whatever n and B are.
CHUNK = 1_000_000


def resampled_weights(codes: np.ndarray, n_boot: int, seed: int, chunk: int = CHUNK) -> Iterator[np.ndarray]:
    """Row weights of a cluster bootstrap, a chunk of resamples at a time.

    Parameters
    ----------
    codes
        ``(n,)`` group codes 0 to G - 1. G groups are drawn with replacement; a row weighs as often as its group came.
    n_boot
        Number of resamples B.
    seed
        The same seed and codes give the same resamples, whatever the chunk.
    chunk
        Largest number of weights held at once.

    Yields
    ------
    weights
        ``(n, b)`` float64; the b add up to B.
    """
    rng = np.random.default_rng(seed)
    n_groups = int(codes.max()) + 1
    size = max(1, chunk // len(codes))
    for start in range(0, n_boot, size):
        b = min(size, n_boot - start)
        drawn = rng.integers(n_groups, size=(b, n_groups)) + np.arange(b)[:, None] * n_groups
        times = np.bincount(drawn.ravel(), minlength=b * n_groups).reshape(b, n_groups)
        yield np.ascontiguousarray(times.T, dtype=np.float64)[codes]


def replicate(scores: Scores, codes: np.ndarray, n_boot: int, seed: int) -> Sample:
    """Metrics of ``n_boot`` resamples of groups; see :func:`resampled_weights`."""
    parts = [scores.sample(weights) for weights in resampled_weights(codes, n_boot, seed)]
    return Sample(
        {name: np.concatenate([p.overall[name] for p in parts]) for name in OVERALL},
        {name: np.concatenate([p.per_class[name] for p in parts], axis=1) for name in PER_CLASS},
        np.concatenate([p.truth for p in parts], axis=1),
        np.concatenate([p.bins for p in parts], axis=1),
    )


def bootstrap_mean(
    values: np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    seed: int = 0,
    n_boot: int = 2000,
    rate: bool = False,
) -> dict[str, Any]:
    """Mean of one number a row as a cell, groups drawn whole.

    Parameters
    ----------
    values
        ``(n,)``; rows that are NaN (undefined) are left out and not counted in ``n``.
    groups
        ``(n,)`` or ``None``.
    seed, n_boot
        Of the bootstrap.
    rate
        Whether the values lie in 0 to 1, so that a collapsed interval can be Wilson's over the number of groups.

    Returns
    -------
    cell
        Metric cell.
    """
    values = np.asarray(values, dtype=np.float64)
    kept = np.isfinite(values)
    if not kept.any():
        return metric_cell(float("nan"), None, 0)
    codes = np.unique(group_codes(groups, len(values))[kept], return_inverse=True)[1]
    chosen = values[kept]
    drawn = np.concatenate([weighted_mean(chosen, weights) for weights in resampled_weights(codes, n_boot, seed)])
    value = float(chosen.mean())
    wilson = (lambda: wilson_interval(value, count_groups(codes))) if rate else None
    return metric_cell(value, drawn, len(chosen), fallback=wilson)
