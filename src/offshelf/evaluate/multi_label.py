"""Several labels a picture: mean area under the ROC curve and what stands beside it, unknown answers left aside.

A label is measured on the rows where it is known, one label against itself alone. The mean is over the labels that can
be measured; which ones cannot, and why, is said by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from offshelf.data.samples import Samples
from offshelf.errors import DataError
from offshelf.evaluate.groups import count_groups, group_codes
from offshelf.evaluate.intervals import Bounds, f1_wilson, mean_of_intervals, metric_cell, wilson_interval
from offshelf.evaluate.metrics import divide
from offshelf.evaluate.mistakes import thumbnail
from offshelf.evaluate.ranking import Ranking, roc_points
from offshelf.evaluate.resampling import resampled_weights
from offshelf.evaluate.splits import Fold

MULTI_LABEL_METRICS = (
    ("macro_auroc", "mean over the measured labels of the area under the ROC curve, ties counted half"),
    ("macro_average_precision", "mean over the measured labels of average precision, without interpolation"),
    ("macro_f1", "mean over the measured labels of F1, yes from a probability of one half on"),
    ("brier", "mean squared error of the probabilities over the known answers, mean over the measured labels"),
)
OVERALL = tuple(name for name, _ in MULTI_LABEL_METRICS)
PER_LABEL = ("sensitivity", "specificity", "precision", "f1", "auroc", "average_precision", "brier")
MEAN_OF = {
    "macro_auroc": "auroc",
    "macro_average_precision": "average_precision",
    "macro_f1": "f1",
    "brier": "brier",
}
# With three groups the chance that a resample holds none of them stays below 5 % whatever their number:
# (1 - 3 / G)^G < exp(-3) = 0.0498. With fewer there is no interval.
FEWEST_GROUPS = 3
HALF = 0.5


@dataclass(frozen=True, eq=False)
class LabelSample:
    """Metrics of resamples: ``overall`` name -> ``(B,)`` and ``per_label`` name -> ``(K, B)``."""

    overall: dict[str, np.ndarray]
    per_label: dict[str, np.ndarray]


class LabelScores:
    """Checked answers to K yes-or-no questions, sorted once, ready for any number of weighted resamples.

    Parameters
    ----------
    labels
        ``(n, K)`` of 1, 0 and NaN (unknown).
    probabilities
        ``(n, K)``, each 0 to 1.
    measured
        ``(K,)`` bool, the labels that the means are over.

    Raises
    ------
    DataError
        Naming the shapes, or the row and the value.
    """

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray, measured: np.ndarray) -> None:
        self.labels, self.probabilities = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
        if self.labels.ndim != 2 or self.labels.shape != self.probabilities.shape or not len(self.labels):
            raise DataError(
                f"labels of shape {self.labels.shape} and probabilities of shape {self.probabilities.shape}: expected "
                "the same (n, K), n at least 1"
            )
        bad = np.argwhere(~((self.probabilities >= 0) & (self.probabilities <= 1)))
        if len(bad):
            row, k = bad[0]
            raise DataError(f"probabilities, row {row}, label {k}: {self.probabilities[row, k]}; expected 0 to 1")
        odd = np.argwhere(~(np.isnan(self.labels) | (self.labels == 0) | (self.labels == 1)))
        if len(odd):
            row, k = odd[0]
            raise DataError(f"labels, row {row}, label {k}: {self.labels[row, k]}; expected 0, 1 or NaN (unknown)")
        self.measured = np.asarray(measured, dtype=bool)
        self.known = ~np.isnan(self.labels)
        self.positive = self.labels == 1
        self.yes = self.probabilities >= HALF
        self._rankings = [
            Ranking(self.positive[known, k], self.probabilities[known, k]) for k, known in enumerate(self.known.T)
        ]

    def sample(self, weights: np.ndarray) -> LabelSample:
        """All metrics under each column of ``weights (n, B)``."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in PER_LABEL}
        for k, known in enumerate(self.known.T):
            own, positive, yes = weights[known], self.positive[known, k].astype(float), self.yes[known, k]
            hits, truth, named = (positive * yes) @ own, positive @ own, yes.astype(float) @ own
            total = own.sum(axis=0)
            columns["sensitivity"].append(divide(hits, truth))
            columns["specificity"].append(divide(total - truth - named + hits, total - truth))
            columns["precision"].append(divide(hits, named))
            columns["f1"].append(divide(2 * hits, truth + named))
            area, precision = self._rankings[k].auroc_and_average_precision(own)
            columns["auroc"].append(area)
            columns["average_precision"].append(precision)
            columns["brier"].append(divide((positive - self.probabilities[known, k]) ** 2 @ own, total))
        per_label = {name: np.stack(values) for name, values in columns.items()}
        nothing = np.full(weights.shape[1], np.nan)
        overall = {
            name: per_label[part][self.measured].mean(axis=0) if self.measured.any() else nothing
            for name, part in MEAN_OF.items()
        }
        return LabelSample(overall, per_label)

    def point(self) -> LabelSample:
        """The metrics of the rows as they are; B = 1."""
        return self.sample(np.ones((len(self.labels), 1)))

    def replicate(self, codes: np.ndarray, n_boot: int, seed: int) -> LabelSample:
        """Metrics of ``n_boot`` resamples of groups."""
        parts = [self.sample(weights) for weights in resampled_weights(codes, n_boot, seed)]
        return LabelSample(
            {name: np.concatenate([part.overall[name] for part in parts]) for name in OVERALL},
            {name: np.concatenate([part.per_label[name] for part in parts], axis=1) for name in PER_LABEL},
        )

    def undefined_share(self, name: str, drawn: LabelSample) -> float:
        """Share of resamples in which the worst measured label has no such number."""
        values = drawn.per_label[MEAN_OF[name]][self.measured]
        return float((~np.isfinite(values)).mean(axis=1).max()) if len(values) else 1.0


