"""Who stands where in a battle, with what certainty, and who cannot be told apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from offshelf.evaluate.battle.grid import Grid
from offshelf.evaluate.battle.pairs import bounds, compare, names, number, rank_bounds, tie_groups
from offshelf.evaluate.battle.replicates import Drawn, Scores, score
from offshelf.evaluate.battle_of_the_backbones import rank

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def standing(grid: Grid, *, seed: int = 0, allow_missing: bool = False) -> dict[str, Any]:
    """Rank the backbones overall and in each task.

    Parameters
    ----------
    grid
        What was measured.
    seed
        Of the drawing of data sets.
    allow_missing
        Whether backbones below full coverage are ranked too, by the settings that they have.

    Returns
    -------
    result
        ``overall``, an entry a backbone, sorted by rank with the unranked last: ``score`` (mean of its task scores, in
        standard deviations of the pool), ``low`` and ``high`` (95 % over examples), ``low_sets`` and ``high_sets``
        (over examples and data sets: data sets drawn with replacement, all settings of one together; a task that
        vanishes from a draw is left out of that draw's mean; null with under three data sets; never narrower than over
        examples), ``rank`` (equals share the better one), ``rank_low`` to ``rank_high_sets`` (see ``rank_bounds``),
        ``coverage`` and ``why`` it has no rank. ``tasks``, the like for each task over examples. ``tie_groups``, best
        first, and a ``sentence`` about the first.
    """
    scores = score(grid, seed=seed, allow_missing=allow_missing)
    groups = [names(grid.backbones, group) for group in tie_groups(scores.overall)]
    return {
        "overall": _overall(grid, scores),
        "tasks": {task: _by_task(grid, drawn) for task, drawn in scores.tasks.items()},
        "tie_groups": groups,
        "sentence": sentence(groups, scores.overall.replicates is not None),
    }


def comparisons(
    grid: Grid, *, seed: int = 0, allow_missing: bool = False, first: int | None = 10
) -> list[dict[str, Any]]:
    """Paired differences of overall scores, better backbone first; entries as of ``pairs.difference``.

    Parameters
    ----------
    grid, seed, allow_missing
        As of :func:`standing`.
    first
        All pairs among so many first backbones, and the leader of each tie group with all behind it; ``None``: all
        pairs.
    """
    return compare(grid, score(grid, seed=seed, allow_missing=allow_missing).overall, first)


def sentence(groups: list[list[str]], measured: bool = True) -> str:
    """What the tie groups say, plainly."""
    if not groups:
        return "No backbone has a value in every setting, so there is no overall rank."
    if len(groups) == 1 and len(groups[0]) == 1:
        return f"{groups[0][0]} is the only backbone with an overall rank."
    if not measured:
        return "A metric is undefined in too many resamples of the examples to say which backbones can be told apart."
    best = groups[0]
    if len(best) == 1:
        return f"{best[0]} is ahead of all others on your data."
    count = NUMBERS[len(best)] if len(best) < len(NUMBERS) else str(len(best))
    return f"These {count} cannot be told apart on your data: {', '.join(best)}."


def _overall(grid: Grid, scores: Scores) -> list[dict[str, Any]]:
    """Entries of the overall ranking."""
    drawn, sets = scores.overall, scores.over_sets
    ranks, ranked = scores.ranks, np.isfinite(drawn.values)
    low, high = bounds(drawn)
    low_sets, high_sets = bounds(sets)
    rank_low, rank_high = rank_bounds(drawn, ranked)
    rank_low_sets, rank_high_sets = rank_bounds(sets, ranked)
    entries = []
    for m in np.lexsort((np.arange(len(ranks)), np.where(ranked, ranks, np.inf))):
        entries.append(
            {
                "backbone": grid.backbones[m],
                "score": number(drawn.values[m]),
                "low": number(low[m]),
                "high": number(high[m]),
                "low_sets": number(np.minimum(low[m], low_sets[m])),
                "high_sets": number(np.maximum(high[m], high_sets[m])),
                "rank": whole(ranks[m]),
                "rank_low": whole(rank_low[m]),
                "rank_high": whole(rank_high[m]),
                "rank_low_sets": whole(np.minimum(rank_low[m], rank_low_sets[m])),
                "rank_high_sets": whole(np.maximum(rank_high[m], rank_high_sets[m])),
                "coverage": float(scores.coverage[m]),
                "why": "" if ranked[m] else _why(grid, m),
            }
        )
    return entries


def _by_task(grid: Grid, drawn: Drawn) -> list[dict[str, Any]]:
    """Entries of one task, sorted by rank."""
    ranks, there = rank(drawn.values), np.isfinite(drawn.values)
    low, high = bounds(drawn)
    rank_low, rank_high = rank_bounds(drawn, there)
    return [
        {
            "backbone": grid.backbones[m],
            "score": number(drawn.values[m]),
            "low": number(low[m]),
            "high": number(high[m]),
            "rank": whole(ranks[m]),
            "rank_low": whole(rank_low[m]),
            "rank_high": whole(rank_high[m]),
        }
        for m in np.argsort(np.where(there, ranks, np.inf), kind="stable")
    ]


def _why(grid: Grid, m: int) -> str:
    """Why a backbone has no overall rank."""
    measured = np.isfinite(grid.values).any(axis=0)
    missing = [
        s.id
        for s, known, value in zip(grid.settings, measured, grid.values[m], strict=True)
        if known and not np.isfinite(value)
    ]
    total = int(measured.sum())
    return (
        f"it has a value in {total - len(missing)} of {total} settings; missing: {', '.join(missing[:3])}"
        f"{' and others' if len(missing) > 3 else ''}"
    )


def whole(value: float) -> int | None:
    """A rank for JSON."""
    return int(value) if np.isfinite(value) else None
