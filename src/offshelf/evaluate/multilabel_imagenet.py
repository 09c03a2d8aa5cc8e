"""Multi-label assessment of one-label classifiers (Anzaku et al. 2024, arXiv 2412.18409).

The paper's claim, in our words: many pictures show several classes; scoring the first answer against one label punishes
right answers, and punishes a test set with more such pictures more, so that part of what looks like a loss of accuracy
between two test sets is a difference in composition.

In: scores of an ordinary classifier and the set of valid labels of each picture; what a picture scores is in
`offshelf.evaluate.label_sets`. Out: a tidy table; two of them are compared by `offshelf.evaluate.drop_decomposition`.

Departures, where the paper could not be read in full: ASMA, the aggregate of the accuracies of subgroups of equal k, is
their unweighted mean over the subgroups of at least ``n_min`` pictures; the size-weighted mean stands beside it. Top-1
too is taken over the pictures with a non-empty set, so that all numbers rest on the same pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from offshelf.errors import DataError
from offshelf.evaluate.groups import count_groups, group_codes
from offshelf.evaluate.intervals import Bounds, mean_of_intervals, metric_cell, wilson_interval
from offshelf.evaluate.label_sets import NAMES, PICTURE_METRICS, score_pictures
from offshelf.evaluate.metrics import divide, indicator
from offshelf.evaluate.resampling import resampled_weights

LABEL_SET_METRICS = (
    *PICTURE_METRICS,
    ("asma", "unweighted mean of variable top-k over the subgroups of equal k that are large enough"),
    ("asma_weighted", "size-weighted mean of variable top-k over all subgroups, which is variable top-k itself"),
)
N_MIN = 30


@dataclass(frozen=True, eq=False)
class Subgroups:
    """Sums over subgroups of equal k in B resamples: ``hits`` and ``weights`` name -> ``(G, B)``, ``size (G, B)``."""

    hits: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    size: np.ndarray

    def rate(self, name: str) -> np.ndarray:
        """``(G, B)`` the mean of a metric in each subgroup."""
        return divide(self.hits[name], self.weights[name])

    def overall(self, name: str) -> np.ndarray:
        """``(B,)`` the mean of a metric over all pictures."""
        return divide(self.hits[name].sum(axis=0), self.weights[name].sum(axis=0))

    def unweighted(self, chosen: np.ndarray) -> np.ndarray:
        """``(B,)`` mean of variable top-k over the ``chosen`` subgroups, each counted alike; NaN if one is empty."""
        if not chosen.any():
            return np.full(self.size.shape[1], np.nan)
        return self.rate("variable_top_k")[chosen].mean(axis=0)


class MultiLabelReport:
    """What a one-label classifier is worth where pictures have several valid labels; every number with its interval.

    Parameters
    ----------
    logits
        ``(n, K)`` scores, any increasing function of them does. Ties go to the lower class number.
    label_sets
        The valid labels, as `label_matrix` takes them. Pictures without one are left out of every number and counted.
    labels
        ``(n,)`` the one label of each picture (which need not be in its set), -1 for none; without it no top-1.
    groups
        ``(n,)`` groups drawn whole in the bootstrap; a row without one stands alone.
    n_min
        Pictures that a subgroup must have to count in ASMA: the mean over a handful is noise.
    seed, n_boot
        Of the bootstrap; 95 % percentile intervals, subgroups as they are in the sample.

    Attributes
    ----------
    rows
        Tidy: one dict a number with ``metric``, ``k`` (of the subgroup; None over all), ``value``, ``low``, ``high``,
        ``n``, ``interval``. Metrics are those of `LABEL_SET_METRICS`.
    n, empty
        Pictures that are scored, and pictures without a valid label.
    ks, sizes
        ``(G,)`` numbers of valid labels that occur, and how many pictures have so many.
    averaged
        ``(G,)`` bool, the subgroups that ASMA averages.

    Raises
    ------
    DataError
        Arrays that do not fit together, scores that are not numbers, or no picture with a valid label.

    Source: arXiv 2412.18409; ReaL accuracy is that of Beyer et al. 2020, arXiv 2006.07159.
    """

    def __init__(
        self,
        logits: np.ndarray,
        label_sets: Any,
        labels: Sequence[int] | np.ndarray | None = None,
        groups: Sequence[Any] | np.ndarray | None = None,
        *,
        n_min: int = N_MIN,
        seed: int = 0,
        n_boot: int = 2000,
    ) -> None:
        scores = score_pictures(logits, label_sets, labels)
        scored = np.flatnonzero(scores.count > 0)
        self.n, self.empty, self.n_min = len(scored), int((scores.count == 0).sum()), n_min
        if not self.n:
            raise DataError(f"none of {self.empty} pictures has a valid label; expected at least one non-empty set")
        self.values = {name: column[scored] for name, column in scores.values.items()}
        self._codes = np.unique(group_codes(groups, len(scores.count))[scored], return_inverse=True)[1]
        self.ks, self._of, self.sizes = np.unique(scores.count[scored], return_inverse=True, return_counts=True)
        self.averaged = self.sizes >= n_min
        self.point = self._sums(np.ones((self.n, 1)))
        parts = [self._sums(weights) for weights in resampled_weights(self._codes, n_boot, seed)]
        self.drawn = Subgroups(
            {name: np.concatenate([part.hits[name] for part in parts], axis=1) for name in NAMES},
            {name: np.concatenate([part.weights[name] for part in parts], axis=1) for name in NAMES},
            np.concatenate([part.size for part in parts], axis=1),
        )
        self.rows = self._rows()

    def cell(self, metric: str, k: int | None = None) -> dict[str, Any]:
        """One number of ``rows`` as a metric cell."""
        row = next(row for row in self.rows if (row["metric"], row["k"]) == (metric, k))
        return {key: row[key] for key in ("value", "low", "high", "n", "interval")}

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON: ``rows``, ``n``, ``empty``, ``label_counts``, ``n_min`` and ``averaged`` (ks)."""
        return {
            "n": self.n,
            "empty": self.empty,
            "label_counts": {str(k): int(size) for k, size in zip(self.ks, self.sizes)},
            "n_min": self.n_min,
            "averaged": [int(k) for k in self.ks[self.averaged]],
            "rows": self.rows,
        }

    def _sums(self, weights: np.ndarray) -> Subgroups:
        number = len(self.ks)
        defined = {name: np.isfinite(column) for name, column in self.values.items()}
        hits = {
            name: indicator(self._of, number, np.where(defined[name], column, 0.0)) @ weights
            for name, column in self.values.items()
        }
        size = indicator(self._of, number) @ weights
        counted = {
            name: size if known.all() else indicator(np.where(known, self._of, -1), number) @ weights
            for name, known in defined.items()
        }
        return Subgroups(hits, counted, size)

    def _rows(self) -> list[dict[str, Any]]:
        rows = [
            {"metric": name, "k": None}
            | metric_cell(
                float(self.point.overall(name)[0]),
                self.drawn.overall(name),
                int(self.point.weights[name].sum()),
                fallback=partial(self._wilson, name),
            )
            for name in NAMES
        ]
        mean = rows[NAMES.index("variable_top_k")]
        asma = metric_cell(
            float(self.point.unweighted(self.averaged)[0]),
            self.drawn.unweighted(self.averaged),
            int(self.sizes[self.averaged].sum()),
            fallback=self._asma_bounds,
        )
        rows += [{"metric": "asma", "k": None} | asma, mean | {"metric": "asma_weighted"}]
        for name in NAMES:
            point, drawn = self.point.rate(name), self.drawn.rate(name)
            rows += [
                {"metric": name, "k": int(k)}
                | metric_cell(
                    float(point[g, 0]),
                    drawn[g],
                    int(self.point.weights[name][g, 0]),
                    fallback=partial(self._wilson, name, g),
                )
                for g, k in enumerate(self.ks)
            ]
        return rows

    def _wilson(self, name: str, g: int | None = None) -> Bounds:
        """Wilson's interval over the groups behind a number, for where all resamples agree."""
        rows = np.isfinite(self.values[name]) & (True if g is None else self._of == g)
        return wilson_interval(float(self.values[name][rows].mean()), count_groups(self._codes, rows))

    def _asma_bounds(self) -> Bounds:
        chosen = np.flatnonzero(self.averaged)
        values = self.point.rate("variable_top_k")[chosen, 0].tolist()
        return mean_of_intervals(values, [self._wilson("variable_top_k", int(g)) for g in chosen])
