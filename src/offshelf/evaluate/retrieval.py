"""Retrieval: every image asks for the others of its class, ranked by the distance of their features.

Source of the measure: instance retrieval with off-the-shelf features (arXiv 1403.6382), mean average precision and
recall at k. Rows of equal similarity are taken together, so the order of the rows in a file cannot help.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from offshelf.errors import DataError, UsageError
from offshelf.evaluate.groups import group_codes
from offshelf.evaluate.resampling import bootstrap_mean

# Similarities held at once (8 bytes each).
CHUNK = 4_000_000


def average_precision_of_ranks(relevance: np.ndarray, n_relevant: int | np.ndarray | None = None) -> np.ndarray:
    """Average precision of ranked lists: mean over the relevant items of the precision at their rank.

    Parameters
    ----------
    relevance
        ``(n,)`` or ``(q, n)`` bool, best rank first. Relevant at ranks 1 and 3 of 4: (1 + 2/3) / 2 = 0.8333.
    n_relevant
        Relevant items in all, found or not, ``()`` or ``(q,)``; by default those in the list.

    Returns
    -------
    average_precision
        ``()`` or ``(q,)``; NaN without relevant items.
    """
    table = np.atleast_2d(np.asarray(relevance, dtype=bool))
    ends = np.broadcast_to(np.arange(table.shape[1]), table.shape)
    total = table.sum(axis=1) if n_relevant is None else np.broadcast_to(np.asarray(n_relevant), len(table))
    result = _average_precision(table, ends, total)
    return result[0] if np.ndim(relevance) == 1 else result


def mean_average_precision(relevance: np.ndarray, n_relevant: np.ndarray | None = None) -> float:
    """Mean of the average precisions of ``(q, n)`` ranked lists, over the queries that have a relevant item."""
    values = np.atleast_1d(average_precision_of_ranks(relevance, n_relevant))
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan")


def recall_at_k(relevance: np.ndarray, k: int, n_relevant: np.ndarray | None = None) -> np.ndarray:
    """Share ``(q,)`` of each query's relevant items among its first ``k``; NaN without relevant items."""
    table = np.atleast_2d(np.asarray(relevance, dtype=bool))
    total = table.sum(axis=1) if n_relevant is None else np.broadcast_to(np.asarray(n_relevant), len(table))
    return np.divide(table[:, :k].sum(axis=1), total, out=np.full(len(table), np.nan), where=total > 0)