@dataclass(frozen=True, eq=False)
class Measurable:
    """Which labels the means are over ``(K,)``, and of each other one why not."""

    measured: np.ndarray
    left_out: dict[str, str]


def measurable(
    labels: np.ndarray, folds: Sequence[Fold], classes: Sequence[str], groups: Sequence[Any] | np.ndarray | None = None
) -> Measurable:
    """The labels that can be measured: both answers in every training part, and in enough groups of the test parts.

    Parameters
    ----------
    labels
        ``(n, K)`` of 1, 0 and NaN.
    folds
        The folds that are measured.
    classes
        Names of the K labels.
    groups
        ``(n,)`` or ``None``.
    """
    table, codes = np.asarray(labels, dtype=float), group_codes(groups, len(labels))
    tested = np.concatenate([fold.test for fold in folds])
    why: dict[str, str] = {}
    for k, name in enumerate(classes):
        values = table[:, k]
        for fold in folds:
            seen = np.unique(values[fold.train][~np.isnan(values[fold.train])])
            if len(seen) < 2:
                why[name] = f"the training part of {fold.name} holds {_only(seen)}"
                break
        if name in why:
            continue
        yes, no = (count_groups(codes[tested], values[tested] == answer) for answer in (1, 0))
        if min(yes, no) < FEWEST_GROUPS:
            unit = "pictures" if groups is None else "groups"
            why[name] = f"tested {unit} with it: {yes}, without it: {no}; {FEWEST_GROUPS} of each are needed"
    return Measurable(np.array([name not in why for name in classes]), why)


def _only(seen: np.ndarray) -> str:
    return "no known answer" if not len(seen) else f"only pictures {'with' if seen[0] == 1 else 'without'} it"


def evaluate_labels(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    measured: np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    seed: int = 0,
    n_boot: int = 2000,
) -> dict[str, Any]:
    """Everything that is told about one arm with several labels a picture.

    Parameters
    ----------
    labels, probabilities
        ``(n, K)`` of the tested rows; see :class:`LabelScores`.
    classes
        Names of the K labels.
    measured
        ``(K,)`` bool, see :func:`measurable`.
    groups
        ``(n,)`` groups drawn whole in the bootstrap.
    seed, n_boot
        Of the bootstrap; 95 % percentile intervals.

    Returns
    -------
    result
        As `offshelf.evaluate.bootstrap.evaluate` gives it: ``metrics``, ``per_class``, ``roc``; the confusion matrix
        and the calibration, which several labels do not have, are empty. ``n`` of a label counts its pictures, and
        ``known`` those that say whether they have it.
    """
    names = [str(name) for name in classes]
    scores = LabelScores(labels, probabilities, measured)
    codes = group_codes(groups, len(scores.labels))
    point, drawn = scores.point(), scores.replicate(codes, n_boot, seed)
    fallbacks = [_fallbacks(scores, point, codes, k) for k in range(len(names))]
    return {
        "metrics": _overall(scores, point, drawn, fallbacks),
        "per_class": {
            name: {
                part: metric_cell(
                    float(point.per_label[part][k, 0]),
                    drawn.per_label[part][k],
                    _counted(scores, part, k),
                    fallback=partial(fallbacks[k].__getitem__, part) if part in fallbacks[k] else None,
                )
                for part in PER_LABEL
            }
            | {
                "n": int(scores.positive[:, k].sum()),
                "known": int(scores.known[:, k].sum()),
                "measured": bool(scores.measured[k]),
            }
            for k, name in enumerate(names)
        },
        "confusion": [],
        "roc": {name: _roc(scores, k) for k, name in enumerate(names)},
        "calibration": [],
    }


