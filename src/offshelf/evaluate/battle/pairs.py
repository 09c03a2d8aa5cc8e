"""What resamples tell about two backbones: the interval of their difference, whether it is one, how many examples more.

Everything is paired: both are measured on the same resamples. Intervals are 95 % each, not corrected for the number of
pairs; the bounds of a rank are, since a rank rests on all pairs of a backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import norm, t

from offshelf.evaluate.battle.grid import Grid
from offshelf.evaluate.battle.replicates import Drawn, defined_resamples
from offshelf.evaluate.compare import FEWEST_DIFFERING_GROUPS
from offshelf.evaluate.intervals import Z95

# Standard errors between 0 and the difference for 80 % power at 5 %, two-sided: 1.960 + 0.842.
FOR_POWER = float(norm.ppf(0.975) + norm.ppf(0.8))


def few_units(units: int) -> float:
    """How much wider than its percentiles an interval over few independent units must be.

    The bootstrap's variance is (U - 1) / U of an unbiased one, and its percentiles are about a normal's where Student's
    with U - 1 degrees of freedom are due. Source: Hesterberg (2015), The American Statistician 69, narrowness bias.
    """
    return float(np.sqrt(units / (units - 1)) * t.ppf(0.975, units - 1) / Z95) if units > 1 else float("nan")


def interval(value: np.ndarray, replicates: np.ndarray, units: int) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval over the last axis, stretched about ``value`` for few units; NaN where undefined."""
    low, high = np.percentile(replicates, [2.5, 97.5], axis=-1)
    stretch = few_units(units)
    return value + stretch * (low - value), value + stretch * (high - value)


def standard_error(replicates: np.ndarray, units: int) -> np.ndarray:
    """Standard deviation over the resamples, made unbiased for few units."""
    return replicates.std(axis=-1, ddof=1) * np.sqrt(units / max(units - 1, 1))


def bounds(drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval ``(M,)`` of each score; NaN where there are no resamples."""
    if drawn.replicates is None:
        nothing = np.full(len(drawn.values), np.nan)
        return nothing, nothing
    return interval(drawn.values, drawn.replicates, drawn.units)


def told_apart(difference: np.ndarray, replicates: np.ndarray, units: int) -> np.ndarray:
    """Whether the interval leaves out 0 and at least six groups were answered differently."""
    low, high = interval(difference, replicates, units)
    return ((low > 0) | (high < 0)) & enough_differ(replicates, units)


def enough_differ(replicates: np.ndarray, units: int) -> np.ndarray:
    """Whether two backbones differ in enough groups, told from the resamples ``(..., B)`` of their difference.

    With k of U groups answered differently, a resample draws none of them, and finds no difference, with a chance of
    (1 - k / U)^U, about exp(-k). Five such groups, see ``compare.py``, are too few even for an exact test.
    """
    fewest = FEWEST_DIFFERING_GROUPS - 0.5
    equal = (np.abs(replicates) <= 1e-9).mean(axis=-1)
    return equal <= (1 - fewest / units) ** units if units > fewest else np.zeros(equal.shape, dtype=bool)


def difference(grid: Grid, drawn: Drawn, a: int, b: int) -> dict[str, Any]:
    """Everything about one pair.

    Parameters
    ----------
    grid
        Names, examples and groups.
    drawn
        Scores and their resamples.
    a, b
        Two rows.

    Returns
    -------
    entry
        ``a``, ``b``, ``difference`` (a minus b), ``low``, ``high`` (95 %), ``told_apart``; ``effect_size``, the
        difference over (standard error x root of the number of independent groups), that is in standard deviations of
        one group's paired difference (Cohen's d of paired samples); ``factor``, how many times as many examples (in
        every data set, and seeds where they were drawn) would tell them apart with 80 % power at 5 %, were the
        difference just as large: ((1.960 + 0.842) x standard error / difference) squared; ``examples_needed``, that
        times the examples tested now, all data sets together. The last three hang on the difference found, which may be
        far from the true one: an order of magnitude, not a promise. Null where there is nothing to say.
    """
    value = drawn.values[a] - drawn.values[b]
    entry: dict[str, Any] = {"a": grid.backbones[a], "b": grid.backbones[b]}
    entry |= {"difference": number(value), "low": None, "high": None, "told_apart": False}
    entry |= {"effect_size": None, "examples_needed": None, "factor": None}
    if drawn.replicates is None or not np.isfinite(value):
        return entry
    replicates = drawn.replicates[a] - drawn.replicates[b]
    low, high = interval(value, replicates, drawn.units)
    entry |= {"low": number(low), "high": number(high)}
    entry["told_apart"] = bool(told_apart(value, replicates, drawn.units))
    error = float(standard_error(replicates, drawn.units))
    if error > 1e-12 and abs(value) > 1e-12:
        factor = examples_factor(value, error)
        entry |= {"effect_size": float(value / (error * np.sqrt(drawn.units))), "factor": factor}
        entry["examples_needed"] = int(np.ceil(factor * grid.examples))
    return entry


def examples_factor(value: float, error: float) -> float:
    """Times as many examples for 80 % power at 5 %, two-sided, from a difference and its standard error now."""
    return float((FOR_POWER * error / abs(value)) ** 2)


def rank_bounds(drawn: Drawn, ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest rank ``(M,)`` that the resamples leave to each backbone; NaN where not ranked.

    One plus the backbones surely above, and the number of all less those surely below; "surely" at 95 % for all
    comparisons of a backbone at once (largest studentised difference, Mogstad, Romano, Shaikh and Wilhelm 2024, Review
    of Economic Studies 91). Percentiles of the ranks in the resamples would not do: among eight backbones alike within
    the noise they held the true rank of one of them 83 % of the time.
    """
    low, high = np.full(len(ranked), np.nan), np.full(len(ranked), np.nan)
    if drawn.replicates is None:
        return low, high
    rows = np.flatnonzero(ranked & np.isfinite(drawn.values))
    values, replicates = drawn.values[rows], drawn.replicates[rows]
    stretch = few_units(drawn.units)
    for place, m in enumerate(rows):
        gap = values - values[place]
        drawn_gap = replicates - replicates[place]  # (M, B)
        error = drawn_gap.std(axis=1, ddof=1)
        moved = np.divide(
            drawn_gap - gap[:, None], error[:, None], out=np.zeros(drawn_gap.shape), where=error[:, None] > 1e-12
        )
        critical = stretch * np.quantile(np.abs(moved).max(axis=0), 0.95)
        enough = error > 1e-12
        if drawn.of_examples:
            enough &= enough_differ(drawn_gap, drawn.units)
        low[m] = 1 + np.sum(enough & (gap > critical * error))
        high[m] = len(rows) - np.sum(enough & (gap < -critical * error))
    return low, high


