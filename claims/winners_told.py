"""What pairs of draws tell about winners: the shares, the points lost, their intervals, the verdict and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from claims.common import better
from claims.off_the_shelf import Task
from offshelf.evaluate.battle.pairs import interval
from offshelf.evaluate.intervals import MOST_UNDEFINED, wilson_interval
from offshelf.evaluate.resampling import bootstrap_mean

RULE = (
    "The share of pairs of draws, with 10 % of the labels, in which the winner of the first is not the winner of the "
    "second: mean over eight data sets, with a 95 % interval by drawing data sets and pairs again. The claim is that "
    "it is more than one in four. Shown when the interval lies above 0.25, contradicted when below, else not shown."
)
ONE_IN = 0.25


@dataclass(frozen=True)
class Sizes:
    """Side in pixels; pairs of draws a data set for each number of labels, the rule's first; resamples of test rows and
    of data sets.
    """

    side: int = 64
    pairs: Mapping[str, int] = field(default_factory=lambda: {"10%": 20, "50%": 10})
    test_resamples: int = 1000
    resamples: int = 10_000


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of draws on one data set with M backbones.

    first, second : (P, M) balanced accuracy. relabelled : first draw's test rows, second's labels; retested : the other
    way about. apart : (P,) whether the first winner was told apart from the runner-up. tied : (P, M) its tie group.
    """

    first: np.ndarray
    second: np.ndarray
    relabelled: np.ndarray
    retested: np.ndarray
    apart: np.ndarray
    tied: np.ndarray


def changed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``(P,)`` whether the highest of ``(P, M)`` is another one in the second draw; of equals the first counts."""
    return first.argmax(axis=1) != second.argmax(axis=1)


def lost(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``(P,)`` points by which the first draw's winner lies below the second's, in the second draw."""
    used = np.take_along_axis(second, first.argmax(axis=1)[:, None], axis=1)[:, 0]
    return 100 * (second.max(axis=1) - used)


def over_data_sets(
    values: np.ndarray, counted: np.ndarray | None = None, *, most: float = 1.0, n_boot: int = 10_000, seed: int = 0
) -> dict[str, float | None]:
    """Mean of ``values`` (S, P) over the pairs ``counted`` (all), with data sets and pairs within each drawn again.

    Bounds are kept within 0 to ``most``; null where nothing counts, or where that is so in over 5 % of the resamples.
    A share that is the same in every resample has Wilson's interval over the data sets that count.
    """
    weights = np.ones(values.shape) if counted is None else counted.astype(float)
    if not weights.sum():
        return {"value": None, "low": None, "high": None}
    (n_sets, n_pairs), draws = values.shape, np.random.default_rng([seed, 17])
    sets = draws.integers(0, n_sets, (n_boot, n_sets, 1))
    pairs = draws.integers(0, n_pairs, (n_boot, n_sets, n_pairs))
    total = weights[sets, pairs].sum(axis=(1, 2))
    summed = (weights * values)[sets, pairs].sum(axis=(1, 2))
    value = float((weights * values).sum() / weights.sum())
    if np.mean(total == 0) > MOST_UNDEFINED:
        return {"value": value, "low": None, "high": None}
    replicates = summed[total > 0] / total[total > 0]
    if most == 1 and not np.ptp(replicates):
        low, high = wilson_interval(value, int(weights.any(axis=1).sum()))
        return {"value": value, "low": low, "high": high}
    low, high = np.clip(interval(np.array(value), replicates, n_sets), 0, most)
    return {"value": value, "low": float(low), "high": float(high)}


def verdict(share: Mapping[str, float | None]) -> str:
    """The rule: where the interval of the share lies against one in four."""
    assert share["low"] is not None and share["high"] is not None
    return better(share["low"] - ONE_IN, share["high"] - ONE_IN)


def told(found: Sequence[Pairs], n_boot: int) -> dict[str, dict[str, float | None]]:
    """All numbers over data sets, each with its interval; ``found`` holds as many pairs of each."""
    first, second = np.stack([one.first for one in found]), np.stack([one.second for one in found])
    other = np.stack([changed(one.first, one.second) for one in found])
    apart = np.stack([one.apart for one in found])
    points = np.stack([lost(one.first, one.second) for one in found])
    any_backbone = 100 * (second.max(axis=2) - second.mean(axis=2))
    in_group = np.stack([np.take_along_axis(one.tied, _best(one.second), axis=1)[:, 0] for one in found])
    sizes = np.stack([one.tied.sum(axis=1) for one in found])
    backbones = float(first.shape[2])
    return {
        "changed": over_data_sets(other, n_boot=n_boot),
        "labels_alone": over_data_sets(np.stack([changed(p.first, p.relabelled) for p in found]), n_boot=n_boot),
        "test_alone": over_data_sets(np.stack([changed(p.first, p.retested) for p in found]), n_boot=n_boot),
        "points_lost": over_data_sets(points, most=100.0, n_boot=n_boot),
        "points_lost_by_any": over_data_sets(any_backbone, most=100.0, n_boot=n_boot),
        "told_apart": over_data_sets(apart, n_boot=n_boot),
        "changed_if_told_apart": over_data_sets(other, apart, n_boot=n_boot),
        "changed_if_not": over_data_sets(other, ~apart, n_boot=n_boot),
        "second_in_tie_group": over_data_sets(in_group, n_boot=n_boot),
        "tie_group_size": over_data_sets(sizes, most=backbones, n_boot=n_boot),
    }


def _best(scores: np.ndarray) -> np.ndarray:
    return scores.argmax(axis=1)[:, None]


