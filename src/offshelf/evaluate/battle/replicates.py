"""Overall and task scores of a battle, as measured and in every resample of its examples or of its data sets.

A resample keeps the battle's own spread of each setting as the unit and measures the backbones, and their mean, anew.
Dividing each resample by its own spread would shrink every difference, since a resample scatters backbones more than
the battle did: with a spread about as large as its noise the 95 % interval of a difference then held the truth 82 % of
the time (8 backbones, 4 settings of 300 examples); with the unit held it is 95 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offshelf.evaluate.battle.grid import Grid
from offshelf.evaluate.battle_of_the_backbones import (
    coverage,
    may_be_ranked,
    overall,
    pool_spread,
    rank,
    task_scores,
    z_scores,
)
from offshelf.evaluate.intervals import MOST_UNDEFINED

# Two data sets say next to nothing about how data sets differ.
FEWEST_DATA_SETS = 3


@dataclass(frozen=True, eq=False)
class Drawn:
    """Scores ``(M,)`` and what they were in B resamples ``(M, B)`` of ``units`` independent things."""

    values: np.ndarray
    replicates: np.ndarray | None  # None: a setting is undefined in too many resamples, or too few data sets
    units: int
    of_examples: bool = True


@dataclass(frozen=True, eq=False)
class Scores:
    """M backbones. Backbones that may not be ranked have NaN for an overall score."""

    overall: Drawn  # resamples of examples
    over_sets: Drawn  # resamples of data sets
    tasks: dict[str, Drawn]
    task_table: np.ndarray  # (M, T)
    coverage: np.ndarray  # (M,) share of the settings

    @property
    def ranks(self) -> np.ndarray:
        """``(M,)``; NaN where not ranked."""
        return rank(self.overall.values)


def score(grid: Grid, *, seed: int = 0, allow_missing: bool = False) -> Scores:
    """Score every backbone overall and by task.

    Parameters
    ----------
    grid
        What was measured. Lower-is-better settings are flipped here.
    seed
        Of the drawing of data sets.
    allow_missing
        Whether a backbone below full coverage is ranked by the settings that it has.

    Returns
    -------
    scores
        Resamples of data sets take all settings of a drawn data set together, as often as it came; a task of which no
        data set came is left out of that resample's mean. The values measured in a data set hold the chance of its
        examples already, so that these resamples cover examples and data sets together. A resample in which a setting
        is undefined for anyone is replaced by another of that setting, likewise a draw of data sets that leaves a
        ranked backbone without any; with more than 5 % of such there are no resamples.
    """
    grid = grid.higher_is_better()
    spread = pool_spread(grid.values)
    z = z_scores(grid.values, spread)
    table, names = task_scores(z, grid.tasks)
    ranked = may_be_ranked(grid.values, allow_missing)

    def masked(scores: np.ndarray) -> np.ndarray:
        return np.where(ranked if scores.ndim == 1 else ranked[:, None], scores, np.nan)

    whole = masked(overall(table))
    resampled = defined_resamples(grid)
    by_task = {name: Drawn(table[:, t], None, _units(grid, name)) for t, name in enumerate(names)}
    drawn = None
    if resampled is not None:
        drawn_tasks, _ = task_scores(z_scores(resampled, spread), grid.tasks)
        drawn = masked(overall(drawn_tasks))
        by_task = {name: Drawn(table[:, t], drawn_tasks[:, t], by_task[name].units) for t, name in enumerate(names)}
    n_sets = len(grid.data_sets)
    over_sets = None
    if n_sets >= FEWEST_DATA_SETS and ranked.any():
        weights = drawn_data_sets(grid, grid.drawn.shape[2], seed)
        over_sets = _with_defined(masked(overall(task_scores(z[:, :, None], grid.tasks, weights)[0])), ranked)
    return Scores(
        Drawn(whole, drawn, grid.units),
        Drawn(whole, over_sets, n_sets, of_examples=False),
        by_task,
        table,
        coverage(grid.values),
    )


def defined_resamples(grid: Grid) -> np.ndarray | None:
    """``(M, S, B)`` resamples, those undefined for a present backbone replaced; ``None`` where too many are."""
    drawn = grid.drawn.astype(np.float64)
    for s, present in enumerate(np.isfinite(grid.values).T):
        column = _with_defined(drawn[:, s], present)
        if column is None:
            return None
        drawn[:, s] = np.where(present[:, None], column, np.nan)
    return drawn


def _with_defined(drawn: np.ndarray, present: np.ndarray) -> np.ndarray | None:
    """Resamples ``(M, B)`` with those undefined for a present row replaced by others; ``None`` where too many are."""
    undefined = ~np.isfinite(drawn[present]).all(axis=0)
    if undefined.mean() > MOST_UNDEFINED:
        return None
    good, bad = np.flatnonzero(~undefined), np.flatnonzero(undefined)
    drawn = drawn.copy()
    drawn[:, bad] = drawn[:, good[np.arange(len(bad)) % len(good)]]
    return drawn


def drawn_data_sets(grid: Grid, n_boot: int, seed: int) -> np.ndarray:
    """How often each setting's data set came ``(S, B)`` in draws of as many data sets, with replacement."""
    sets = grid.data_sets
    chosen = np.random.default_rng([seed, 29]).integers(0, len(sets), (n_boot, len(sets)))
    times = np.stack([(chosen == d).sum(axis=1) for d in range(len(sets))])
    return times[[sets.index(setting.data) for setting in grid.settings]]


def _units(grid: Grid, task: str) -> int:
    """Independent groups behind a task."""
    units: dict[str, int] = {}
    for setting in grid.settings:
        if setting.task == task:
            units[setting.data] = max(setting.units, units.get(setting.data, 0))
    return sum(units.values())
