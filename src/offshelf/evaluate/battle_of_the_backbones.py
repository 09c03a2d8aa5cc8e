"""Battle of the Backbones: many backbones through the same tasks, standardised, averaged and ranked.

Goldblum et al. 2023, arXiv 2310.19909. Claim: over many backbones the tasks rank them alike, so one overall z-score has
a meaning; and supervised convolutional networks hold their own. Departures: the paper does not say which standard
deviation; ours is that of the population (ddof 0).

Arrays: M backbones, S settings, T tasks, B resamples. A last axis B may follow everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from scipy.stats import rankdata

from offshelf.errors import DataError, UsageError
from offshelf.evaluate.battle.agreement import correlate as correlate
from offshelf.evaluate.battle.agreement import scaling as scaling

# Upper bounds in parameters, and what the sizes up to there are called; all above are large.
TIERS = ((1_000_000, "tiny (< 1M)"), (30_000_000, "small (< 30M)"), (150_000_000, "base (30-150M)"))


def z_scores(values: np.ndarray, spread: np.ndarray | None = None) -> np.ndarray:
    """Standardise each setting over the backbones that have a value in it.

    Parameters
    ----------
    values
        ``(M, S)`` or ``(M, S, B)``, higher is better, NaN = no value.
    spread
        ``(S,)`` to divide by; by default the standard deviation (ddof 0) of each column.

    Returns
    -------
    z
        Of the same shape: mean 0 and standard deviation 1 over the present backbones of each column; zeros where all
        of them are equal or ``spread`` is 0; NaN stays NaN. The numbers hang on the pool: other backbones, other z.
    """
    x = np.asarray(values, dtype=np.float64)
    present = np.isfinite(x)
    filled = np.where(present, x, 0.0)
    mean = filled.sum(axis=0) / np.maximum(present.sum(axis=0), 1)
    own = pool_spread(x) if spread is None else spread if x.ndim == 2 else spread[:, None]
    z = np.divide(x - mean, own, out=np.zeros(x.shape), where=(own > 0) & present)
    return np.where(present, z, np.nan)


def pool_spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation (ddof 0) over the present backbones of each column ``(S[, B])``; exactly 0 where all agree."""
    x = np.asarray(values, dtype=np.float64)
    present = np.isfinite(x)
    filled = np.where(present, x, 0.0)
    count = np.maximum(present.sum(axis=0), 1)
    deviation = np.where(present, x - filled.sum(axis=0) / count, 0.0)
    spread = np.sqrt((deviation**2).sum(axis=0) / count)
    # Equal numbers differ from their mean by rounding alone, which must not be blown up to a z of 1.
    return np.where(spread <= 8 * np.finfo(np.float64).eps * np.abs(filled).max(axis=0), 0.0, spread)


def task_scores(z: np.ndarray, tasks: Sequence[str], weights: np.ndarray | None = None) -> tuple[np.ndarray, list[str]]:
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
    """Mean over the tasks ``(M, T[, B])`` that a backbone has a score in; many data sets give a task no more weight."""
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


def without(names: Sequence[str], left_out: Collection[str]) -> np.ndarray:
    """Which of M backbones ``(M,)`` are not among those left out (the random ones, say)."""
    return np.array([name not in left_out for name in names], dtype=bool)


def size_tier(parameters: int) -> str:
    """Size class of a network by its number of parameters: tiny, small, base or large."""
    return next((name for bound, name in TIERS if parameters < bound), "large")


def apples_to_apples(architectures: Sequence[str]) -> dict[str, list[int]]:
    """Backbones of one architecture that differ in their pre-training alone: architecture -> indices, two at least."""
    groups: dict[str, list[int]] = {}
    for m, architecture in enumerate(architectures):
        groups.setdefault(architecture, []).append(m)
    return {architecture: members for architecture, members in groups.items() if len(members) > 1}


def pareto_front(scores: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Which backbones ``(M,)`` no other one equals or beats in both score and cost, and beats in one.

    ``scores`` higher is better, ``costs`` lower is better; NaN in either keeps a backbone off the front.
    """
    known = np.isfinite(scores) & np.isfinite(costs)
    no_worse = (scores[:, None] >= scores) & (costs[:, None] <= costs)
    better = (scores[:, None] > scores) | (costs[:, None] < costs)
    return known & ~(no_worse & better & known[:, None]).any(axis=0)


def trapezoid_average_precision(ranks: Sequence[int] | np.ndarray, n_positive: int) -> float:
    """Average precision of the paper's retrieval script: each hit counts the mean precision just before and at it.

    Parameters
    ----------
    ranks
        0-based ranks of the hits, junk taken out before ranking.
    n_positive
        All positives of the query, found or not.

    Returns
    -------
    average_precision
        NaN without positives, so that such a query is left out. Ranks 0 and 2 of 2: 0.7917.
    """
    hits = np.sort(np.asarray(ranks, dtype=np.int64))
    if len(hits) > n_positive or (hits < 0).any() or len(np.unique(hits)) < len(hits):
        raise UsageError(f"ranks of {len(hits)} hits for {n_positive} positives; give different ranks from 0, no more")
    if not n_positive:
        return float("nan")
    j = np.arange(len(hits))
    before = np.where(hits == 0, 1.0, j / np.maximum(hits, 1))
    after = (j + 1) / (hits + 1)
    return float((before + after).sum() / (2 * n_positive))


def mean_reciprocal_rank(ranks: Sequence[Sequence[int] | np.ndarray]) -> float:
    """Mean of 1 / (1 + 0-based rank of the first hit) over the queries that have hits; NaN if none has."""
    first = [1 / (1 + int(np.min(hits))) for hits in ranks if len(hits)]
    return float(np.mean(first)) if first else float("nan")


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
