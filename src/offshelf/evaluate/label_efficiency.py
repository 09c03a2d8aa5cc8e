"""The label-efficiency curve: the score over the number of labelled training pictures, with intervals over seeds.

The interval of a point joins what other test groups of the same kind and what other seeds would have changed: each
resample draws groups of test rows and seeds, both with replacement, the same for every point of the curve. So the
step from one point to the next is a paired difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from offshelf.evaluate.bootstrap import evaluate
from offshelf.evaluate.groups import group_codes
from offshelf.evaluate.intervals import Bounds, metric_cell
from offshelf.evaluate.label_subsets import LabelBudget
from offshelf.evaluate.multi_label import LabelScores, evaluate_labels
from offshelf.evaluate.predictions import Predictions
from offshelf.evaluate.resampling import replicate
from offshelf.evaluate.rows import Rows
from offshelf.evaluate.scores import Scores
from offshelf.evaluate.seeds import over_seeds

SHOWN = ("balanced_accuracy", "accuracy", "macro_auroc", "macro_f1")
SHOWN_OF_LABELS = ("macro_auroc", "macro_average_precision")
# So few steps are too few to learn anything in, however few the pictures: small numbers pass more often over theirs.
LEAST_STEPS = 200


@dataclass
class Attempt:
    """One training with so many labels and one seed: what it predicted, on how many pictures, in how many passes."""

    seed: int
    item: Predictions
    pictures: list[int] = field(default_factory=list)  # labelled ones, of each fold
    epochs: int = 0


@dataclass(frozen=True, eq=False)
class _Judged:
    """One attempt's metrics: values, replicates ``(B,)``, shares of undefined ones, and intervals that never vanish."""

    values: dict[str, float]
    drawn: dict[str, np.ndarray]
    undefined: dict[str, float]
    fallback: Callable[[str], Bounds]


def passes(epochs: int, batch_size: int, n: int, n_all: int) -> int:
    """How often to pass over ``n`` labelled pictures of ``n_all``: as asked, or until there are enough steps."""
    enough = min(epochs * max(1, n_all // batch_size), LEAST_STEPS)
    return max(epochs, -(-enough // max(1, n // batch_size)))


def efficiency_curve(
    attempts: Sequence[tuple[LabelBudget, Sequence[Attempt]]],
    rows: Rows,
    measured: np.ndarray | None,
    *,
    seed: int = 0,
    n_boot: int = 2000,
) -> dict[str, Any]:
    """Points of the curve, ready for JSON.

    Parameters
    ----------
    attempts
        From few to many labels; of each the trainings of all seeds, in the same order.
    rows
        What all of them were tested on.
    measured
        ``(K,)`` which labels the means are over, with several labels a picture; else None.
    seed, n_boot
        Of the bootstrap.

    Returns
    -------
    curve
        ``metric`` (the one that is drawn), ``seeds``, and ``points``: ``labels`` as asked for, ``said`` (the same in
        words), ``n`` labelled pictures (mean over folds and seeds), ``least`` and ``most``, ``epochs``, ``metrics`` as
        cells, ``by_seed`` (name -> one value a seed), ``gain`` (the paired difference to the point before as a cell,
        None for the first).
    """
    names = SHOWN if measured is None else SHOWN_OF_LABELS
    points: list[dict[str, Any]] = []
    before: list[_Judged] = []
    for budget, tried in attempts:
        judged = [_judge(one.item, rows, measured, seed, n_boot) for one in tried]
        pictures = [n for one in tried for n in one.pictures]
        points.append(
            {
                "labels": budget.text,
                "said": budget.said,
                "n": round(float(np.mean(pictures))),
                "least": min(pictures),
                "most": max(pictures),
                "epochs": max(one.epochs for one in tried),
                "metrics": {name: _cell(judged, name, tried[0].item, seed) for name in names},
                "by_seed": {name: [_number(one.values[name]) for one in judged] for name in names},
                "gain": _gain(before, judged, names[0], tried[0].item, seed) if before else None,
            }
        )
        before = judged
    return {"metric": names[0], "seeds": [one.seed for one in attempts[0][1]], "points": points}


def _judge(item: Predictions, rows: Rows, measured: np.ndarray | None, seed: int, n_boot: int) -> _Judged:
    tested = item.tested
    labels, probabilities, groups = rows.labels[tested], item.probabilities[tested], rows.clusters(tested)
    codes = group_codes(groups, len(tested))
    values: Any
    if measured is not None:
        several = LabelScores(labels, probabilities, measured)
        values, drawn = several.point().overall, several.replicate(codes, n_boot, seed)
        undefined = {name: several.undefined_share(name, drawn) for name in SHOWN_OF_LABELS}
    else:
        scores = Scores(labels, probabilities, item.predicted[tested], len(rows.classes))
        point, one = scores.point(), replicate(scores, codes, n_boot, seed)
        present = point.truth[:, 0] > 0
        values, drawn = point.overall, one  # type: ignore[assignment]
        undefined = {name: one.undefined_share(name, present) for name in SHOWN}

    def fallback(name: str) -> Bounds:
        """The interval of this attempt alone."""
        if measured is not None:
            told = evaluate_labels(labels, probabilities, rows.classes, measured, groups, seed, n_boot)
        else:
            told = evaluate(labels, probabilities, rows.classes, groups, item.predicted[tested], seed, n_boot)
        cell = told["metrics"][name]
        return (np.nan, np.nan) if cell["low"] is None else (cell["low"], cell["high"])

    return _Judged({name: float(values[name][0]) for name in undefined}, drawn.overall, undefined, fallback)


def _cell(judged: Sequence[_Judged], name: str, item: Predictions, seed: int) -> dict[str, Any]:
    """Mean over the seeds with its interval over seeds and test groups."""
    drawn = over_seeds(np.stack([one.drawn[name] for one in judged]), len(judged), seed)
    return metric_cell(
        float(np.mean([one.values[name] for one in judged])),
        drawn,
        len(item.tested),
        fallback=lambda: judged[0].fallback(name),
        undefined_share=max(one.undefined[name] for one in judged),
    )


def _gain(before: Sequence[_Judged], now: Sequence[_Judged], name: str, item: Predictions, seed: int) -> dict[str, Any]:
    """What the step from the point before brought."""
    drawn = np.stack([b.drawn[name] - a.drawn[name] for a, b in zip(before, now, strict=True)])
    return metric_cell(
        float(np.mean([b.values[name] - a.values[name] for a, b in zip(before, now, strict=True)])),
        over_seeds(drawn, len(now), seed),
        len(item.tested),
        undefined_share=max(one.undefined[name] for one in (*before, *now)),
    )


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
