"""Battle of the Backbones: many backbones through the same tasks, standardised, averaged and ranked.

Goldblum et al. 2023, arXiv 2310.19909. Claim: over many backbones the tasks rank them alike, so one overall z-score has
a meaning; and supervised convolutional networks hold their own. Departures: the paper does not say which standard
deviation; ours is that of the population (ddof 0).

Arrays: M backbones, S settings, T tasks, B resamples. A last axis B may follow everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from offshelf.errors import DataError, UsageError

# Upper bounds in parameters, and what the sizes up to there are called; all above are large.
TIERS = ((1_000_000, "tiny (< 1M)"), (30_000_000, "small (< 30M)"), (150_000_000, "base (30-150M)"))
# Fewer points give no rank correlation worth a number; the bootstrap needs some more.
FEWEST_POINTS, FEWEST_FOR_INTERVAL = 3, 5


def z_scores(values: np.ndarray) -> np.ndarray:
    """Standardise each setting over the backbones that have a value in it.

    Parameters
    ----------
    values
        ``(M, S)`` or ``(M, S, B)``, higher is better, NaN = no value.

    Returns
    -------
    z
        Of the same shape: mean 0 and standard deviation 1 (ddof 0) over the present backbones of each column; zeros
        where all of them are equal; NaN stays NaN. The numbers hang on the pool: other backbones, other z.
    """
    x = np.asarray(values, dtype=np.float64)
    present = np.isfinite(x)
    count = np.maximum(present.sum(axis=0), 1)
    filled = np.where(present, x, 0.0)
    deviation = np.where(present, x - filled.sum(axis=0) / count, 0.0)
    spread = np.sqrt((deviation**2).sum(axis=0) / count)
    # Equal numbers differ from their mean by rounding alone, which must not be blown up to a z of 1.
    constant = spread <= 8 * np.finfo(np.float64).eps * np.abs(filled).max(axis=0)
    z = np.where(constant, 0.0, deviation / np.where(constant, 1.0, spread))
    return np.where(present, z, np.nan)


def task_scores(
    z: np.ndarray, tasks: Sequence[str], weights: np.ndarray | None = None
) -> tuple[np.ndarray, list[str]]:
    """Mean z of each task's settings.

    Parameters
    ----------
    z
        ``(M, S)`` or ``(M, S, B)``.
    tasks
        Task of each of the S settings.
    weights
        ``(S,)`` or ``(S, B)``: how often each setting counts; once by default.

    Returns
    -------
    scores
        ``(M, T)`` or ``(M, T, B)``; mean over the settings that the backbone has, NaN where it has none of weight.
    names
        The T tasks in order of first appearance.
    """
    if len(tasks) != z.shape[1]:
        raise DataError(f"{len(tasks)} tasks for {z.shape[1]} settings; give the task of each setting")
    names = list(dict.fromkeys(tasks))
    weight = np.ones(z.shape[1:2]) if weights is None else np.asarray(weights, dtype=np.float64)
    if z.ndim == 3 and weight.ndim == 1:
        weight = weight[:, None]
    scores = []
    for name in names:
        mine = [s for s, task in enumerate(tasks) if task == name]
        present = np.isfinite(z[:, mine])
        weighted = present * weight[mine]
        scores.append(_ratio((np.where(present, z[:, mine], 0.0) * weighted).sum(axis=1), weighted.sum(axis=1)))
    return np.stack(scores, axis=1), names


def overall(scores: np.ndarray) -> np.ndarray:
    """Mean over the tasks ``(M, T[, B])`` that a backbone has a score in, so that no task dominates by its data sets."""
    present = np.isfinite(scores)
    return _ratio(np.where(present, scores, 0.0).sum(axis=1), present.sum(axis=1))


def coverage(values: np.ndarray) -> np.ndarray:
    """Share ``(M,)`` of the settings ``(M, S)`` that a backbone has a value in, of those in which any backbone has."""
    present = np.isfinite(values)
    measured = present.any(axis=0)
    return present[:, measured].mean(axis=1) if measured.any() else np.zeros(len(values))


def may_be_ranked(values: np.ndarray, allow_missing: bool = False) -> np.ndarray:
    """Which backbones ``(M,)`` get an overall rank: those of full coverage, or on demand all that have any value."""
    share = coverage(values)
    return share > 0 if allow_missing else share == 1


def rank(scores: np.ndarray) -> np.ndarray:
    """Ranks over the first axis, 1 = highest score; equals share the better place (1, 1, 3); NaN stays NaN."""
    ranks = rankdata(np.where(np.isfinite(scores), -np.asarray(scores), np.inf), method="min", axis=0).astype(float)
    return np.where(np.isfinite(scores), ranks, np.nan)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