# ---- the record ----------------------------------------------------------------------------------

HEADER = [
    "Data set",
    "another winner",
    "other labels alone",
    "other test pictures alone",
    "points lost",
    "told apart",
    "of these another winner",
    "second winner in first tie group",
]


def summarise(found: Mapping[str, Sequence[Pairs]], tasks: Sequence[Task], sizes: Sizes) -> dict[str, Any]:
    """The record: a row a data set for the rule's labels, a row over data sets for each number of labels."""
    numbers = {budget: told(pairs, sizes.resamples) for budget, pairs in found.items()}
    ruled = next(iter(sizes.pairs))
    rows = [_row(task.name, one) for task, one in zip(tasks, found[ruled])]
    rows += [_total(f"**all, {budget} of the labels**", numbers[budget]) for budget in sizes.pairs]
    backbones = found[ruled][0].first.shape[1]
    return {
        "verdict": verdict(numbers[ruled]["changed"]),
        "sentence": sentence(numbers[ruled], backbones),
        "rule": RULE,
        "setting": _setting(tasks, sizes, backbones),
        "table": {"header": HEADER, "rows": rows},
        "notes": _notes(numbers, sizes),
        "numbers": numbers,
        "by_data_set": {
            budget: {task.name: _kept(one) for task, one in zip(tasks, pairs)} for budget, pairs in found.items()
        },
    }


def sentence(numbers: Mapping[str, Mapping[str, float | None]], backbones: int) -> str:
    """What came out, in one breath."""
    return (
        f"The backbone that wins one draw is not the winner of the second in {shown(numbers['changed'])} of the pairs "
        f"(a pick by chance: {1 - 1 / backbones:.2f}), and in {shown(numbers['changed_if_told_apart'])} of those whose "
        f"first winner was told apart from the runner-up, which are {shown(numbers['told_apart'])} of all."
    )


def shown(cell: Mapping[str, float | None], form: str = ".2f") -> str:
    """``0.41 [0.30, 0.52]``; without an interval the number says so."""
    if cell["value"] is None:
        return "none"
    if cell["low"] is None:
        return f"{cell['value']:{form}} [no interval]"
    return f"{cell['value']:{form}} [{cell['low']:{form}}, {cell['high']:{form}}]"


def _row(name: str, one: Pairs) -> list[str]:
    other, in_group = changed(one.first, one.second), np.take_along_axis(one.tied, _best(one.second), axis=1)[:, 0]
    shares = (other, changed(one.first, one.relabelled), changed(one.first, one.retested))
    points = bootstrap_mean(lost(one.first, one.second))
    return [
        name,
        *[_share(values) for values in shares],
        shown(points, ".1f"),
        f"{one.apart.sum()} of {len(other)}",
        f"{(other & one.apart).sum()} of {one.apart.sum()}",
        f"{in_group.sum()} of {len(other)}",
    ]


def _share(values: np.ndarray) -> str:
    low, high = wilson_interval(float(values.mean()), len(values))
    return shown({"value": float(values.mean()), "low": low, "high": high})


def _total(name: str, numbers: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    return [
        name,
        *[shown(numbers[key]) for key in ("changed", "labels_alone", "test_alone")],
        shown(numbers["points_lost"], ".1f"),
        *[shown(numbers[key]) for key in ("told_apart", "changed_if_told_apart", "second_in_tie_group")],
    ]


def _setting(tasks: Sequence[Task], sizes: Sizes, backbones: int) -> str:
    sets = "; ".join(
        f"{task.name}: {len(task.classes)} classes, {len(task.train):,} training and {len(task.test):,} test pictures"
        for task in tasks
    )
    return (
        f"{sets}. {backbones} embedded backbones, frozen features of whole pictures at {sizes.side} px, ridge "
        "regression with its penalty chosen on three inner folds. A draw is a part of the training labels and half of "
        f"the test pictures; pairs of draws a data set: {', '.join(f'{n} with {b}' for b, n in sizes.pairs.items())}."
    )


def _notes(numbers: Mapping[str, Mapping[str, Mapping[str, float | None]]], sizes: Sizes) -> list[str]:
    notes = [
        "Points lost: balanced accuracy, of 100, by which the first draw's winner lies below the second's in the "
        "second draw. Intervals of one data set are over its pairs (Wilson's for shares), those of the last rows over "
        f"data sets and pairs ({sizes.resamples:,} resamples), stretched for few data sets."
    ]
    for budget in sizes.pairs:
        n = numbers[budget]
        notes.append(
            f"With {budget} of the labels: a backbone taken blindly would lose {shown(n['points_lost_by_any'], '.1f')} "
            f"points; the tie group of the first draw holds {shown(n['tie_group_size'], '.1f')} backbones; where the "
            f"first winner was not told apart, the second is another one in {shown(n['changed_if_not'])}."
        )
    return notes


def _kept(one: Pairs) -> dict[str, Any]:
    """What was drawn, so that another rule can be put to it: winners by their place in the pool, and points lost."""
    return {
        "first": one.first.argmax(axis=1).tolist(),
        "second": one.second.argmax(axis=1).tolist(),
        "relabelled": one.relabelled.argmax(axis=1).tolist(),
        "retested": one.retested.argmax(axis=1).tolist(),
        "points_lost": lost(one.first, one.second).round(2).tolist(),
        "told_apart": one.apart.tolist(),
        "tie_group": [np.flatnonzero(row).tolist() for row in one.tied],
        "mean_balanced_accuracy": one.second.mean(axis=0).round(4).tolist(),
    }
