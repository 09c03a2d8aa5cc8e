"""How well a screening network does (arXiv 2003.13145): the paper's rates, its schemes, and pooled predictions.

Every picture is predicted once, by a network that was trained without it and without its group; the predictions of all
folds are pooled into one confusion matrix, and the support-weighted rates follow from that matrix. A scheme is the
data set, or the pictures of some of its classes: folds are drawn once over all pictures, so that a picture lies in the
same fold in every scheme, and each scheme trains networks with a head of its own.

Departures from the paper: groups (patients) stay whole; intervals of a study are by resampling groups, and the paper's
normal approximation and Wilson's interval, which take pictures as independent, stand beside them. The study itself is
`offshelf.evaluate.screening_study`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from offshelf.errors import DataError, UsageError, near
from offshelf.evaluate.groups import count_groups, group_codes
from offshelf.evaluate.intervals import Z95, Bounds, metric_cell, wilson_interval
from offshelf.evaluate.metrics import ClassCounts, class_counts, counts_of_matrix
from offshelf.evaluate.predictions import Predictions
from offshelf.evaluate.resampling import resampled_weights
from offshelf.evaluate.rows import Rows
from offshelf.evaluate.splits import Fold
from offshelf.transfer.covid_screening import CovidScreening
from offshelf.transfer.pipelines import Arm

RATES = ("accuracy", "precision", "sensitivity", "specificity", "f1")


# ---- the paper's metrics -------------------------------------------------------------------------


def weighted_rates(matrix: np.ndarray) -> dict[str, float]:
    """Overall accuracy, and one-against-the-rest rates weighted by the size of each class.

    Parameters
    ----------
    matrix : (K, K) counts, rows = truth; of several folds their sum.

    Returns
    -------
    dict
        ``accuracy``, ``precision``, ``sensitivity`` (equal to the accuracy, always), ``specificity``, ``f1``. The
        precision of a class that was never predicted counts as 0, with a warning.

    Raises
    ------
    DataError
        When the matrix holds nothing, or is no square.
    """
    table = np.asarray(matrix)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not table.sum() > 0:
        raise DataError(
            f"confusion matrix of shape {table.shape}, sum {table.sum()}: expected counts (K, K), some > 0."
        )
    counts = counts_of_matrix(table, zero_division=0.0)
    silent = np.flatnonzero((counts.predicted[:, 0] == 0) & (counts.truth[:, 0] > 0))
    if len(silent):
        warnings.warn(f"class {silent.tolist()} was never predicted: its precision counts as 0.", stacklevel=2)
    return {name: float(values[0]) for name, values in _weighted(counts).items()}


def _weighted(counts: ClassCounts) -> dict[str, np.ndarray]:
    """The rates ``(B,)`` of `weighted_rates` for every column of the counts."""
    return {
        "accuracy": counts.accuracy,
        **{name: counts.weighted(getattr(counts, name)) for name in RATES if name != "accuracy"},
    }


def normal_interval(rate: float, n: int, z: float = Z95) -> Bounds:
    """The paper's interval of a rate over n pictures, p +- z sqrt(p (1 - p) / n); of no width at 0 and 1."""
    half = z * float(np.sqrt(rate * (1 - rate) / n))
    return rate - half, rate + half


def screening_table(matrix: np.ndarray) -> dict[str, dict[str, Any]]:
    """Each of `weighted_rates` with ``n``, ``normal`` and ``wilson`` bounds, pictures taken as independent."""
    n = int(np.asarray(matrix).sum())
    return {
        name: {"value": rate, "n": n, "normal": normal_interval(rate, n), "wilson": wilson_interval(rate, n)}
        for name, rate in weighted_rates(matrix).items()
    }


def weighted_cells(
    labels: np.ndarray, predicted: np.ndarray, n_classes: int, groups: np.ndarray | None, seed: int, n_boot: int = 2000
) -> dict[str, dict[str, Any]]:
    """The weighted precision, specificity and F1 as metric cells with intervals over groups."""
    codes = group_codes(groups, len(labels))
    point = _weighted(class_counts(labels, predicted, n_classes, zero_division=0.0))
    drawn = [
        _weighted(class_counts(labels, predicted, n_classes, weights, zero_division=0.0))
        for weights in resampled_weights(codes, n_boot, seed)
    ]
    cells = {}
    for name in ("precision", "specificity", "f1"):
        value = float(point[name][0])
        replicates = np.concatenate([part[name] for part in drawn])
        wilson = partial(wilson_interval, value, count_groups(codes))
        cells[f"weighted_{name}"] = metric_cell(value, replicates, len(labels), fallback=wilson)
    return cells


