"""The account of a battle for its page: agreement of tasks, scaling, like against like, size tiers, best for the money.

A backbone here is a dictionary with ``name``, ``architecture``, ``family``, ``tier``, ``parameters``, ``pretraining``,
``pretraining_kind``, ``pretraining_images``, ``images_per_second`` and ``memory_mb``, in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offshelf.errors import DataError
from offshelf.evaluate.battle.agreement import correlate, scaling
from offshelf.evaluate.battle.grid import Grid
from offshelf.evaluate.battle.pairs import best_first, bounds, difference, number
from offshelf.evaluate.battle.replicates import score
from offshelf.evaluate.battle.standing import whole
from offshelf.evaluate.battle_of_the_backbones import TIERS, apples_to_apples, pareto_front, rank, size_tier

Backbone = Mapping[str, Any]
FAMILIES = ("CNN", "ViT", "all")


def correlation_result(grid: Grid, backbones: Sequence[Backbone], *, seed: int = 0) -> dict[str, Any]:
    """Correlation of the tasks, with all backbones and without random ones (null where there are none such).

    Without them, the others are standardised and scored anew, so that the pool is that of the backbones named.
    """
    random = {b["name"] for b in in_order(grid, backbones) if b["pretraining_kind"] == "random"}
    result = _correlation(grid, seed)
    rest = None
    if random and len(random) < len(grid.backbones):
        rest = {k: v for k, v in _correlation(grid.without(random), seed).items() if k in ("spearman", "mean_spearman")}
    return {**result, "without_random": rest, "n": result["mean_spearman"]["n"]}


def scaling_result(
    grid: Grid, backbones: Sequence[Backbone], *, seed: int = 0, allow_missing: bool = False
) -> list[dict[str, Any]]:
    """Rank correlation of the overall score with log parameters and log pre-training images, by family."""
    known = in_order(grid, backbones)
    values = score(grid, seed=seed, allow_missing=allow_missing).overall.values
    families = [b["family"] for b in known]
    entries = []
    for against in ("parameters", "pretraining_images"):
        # No pre-training, or an unknown amount of it, has no logarithm and takes no part.
        sizes = np.array([np.log(b[against]) if b[against] else np.nan for b in known])
        found = scaling(values, sizes, families, seed)
        for family in FAMILIES:
            entry = found.get(family, {"spearman": np.nan, "low": np.nan, "high": np.nan, "n": 0})
            numbers = {key: number(entry[key]) for key in ("spearman", "low", "high")}
            entries.append({"against": against, "family": family, **numbers, "n": int(entry["n"])})
    return entries


def apples_result(
    grid: Grid, backbones: Sequence[Backbone], *, seed: int = 0, allow_missing: bool = False
) -> list[dict[str, Any]]:
    """Backbones of one architecture side by side, best first, and their paired differences."""
    known = in_order(grid, backbones)
    scores = score(grid, seed=seed, allow_missing=allow_missing)
    low, high = bounds(scores.overall)
    keys = ("a", "b", "difference", "low", "high", "told_apart")
    result = []
    for architecture, rows in apples_to_apples([b["architecture"] for b in known]).items():
        order = [m for m in best_first(scores.overall.values) if m in rows]
        members = [
            {
                "backbone": grid.backbones[m],
                "pretraining": known[m]["pretraining"],
                "score": number(scores.overall.values[m]),
                "low": number(low[m]),
                "high": number(high[m]),
            }
            for m in [*order, *(m for m in rows if m not in order)]
        ]
        pairs = [difference(grid, scores.overall, a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
        result.append(
            {"group": architecture, "members": members, "differences": [{k: pair[k] for k in keys} for pair in pairs]}
        )
    return result


def tiers_result(
    grid: Grid, backbones: Sequence[Backbone], *, seed: int = 0, allow_missing: bool = False
) -> list[dict[str, Any]]:
    """The ranking within each size tier that has backbones, small tiers first; scores as in the overall ranking."""
    tiers = [size_tier(b["parameters"]) for b in in_order(grid, backbones)]
    values = score(grid, seed=seed, allow_missing=allow_missing).overall.values
    result = []
    for tier in [*(name for _, name in TIERS), "large"]:
        inside = np.array([mine == tier for mine in tiers])
        ranks = rank(np.where(inside, values, np.nan))
        order = [*best_first(np.where(inside, values, np.nan)), *np.flatnonzero(inside & ~np.isfinite(values))]
        if order:
            entries = [
                {"backbone": grid.backbones[m], "score": number(values[m]), "rank": whole(ranks[m])} for m in order
            ]
            result.append({"tier": tier, "order": entries})
    return result


def pareto_result(
    grid: Grid, backbones: Sequence[Backbone], *, seed: int = 0, allow_missing: bool = False
) -> dict[str, list[str]]:
    """Backbones that none beats in score at equal or lower cost, best score first, for each kind of cost."""
    known = in_order(grid, backbones)
    values = score(grid, seed=seed, allow_missing=allow_missing).overall.values
    result = {}
    for cost, sign in (("parameters", 1.0), ("images_per_second", -1.0), ("memory_mb", 1.0)):
        costs = np.array([np.nan if b[cost] is None else sign * b[cost] for b in known])
        front = pareto_front(values, costs)
        result[cost] = [grid.backbones[m] for m in best_first(values) if front[m]]
    return result


def in_order(grid: Grid, backbones: Sequence[Backbone]) -> list[Backbone]:
    """The descriptions of the grid's backbones, in its order."""
    by_name = {b["name"]: b for b in backbones}
    missing = [name for name in grid.backbones if name not in by_name]
    if missing:
        raise DataError(f"backbone {missing[0]!r} has results but no description; describe all {len(grid.backbones)}")
    return [by_name[name] for name in grid.backbones]


def _correlation(grid: Grid, seed: int) -> dict[str, Any]:
    """Correlations of the task scores as the page shows them."""
    table = score(grid, allow_missing=True).task_table
    found = correlate(table, seed)
    mean = {"value": number(found["mean_spearman"]), "low": number(found["low"]), "high": number(found["high"])}
    return {
        "tasks": list(dict.fromkeys(grid.tasks)),
        "spearman": [[number(x) for x in row] for row in found["spearman"]],
        "pearson": [[number(x) for x in row] for row in found["pearson"]],
        "mean_spearman": {**mean, "n": int(found["n"])},
    }
