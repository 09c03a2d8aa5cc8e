"""Paired comparison of arms over the same rows, and which of them can be told apart at all.

All arms are measured on the same resamples of groups, so what makes a sample easy or hard cancels in the difference.
The intervals are 95 % each and not corrected for the number of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from offshelf.errors import DataError, UsageError, near
from offshelf.evaluate.groups import count_groups, group_codes
from offshelf.evaluate.intervals import MOST_UNDEFINED
from offshelf.evaluate.resampling import replicate
from offshelf.evaluate.scores import OVERALL, PROBABILITY_METRICS, RANKING_METRICS, Scores

LOWER_IS_BETTER = frozenset({"log_loss", "brier", "calibration_error"})
# With five groups or fewer answered differently even an exact sign test cannot reach 5 % (2 / 2^5 = 0.0625), while the
# bootstrap of so few would claim it.
FEWEST_DIFFERING_GROUPS = 6
# (n, K) probabilities, (n,) predicted class numbers, or both as a pair.
Answers = np.ndarray | tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class _Measured:
    """One arm: value, replicates ``(B,)``, share of undefined ones, and the answers ``(n, ...)`` it is scored by."""

    value: float
    replicates: np.ndarray
    undefined: float
    answers: np.ndarray


def compare_arms(
    labels: Sequence[int] | np.ndarray,
    arms: Mapping[str, Answers],
    n_classes: int | None = None,
    *,
    groups: Sequence[Any] | np.ndarray | None = None,
    metric: str = "balanced_accuracy",
    seed: int = 0,
    n_boot: int = 2000,
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Compare every pair of arms and sort the arms into groups that cannot be told apart.

    Parameters
    ----------
    labels
        ``(n,)`` class numbers.
    arms
        Name -> probabilities ``(n, K)``, predictions ``(n,)``, or the pair (probabilities, predictions).
    n_classes
        K; by default the largest class number met, plus 1.
    groups
        ``(n,)`` groups drawn whole, or ``None``.
    metric
        One of the names in an arm's ``metrics``.
    seed, n_boot
        Of the bootstrap; the same resamples serve all arms.

    Returns
    -------
    comparisons
        One entry a pair, better arm first: ``a``, ``b``, ``metric``, ``difference`` (a minus b), ``low``, ``high``,
        ``told_apart``. Null bounds: over 5 % of the resamples leave the metric undefined. ``told_apart`` is true when
        the interval leaves out 0 and the two arms answered differently in at least six groups.
    tie_groups
        Best group first. A group is the best arm left and all arms left that cannot be told apart from it; ties are
        not transitive, so two members of a group may be told apart from each other.

    Raises
    ------
    UsageError
        Unknown metric, no arms, or a metric that needs probabilities for an arm that gives predictions.
    DataError
        Answers that do not fit the labels.
    """
    if not arms:
        raise UsageError("compare_arms: no arms were given; give at least one")
    measured, codes = _measure(labels, arms, n_classes, groups, metric, seed, n_boot)
    order = _ranking(measured, metric)
    comparisons = [_difference(a, b, measured, metric, codes) for i, a in enumerate(order) for b in order[i + 1 :]]
    told_apart = {(c["a"], c["b"]): c["told_apart"] for c in comparisons}
    left, tie_groups = list(order), []
    while left:
        leader = left[0]
        tied = [leader] + [name for name in left[1:] if not told_apart[leader, name]]
        tie_groups.append(tied)
        left = [name for name in left if name not in tied]
    return comparisons, tie_groups


def paired_comparison(
    labels: Sequence[int] | np.ndarray,
    a: Answers,
    b: Answers,
    n_classes: int | None = None,
    *,
    names: tuple[str, str] = ("a", "b"),
    groups: Sequence[Any] | np.ndarray | None = None,
    metric: str = "balanced_accuracy",
    seed: int = 0,
    n_boot: int = 2000,
) -> dict[str, Any]:
    """Difference of two arms, ``a`` minus ``b`` whichever is better; an entry as of :func:`compare_arms`."""
    arms = {names[0]: a, names[1]: b}
    if len(arms) < 2:
        raise UsageError(f"paired_comparison: both arms are called {names[0]!r}; give two names")
    measured, codes = _measure(labels, arms, n_classes, groups, metric, seed, n_boot)
    return _difference(names[0], names[1], measured, metric, codes)