def leave_one_out_retrieval(
    features: np.ndarray,
    labels: Sequence[Any] | np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    metric: str = "cosine",
    exclude_same_group: bool = True,
    ks: Sequence[int] = (1, 5),
    seed: int = 0,
    n_boot: int = 2000,
) -> dict[str, Any]:
    """Every row as query against all others; relevant are the rows of its class.

    Parameters
    ----------
    features
        ``(n, d)`` finite.
    labels
        ``(n,)``.
    groups
        ``(n,)`` or ``None``: drawn whole in the bootstrap, and by default left out of their own members' lists.
    metric
        ``"cosine"`` or ``"l2"``; on unit vectors they rank alike. A zero vector has cosine 0 with everything.
    exclude_same_group
        Whether rows of the query's own group are left out, so that another picture of the same patient is no hit.
    ks
        Ranks for recall.
    seed, n_boot
        Of the bootstrap over the groups of queries.

    Returns
    -------
    result
        Cells ``mean_average_precision``, ``recall_at_{k}`` for each k (expected over the order of equal similarities)
        and ``hit_at_1`` (share of queries whose nearest row is relevant, likewise); ``chance`` (mean share of relevant
        rows in the lists), ``n_queries``, ``n_without_relevant`` and ``average_precision``, a list with one number (or
        null) a row.
    """
    x = np.asarray(features, dtype=np.float64)
    y = np.unique(np.asarray(labels), return_inverse=True)[1]
    if x.ndim != 2 or len(x) != len(y) or len(x) < 2:
        raise DataError(f"features: shape {x.shape} for {len(y)} labels; expected a row a label, at least 2 rows")
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if bad.size:
        raise DataError(f"features, row {bad[0]}: not finite; {bad.size} such rows. Leave them out or mend the network")
    if metric not in ("cosine", "l2"):
        raise UsageError(f"metric {metric!r} is unknown; 'cosine' or 'l2'")
    codes = group_codes(groups, len(x))
    if metric == "cosine":
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    size = max(1, CHUNK // len(x))
    blocks = [
        _queries(np.arange(start, min(start + size, len(x))), x, y, codes if exclude_same_group else None, metric, ks)
        for start in range(0, len(x), size)
    ]
    per_query = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    chance = per_query.pop("chance")
    asked = np.isfinite(per_query["mean_average_precision"])
    cells = {
        name: bootstrap_mean(values, codes, seed=seed, n_boot=n_boot, rate=True) for name, values in per_query.items()
    }
    return {
        **cells,
        "chance": float(chance[asked].mean()) if asked.any() else None,
        "n_queries": int(asked.sum()),
        "n_without_relevant": int((~asked).sum()),
        "average_precision": [float(v) if np.isfinite(v) else None for v in per_query["mean_average_precision"]],
    }


def _queries(
    rows: np.ndarray, x: np.ndarray, y: np.ndarray, codes: np.ndarray | None, metric: str, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """Per-query measures ``(q,)`` of a block of queries."""
    similarity = x[rows] @ x.T
    if metric == "l2":  # -|a - b|^2 up to the query's own norm, which does not change its ranking
        similarity = 2 * similarity - (x**2).sum(axis=1)
    # Below what rounding can tell, similarities are equal; otherwise identical rows would be ranked by noise.
    similarity = np.round(similarity / max(float(np.abs(similarity).max()), np.finfo(np.float64).tiny), 12)
    excluded = np.arange(len(x)) == rows[:, None] if codes is None else codes == codes[rows][:, None]
    similarity[excluded] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")
    ranked = np.take_along_axis(similarity, order, axis=1)
    relevant = np.take_along_axis((y == y[rows][:, None]) & ~excluded, order, axis=1)
    listed = (~excluded).sum(axis=1)
    ends = _last_of_ties(ranked)
    total = relevant.sum(axis=1)
    undefined = np.full(len(rows), np.nan)
    result = {"mean_average_precision": _average_precision(relevant, ends, total)}
    for k in ks:
        found = _expected_found(relevant, ends, min(k, len(x)))
        result[f"recall_at_{k}"] = np.divide(found, total, out=undefined.copy(), where=total > 0)
    first = _expected_found(relevant, ends, 1)
    result["hit_at_1"] = np.where(total > 0, first, np.nan)
    result["chance"] = np.divide(total, listed, out=undefined.copy(), where=listed > 0)
    return result


def _last_of_ties(ranked: np.ndarray) -> np.ndarray:
    """For each place in the ranking ``(q, n)`` the last place with the same similarity."""
    n = ranked.shape[1]
    last = np.ones(ranked.shape, dtype=bool)
    last[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    places = np.where(last, np.arange(n), n)
    return np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1]


def _average_precision(relevant: np.ndarray, ends: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Mean over relevant items of the precision at the end of their block of ties ``(q,)``."""
    found = np.cumsum(relevant, axis=1)
    precision = np.take_along_axis(found, ends, axis=1) / (ends + 1)
    summed = (precision * relevant).sum(axis=1)
    return np.divide(summed, total, out=np.full(len(relevant), np.nan), where=total > 0)


def _expected_found(relevant: np.ndarray, ends: np.ndarray, k: int) -> np.ndarray:
    """Expected number ``(q,)`` of relevant items among the first ``k``, ties in random order."""
    end = ends[:, k - 1]
    start = np.argmax(ends == end[:, None], axis=1)  # first place of the block that the k-th place is in
    found = np.concatenate([np.zeros((len(relevant), 1), dtype=np.int64), np.cumsum(relevant, axis=1)], axis=1)
    rows = np.arange(len(relevant))
    above = found[rows, start]
    return above + (found[rows, end + 1] - above) * (k - start) / (end + 1 - start)
