"""How alike tasks rank the backbones, and how far size goes with the score: rank correlations over backbones.

Their intervals are over draws of backbones: how far the number would move with another choice of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from offshelf.evaluate.intervals import MOST_UNDEFINED

# Fewer points give no rank correlation worth a number; the bootstrap needs some more.
FEWEST_POINTS, FEWEST_FOR_INTERVAL = 3, 5


def correlate(scores: np.ndarray, seed: int = 0, n_boot: int = 2000) -> dict[str, Any]:
    """How alike the tasks rank the backbones.

    Parameters
    ----------
    scores
        ``(M, T)`` task scores; backbones without a score in every task are left out.
    seed, n_boot
        Of the bootstrap over backbones.

    Returns
    -------
    result
        ``spearman`` and ``pearson`` ``(T, T)``, NaN where a task has no spread or fewer than three backbones are left;
        ``mean_spearman``, over the pairs of different tasks, with its 95 % interval ``low`` and ``high`` over draws of
        backbones (NaN with one task or under five backbones); ``n``, the backbones used.
    """
    used = np.asarray(scores, dtype=np.float64)[np.isfinite(scores).all(axis=1)]
    spearman = correlation(rankdata(used, axis=0)) if len(used) else correlation(used)
    result = {"spearman": spearman, "pearson": correlation(used), "mean_spearman": _mean_off_diagonal(spearman)}
    chosen = np.random.default_rng(seed).integers(0, max(len(used), 1), (n_boot, len(used)))
    drawn = _mean_off_diagonal(correlation(rankdata(used[chosen], axis=1))) if len(used) else np.full(n_boot, np.nan)
    low, high = bootstrap_bounds(drawn, len(used))
    return {**result, "low": low, "high": high, "n": len(used)}


def scaling(
    scores: np.ndarray, log_sizes: np.ndarray, families: Sequence[str], seed: int = 0, n_boot: int = 2000
) -> dict[str, dict[str, float]]:
    """Rank correlation of a score with size, within each family and over ``"all"``.

    Parameters
    ----------
    scores, log_sizes
        ``(M,)``; a backbone with either NaN is left out.
    families
        M names.
    seed, n_boot
        Of the bootstrap over backbones.

    Returns
    -------
    by_family
        Family -> ``spearman``, ``low``, ``high`` (95 %, over draws of backbones) and ``n``; NaN with under three (for
        the interval five) backbones, or where all sizes or scores are equal.
    """
    known = np.isfinite(scores) & np.isfinite(log_sizes)
    both = np.stack([scores, log_sizes], axis=1)
    result = {}
    for family in [*dict.fromkeys(families), "all"]:
        pairs = both[known & (True if family == "all" else np.array([name == family for name in families]))]
        whole = correlate(pairs, seed, n_boot)
        result[family] = {"spearman": float(whole["spearman"][0, 1])} | {k: whole[k] for k in ("low", "high", "n")}
    return result


def correlation(columns: np.ndarray) -> np.ndarray:
    """Pearson's correlations ``(..., T, T)`` of the columns ``(..., M, T)``; of their ranks, they are Spearman's."""
    m, t = columns.shape[-2:]
    if m < FEWEST_POINTS:
        return np.full((*columns.shape[:-2], t, t), np.nan)
    centred = columns - columns.mean(axis=-2, keepdims=True)
    products = np.swapaxes(centred, -1, -2) @ centred
    length = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    tiny = length <= 1e-12 * np.sqrt(m) * np.maximum(np.abs(columns).max(axis=-2), np.finfo(float).tiny)
    length = np.where(tiny, np.nan, length)
    return np.clip(products / (length[..., :, None] * length[..., None, :]), -1, 1)


def bootstrap_bounds(drawn: np.ndarray, n: int) -> tuple[float, float]:
    """95 % percentiles of the defined ones among B correlations of n backbones drawn; NaN where they say nothing."""
    defined = drawn[np.isfinite(drawn)]
    if n < FEWEST_FOR_INTERVAL or len(defined) < (1 - MOST_UNDEFINED) * len(drawn):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def _mean_off_diagonal(matrix: np.ndarray) -> Any:
    """Mean over the pairs of different tasks ``(...)`` of ``(..., T, T)``."""
    t = matrix.shape[-1]
    rows, columns = np.triu_indices(t, 1)
    if not len(rows):
        return np.full(matrix.shape[:-2], np.nan)[()]
    return matrix[..., rows, columns].mean(axis=-1)