def mcnemar_exact(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """McNemar's exact test of two arms' predictions on the same independent rows.

    Parameters
    ----------
    labels, a, b
        ``(n,)`` truth and the two predictions.

    Returns
    -------
    result
        ``only_a`` and ``only_b``: rows that one arm alone got right; ``p_value``: two-sided binomial test of an even
        split between them, 1 when there are none. Source: McNemar (1947). It takes rows as independent: with groups
        use :func:`paired_comparison`.
    """
    y, first, second = np.asarray(labels), np.asarray(a), np.asarray(b)
    if not y.shape == first.shape == second.shape:
        raise DataError(
            f"mcnemar_exact: {len(y)} labels, {len(first)} and {len(second)} predictions; they must be as many"
        )
    only_a = int(np.sum((first == y) & (second != y)))
    only_b = int(np.sum((first != y) & (second == y)))
    p_value = float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p_value": p_value}


def _measure(
    labels: Sequence[int] | np.ndarray,
    arms: Mapping[str, Answers],
    n_classes: int | None,
    groups: Sequence[Any] | np.ndarray | None,
    metric: str,
    seed: int,
    n_boot: int,
) -> tuple[dict[str, _Measured], np.ndarray]:
    """Value and replicates of every arm on the same resamples."""
    if metric not in OVERALL:
        raise UsageError(f"metric {metric!r} is unknown{near(metric, OVERALL)}; known: {', '.join(OVERALL)}")
    y = np.asarray(labels)
    parts = {name: _parts(answers) for name, answers in arms.items()}
    if n_classes is None:
        widths = [p.shape[1] for p, _ in parts.values() if p is not None and p.ndim == 2]
        tops = [int(c.max(initial=0)) + 1 for _, c in parts.values() if c is not None]
        n_classes = max([int(y.max(initial=0)) + 1, *widths, *tops])
    codes = group_codes(groups, len(y))
    measured = {}
    for name, (probabilities, predictions) in parts.items():
        if probabilities is None and metric in PROBABILITY_METRICS:
            raise UsageError(
                f"arm {name!r}: {metric} needs probabilities, and predictions were given; give (n, K) numbers"
            )
        scores = Scores(y, probabilities, predictions, n_classes, ranking=metric in RANKING_METRICS)
        point, drawn = scores.point(), replicate(scores, codes, n_boot, seed)
        present = point.truth[:, 0] > 0
        decisive = probabilities if probabilities is not None and metric in PROBABILITY_METRICS else scores.predictions
        measured[name] = _Measured(
            float(point.overall[metric][0]), drawn.overall[metric], drawn.undefined_share(metric, present), decisive
        )
    return measured, codes


def _parts(answers: Answers) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Probabilities and predictions of an arm, whichever are there."""
    if isinstance(answers, tuple):
        return np.asarray(answers[0]), np.asarray(answers[1])
    table = np.asarray(answers)
    return (table, None) if table.ndim == 2 else (None, table)


def _ranking(measured: Mapping[str, _Measured], metric: str) -> list[str]:
    """Names, best first; undefined values last; equals in the order given."""
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    key = {name: sign * arm.value if np.isfinite(arm.value) else np.inf for name, arm in measured.items()}
    return sorted(measured, key=lambda name: key[name])


def _difference(a: str, b: str, measured: Mapping[str, _Measured], metric: str, codes: np.ndarray) -> dict[str, Any]:
    """One entry of the comparisons."""
    first, second = measured[a], measured[b]
    value = first.value - second.value
    low = high = None
    drawn = first.replicates - second.replicates
    defined = drawn[np.isfinite(drawn)]
    if max(first.undefined, second.undefined) <= MOST_UNDEFINED and len(defined) and np.isfinite(value):
        low, high = (float(bound) for bound in np.percentile(defined, [2.5, 97.5]))
    differing = first.answers != second.answers
    rows = differing.any(axis=1) if differing.ndim == 2 else differing
    enough = count_groups(codes, rows) >= FEWEST_DIFFERING_GROUPS
    return {
        "a": a,
        "b": b,
        "metric": metric,
        "difference": float(value) if np.isfinite(value) else None,
        "low": low,
        "high": high,
        "told_apart": bool(low is not None and high is not None and enough and (low > 0 or high < 0)),
    }