def compare(grid: Grid, drawn: Drawn, first: int | None = None) -> list[dict[str, Any]]:
    """Entries of pairs, better backbone first: all within the first ones, and the leader of each tie group with all
    behind it; or, with ``first`` ``None``, all pairs."""
    order = best_first(drawn.values)
    leaders = {group[0] for group in tie_groups(drawn)} if first is not None else set(order)
    entries = []
    for place, a in enumerate(order):
        behind = order[place + 1 :] if a in leaders else order[place + 1 : first]
        entries += [difference(grid, drawn, a, b) for b in behind]
    return entries


def best_first(values: np.ndarray) -> list[int]:
    """Rows that have a score, best first; equals in the order given."""
    return [int(m) for m in np.argsort(-values, kind="stable") if np.isfinite(values[m])]


def tie_groups(drawn: Drawn) -> list[list[int]]:
    """The best row left and all rows left that cannot be told apart from it, again and again; best group first.

    Ties are not transitive: two members of a group may be told apart from each other, see ``compare_arms``.
    """
    left, groups = best_first(drawn.values), []
    while left:
        leader, others = left[0], np.array(left[1:], dtype=int)
        apart = np.zeros(len(others), dtype=bool)
        if drawn.replicates is not None and len(others):
            gaps = drawn.replicates[leader] - drawn.replicates[others]
            apart = told_apart(drawn.values[leader] - drawn.values[others], gaps, drawn.units)
        groups.append([leader, *(int(m) for m in others[~apart])])
        left = [int(m) for m in others[apart]]
    return groups


def compare_in_setting(grid: Grid, setting: str) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Compare the backbones within one setting, in the units of its metric.

    Parameters
    ----------
    grid
        What was measured.
    setting
        Id of the setting.

    Returns
    -------
    comparisons
        Entries as of :func:`difference` for every pair, better backbone first; of a lower-is-better metric the
        differences are negative.
    tie_groups
        Names, best group first.

    Raises
    ------
    UsageError
        No such setting.
    """
    s = grid.setting_index(setting)
    sign = -1.0 if grid.settings[s].lower_is_better else 1.0
    better = grid.higher_is_better()
    one = Grid(grid.backbones, [better.settings[s]], better.values[:, [s]], better.drawn[:, [s]])
    resampled = defined_resamples(one)
    drawn = Drawn(one.values[:, 0], None if resampled is None else resampled[:, 0], one.units)
    entries = compare(one, drawn)
    if sign < 0:
        entries = [_negated(entry) for entry in entries]
    return entries, [names(grid.backbones, group) for group in tie_groups(drawn)]


def names(backbones: Sequence[str], rows: Sequence[int]) -> list[str]:
    """Names of rows."""
    return [backbones[m] for m in rows]


def number(value: Any) -> float | None:
    """A number for JSON; undefined is ``None``."""
    return float(value) if np.isfinite(value) else None


def _negated(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry in the units of a lower-is-better metric."""

    def minus(value: float | None) -> float | None:
        return None if value is None else -value

    return entry | {
        "difference": minus(entry["difference"]),
        "low": minus(entry["high"]),
        "high": minus(entry["low"]),
        "effect_size": minus(entry["effect_size"]),
    }