def _overall(
    scores: LabelScores, point: LabelSample, drawn: LabelSample, fallbacks: list[dict[str, Bounds]]
) -> dict[str, dict[str, Any]]:
    chosen = np.flatnonzero(scores.measured)

    def collapsed(name: str) -> Bounds:
        part = MEAN_OF[name]
        return mean_of_intervals(point.per_label[part][chosen, 0].tolist(), [fallbacks[k][part] for k in chosen])

    return {
        name: metric_cell(
            float(point.overall[name][0]),
            drawn.overall[name],
            int(scores.known.any(axis=1).sum()),
            fallback=None if name == "brier" else partial(collapsed, name),
            undefined_share=scores.undefined_share(name, drawn),
        )
        for name in OVERALL
    }


def _fallbacks(scores: LabelScores, point: LabelSample, codes: np.ndarray, k: int) -> dict[str, Bounds]:
    """Wilson's intervals of one label's rates, over the groups that could have moved them."""
    known, positive, yes = scores.known[:, k], scores.positive[:, k], scores.yes[:, k] & scores.known[:, k]
    own, others = count_groups(codes, positive), count_groups(codes, known & ~positive)
    value = {name: float(column[k, 0]) for name, column in point.per_label.items()}
    return {
        "sensitivity": wilson_interval(value["sensitivity"], own),
        "specificity": wilson_interval(value["specificity"], others),
        "precision": wilson_interval(value["precision"], count_groups(codes, yes)),
        "f1": f1_wilson(value["f1"], count_groups(codes, positive | yes)),
        "auroc": wilson_interval(value["auroc"], min(own, others)),
        "average_precision": wilson_interval(value["average_precision"], own),
    }


def _counted(scores: LabelScores, part: str, k: int) -> int:
    """How many rows the denominator of a label's number has."""
    known, positive, yes = scores.known[:, k], scores.positive[:, k], scores.yes[:, k] & scores.known[:, k]
    rows = {"sensitivity": positive, "specificity": known & ~positive, "precision": yes, "f1": positive | yes}
    return int(rows.get(part, known).sum())


def _roc(scores: LabelScores, k: int) -> dict[str, list[float]]:
    known = scores.known[:, k]
    fpr, tpr = roc_points(scores.positive[known, k], scores.probabilities[known, k])
    return {"fpr": fpr.tolist(), "tpr": tpr.tolist()}


def label_baselines(labels: np.ndarray, tested: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
    """What a number must beat: chance for the area under the curve, the mean share of a label for its precision."""
    values = labels[tested][:, measured]
    shares = [float(column[~np.isnan(column)].mean()) for column in values.T]
    return {
        "chance": 0.5,
        "prevalence": float(np.mean(shares)) if shares else None,
        "majority": None,
        "majority_class": None,
    }


def confident_label_mistakes(
    samples: Samples, labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], limit: int = 24
) -> list[dict[str, Any]]:
    """Wrong answers to single labels, the surest first; rows with NaN probabilities were not tested."""
    sure = np.where(labels == 1, 1 - probabilities, probabilities)
    wrong = np.argwhere(np.where(np.isnan(labels) | np.isnan(probabilities), 0.0, sure) > HALF)
    order = np.argsort(-sure[wrong[:, 0], wrong[:, 1]], kind="stable")[:limit]
    found = []
    for row, k in wrong[order]:
        answers = [f"no {classes[k]}", classes[k]]
        has = int(labels[row, k])
        found.append(
            {
                "path": samples.name(int(row)),
                "truth": answers[has],
                "predicted": answers[1 - has],
                "confidence": float(sure[row, k]),
                "thumbnail": thumbnail(samples.image(int(row))),
            }
        )
    return found