# ---- schemes and folds ---------------------------------------------------------------------------


def restricted(rows: Rows, folds: Sequence[Fold], only: Sequence[str] | None) -> tuple[Rows, list[Fold], np.ndarray]:
    """The rows of some classes, numbered anew in the order given, in the folds that they had; and where they stood.

    Raises
    ------
    UsageError
        For a class that the data has not, or fewer than two.
    """
    if only is None:
        return rows, list(folds), np.arange(len(rows.labels))
    for name in only:
        if name not in rows.classes:
            raise UsageError(f"class {name!r}: not in the data{near(name, rows.classes)} It has {rows.classes}.")
    if len(set(only)) < 2:
        raise UsageError(f"classes {list(only)}: a scheme needs at least two different ones.")
    names = list(dict.fromkeys(only))
    number = np.full(len(rows.classes), -1)
    number[[rows.classes.index(name) for name in names]] = np.arange(len(names))
    kept = np.flatnonzero(number[rows.labels] >= 0)

    def part(column: np.ndarray | None) -> np.ndarray | None:
        return None if column is None else column[kept]

    chosen = Rows(
        samples=rows.samples.take(kept),
        labels=number[rows.labels[kept]],
        classes=names,
        groups=part(rows.groups),
        splits=part(rows.splits),
        sources=part(rows.sources),
        positions=rows.positions[kept],
        together=part(rows.together),
        data=rows.data
        | {
            "n_used": len(kept),
            "class_counts": {name: int(np.sum(number[rows.labels] == k)) for k, name in enumerate(names)},
            "notes": [
                *rows.data.get("notes", []),
                f"{len(rows.labels) - len(kept)} pictures of other classes than {', '.join(names)} were left aside.",
            ],
        },
    )
    return chosen, narrowed(folds, kept, len(rows.labels)), kept


def narrowed(folds: Sequence[Fold], kept: np.ndarray, n: int) -> list[Fold]:
    """Folds of n rows as folds of the ``kept`` rows (ascending positions), numbered anew; no row changes its fold."""
    place = np.full(n, -1)
    place[kept] = np.arange(len(kept))

    def still(side: np.ndarray) -> np.ndarray:
        return place[side[place[side] >= 0]]

    return [Fold(still(fold.train), still(fold.test), fold.name, fold.note) for fold in folds]


def out_of_fold(
    arm: Arm,
    recipe: CovidScreening,
    pixels: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    folds: Sequence[Fold],
    groups: np.ndarray | None = None,
    after_epoch: Callable[[int, dict[str, Any]], None] = lambda fold, numbers: None,
    after_fold: Callable[[int, CovidScreening], None] = lambda fold, estimator: None,
) -> Predictions:
    """Train a fresh copy of ``recipe`` on each fold's training part, and predict its test part.

    Parameters
    ----------
    recipe : the settings; it is not trained itself.
    pixels : (n, 3, S, S) uint8; labels : (n,) class numbers.
    groups : (n,), never divided where a validation share is left out of a training part.
    after_epoch, after_fold : told the fold's number with the epoch's record, and with the trained estimator.
    """
    started = time.perf_counter()
    n = len(labels)
    found = Predictions(arm, np.full((n, n_classes), np.nan), np.full(n, -1), np.full(n, -1))
    for number, fold in enumerate(folds):
        estimator = CovidScreening(**recipe.get_params())

        def told(_: int, record: dict[str, Any], number: int = number) -> None:
            after_epoch(number, record)

        units = None if groups is None else groups[fold.train]
        estimator.fit(pixels[fold.train], labels[fold.train], units, after_epoch=told)
        spread = np.zeros((len(fold.test), n_classes))  # a class without training pictures keeps probability 0
        spread[:, estimator.classes_] = estimator.predict_proba(pixels[fold.test])
        found.probabilities[fold.test], found.fold[fold.test] = spread, number
        found.predicted[fold.test] = spread.argmax(axis=1)
        after_fold(number, estimator)
    found.seconds = time.perf_counter() - started
    return found
