"""The ground on which the audit's probes stand: labelled rows, folds that keep copies and groups whole, and scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from offshelf.errors import DataError
from offshelf.evaluate.arms import cross_predict
from offshelf.evaluate.audit.material import Material
from offshelf.evaluate.intervals import mean_of_intervals, metric_cell, wilson_interval
from offshelf.evaluate.label_subsets import LabelBudget, labelled_rows
from offshelf.evaluate.metrics import class_counts
from offshelf.evaluate.predictions import Predictions
from offshelf.evaluate.resampling import resampled_weights
from offshelf.evaluate.rows import Rows
from offshelf.evaluate.splits import Fold, outer_folds
from offshelf.transfer.pipelines import Arm

FOLDS, FEWEST = 5, 20
MOST_TRAINED = 4000  # rows that train in a fold; more would cost minutes and change little
PROBE = Arm("deep", "logistic")


@dataclass(frozen=True, eq=False)
class Ground:
    """Rows of the material that can be probed.

    rows : ``(m,)`` positions; labels : ``(m,)`` numbers of ``classes``; units : ``(m,)`` what stays together.
    """

    material: Material
    rows: np.ndarray
    labels: np.ndarray
    classes: list[str]
    units: np.ndarray
    folds: list[Fold]

    @property
    def chance(self) -> float:
        """Balanced accuracy without looking."""
        return 1.0 / len(self.classes)

    def limited(self, most: int) -> Ground:
        """At most about so many rows, of every class its share, units whole; folds drawn anew."""
        if len(self.rows) <= most:
            return self
        kept = labelled_rows(self.labels, self.units, LabelBudget(str(most), count=most), self.material.seed)
        found = _ground(self.material, self.rows[kept], self.labels[kept], self.classes)
        return self if isinstance(found, str) else found

    def as_rows(self) -> Rows:
        """In the shape in which studies take them."""
        units = np.array([f"u{unit}" for unit in self.units], dtype=object)
        samples = self.material.samples
        return Rows(samples, self.labels, self.classes, None, None, None, self.rows, units)


def ground_of(material: Material) -> Ground | str:
    """The labelled rows with their folds; or why there are none.

    A class of fewer than two independent pictures is left out: it cannot be trained on and tested.
    """
    if material.several:
        return "a picture may have several labels here; name one column with --label-column to have this judged."
    rows = np.flatnonzero(material.labels >= 0)
    if not len(rows):
        return "there are no labels."
    labels = material.labels[rows]
    units = [np.unique(material.units[rows[labels == k]]).size for k in range(len(material.classes))]
    used = np.flatnonzero(np.array(units) >= 2)
    if len(used) < 2:
        return "fewer than two classes have two independent pictures."
    kept = np.isin(labels, used)
    rows = rows[kept]
    if len(rows) < FEWEST:
        return f"there are {len(rows)} labelled pictures; at least {FEWEST} are needed."
    return _ground(material, rows, np.searchsorted(used, labels[kept]), [material.classes[k] for k in used])


def _ground(material: Material, rows: np.ndarray, labels: np.ndarray, classes: list[str]) -> Ground | str:
    units = np.unique(material.units[rows], return_inverse=True)[1]
    try:
        folds = outer_folds(labels, units, None, FOLDS, material.seed, classes=classes)
    except DataError as error:
        return f"{error}."
    return Ground(material, rows, labels, classes, units, folds)


def out_of_fold(ground: Ground, features: np.ndarray, head: str = PROBE.head) -> Predictions:
    """Every row predicted by a linear probe that saw neither it nor its unit; ``features (m, d)``."""
    draws = np.random.default_rng([ground.material.seed, 17])
    folds = []
    for fold in ground.folds:
        train = fold.train
        if len(train) > MOST_TRAINED:
            train = _some(train, ground.labels[train], draws)
        folds.append(replace(fold, train=train))
    return cross_predict(Arm("deep", head), features, ground.as_rows(), folds, seed=ground.material.seed)


def _some(train: np.ndarray, labels: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """So many training rows that it stays quick, two of each class at least."""
    order = draws.permutation(len(train))
    first = np.concatenate([order[labels[order] == k][:2] for k in np.unique(labels)])
    rest = order[~np.isin(order, first)]
    return np.sort(train[np.concatenate([first, rest])[:MOST_TRAINED]])


def balanced_accuracy(
    labels: np.ndarray, predicted: np.ndarray, units: np.ndarray, n_classes: int, seed: int = 0, n_boot: int = 1000
) -> dict[str, Any]:
    """Balanced accuracy as a metric cell, units drawn whole; a class that a resample misses is left out of its mean."""
    counts = class_counts(labels, predicted, n_classes)
    value = float(counts.balanced_accuracy[0])
    codes = np.unique(units, return_inverse=True)[1]
    drawn = [
        class_counts(labels, predicted, n_classes, w).balanced_accuracy for w in resampled_weights(codes, n_boot, seed)
    ]
    there = np.flatnonzero(counts.truth[:, 0] > 0)
    rates = [float(counts.sensitivity[k, 0]) for k in there]
    sizes = [np.unique(codes[labels == k]).size for k in there]
    return metric_cell(
        value, np.concatenate(drawn), len(labels), undefined_share=0.0,
        fallback=lambda: mean_of_intervals(rates, [wilson_interval(r, n) for r, n in zip(rates, sizes)]),
    )  # fmt: skip


def excess(value: float | None, chance: float) -> float:
    """How much of the way from chance to certainty; 0 where not defined."""
    return 0.0 if value is None else max(0.0, (value - chance) / (1 - chance))
