"""More labels: how far the score would move if there were twice as many.

A linear head learns from nested shares of each fold's training rows; the error over their number is fitted by a power
law, e(n) = a n^-b (Hestness et al. 2017, arXiv 1712.00409), and read at twice the number. How well that goes is tried
where the answer is known: the shares up to one half are continued to the whole, and the interval of the gain is widened
on both sides by what this missed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from offshelf.errors import UsageError
from offshelf.evaluate.audit.finding import finding, not_judged, several
from offshelf.evaluate.audit.ground import Ground, out_of_fold
from offshelf.evaluate.intervals import metric_cell
from offshelf.evaluate.label_subsets import LabelBudget, labelled_rows
from offshelf.evaluate.metrics import class_counts
from offshelf.evaluate.resampling import resampled_weights
from offshelf.evaluate.seeds import over_seeds

SHARES, SEEDS = (10, 25, 50, 75, 100), 3
MOST, BOOT = 4000, 1000
FEWEST_POINTS, WIDEST, LEAST_ERROR = 3, 0.2, 0.005
HEAD = "ridge"  # the quickest of the linear heads


def more_labels(ground: Ground | str) -> dict[str, Any]:
    """Say what twice as many labels would bring, with an interval over seeds and test units.

    The rule: not judged when fewer than three shares can be drawn, when the error is below 0.005 already, when
    the curve is not above chance at its end, or when the interval of the gain is wider than 0.2. This check is "fine"
    otherwise: it raises nothing, it informs. Nor is it judged when fewer than three shares up to one half can be drawn.
    Of more than 4,000 pictures a stratified part is taken, and the gain is that of twice the part.
    """
    key, title = "more_labels", "More labels"
    if isinstance(ground, str):
        return not_judged(key, title, ground)
    ground = ground.limited(MOST)
    features = ground.material.features[ground.rows]
    points: list[dict[str, Any]] = []
    drawn = []
    for share in SHARES:
        try:
            found = [_attempt(ground, features, share, seed) for seed in range(SEEDS)]
        except UsageError:  # so few cannot hold every class
            continue
        n, scores = float(np.mean([one[0] for one in found])), np.array([one[1] for one in found])
        replicates = over_seeds(np.stack([one[2] for one in found]), SEEDS, ground.material.seed)
        cell = metric_cell(float(scores.mean()), replicates, len(ground.rows), undefined_share=0.0)
        points.append({"share": share, "n": round(n), "score": cell})
        drawn.append(replicates)
    about: dict[str, Any] = {
        "points": points,
        "chance": ground.chance,
        "n": len(ground.rows),
        "metric": "balanced_accuracy",
    }
    if len(points) < FEWEST_POINTS:
        return not_judged(key, title, "there are too few pictures to draw smaller parts of them.", **about)
    last = points[-1]["score"]
    if 1 - last["value"] < LEAST_ERROR:
        reason = f"a linear head reaches {last['value']:.3f} already; there is nothing left to gain on this data."
        return not_judged(key, title, reason, **about)
    if last["low"] is None or last["low"] <= ground.chance:
        return not_judged(key, title, "with all labels the head is no better than chance.", **about)
    sizes = np.array([point["n"] for point in points], dtype=float)
    errors = 1 - np.array([[point["score"]["value"] for point in points]])
    gain = metric_cell(
        float(doubled_gain(sizes, errors)[0]), doubled_gain(sizes, 1 - np.stack(drawn, axis=1)), last["n"]
    )
    half = [place for place, point in enumerate(points) if point["share"] <= 50]
    missed = None
    if len(half) >= FEWEST_POINTS and gain["low"] is not None:
        foretold = float(doubled_gain(sizes[half], errors[:, half])[0])
        missed = float(errors[0, half[-1]] - errors[0, -1] - foretold)
        gain |= {"low": gain["low"] - abs(missed), "high": gain["high"] + abs(missed)}
    about |= {"gain": gain, "missed": missed}
    if missed is None or gain["low"] is None or gain["high"] - gain["low"] > WIDEST:
        return not_judged(key, title, "the learning curve is too uncertain to be continued.", **about)
    sentence = (
        f"Doubling the labels from {points[-1]['n']:,} to {2 * points[-1]['n']:,}: about {gain['value']:+.3f} "
        f"[{gain['low']:+.3f}, {gain['high']:+.3f}] in balanced accuracy, now {last['value']:.3f}. Extrapolated from "
        f"{several(len(points), 'point')} of a power law with a linear head (from half the labels it missed the "
        f"whole by {missed:+.3f}, which the interval holds); another head may gain more or less."
    )
    if gain["low"] > 0.01:
        sentence += " More labels would still help."
    elif gain["high"] < 0.01:
        sentence += " More labels of the same kind would hardly help."
    return finding(key, title, "fine", sentence, **about)


def _attempt(ground: Ground, features: np.ndarray, share: int, seed: int) -> tuple[float, float, np.ndarray]:
    """Rows that trained (mean over folds), balanced accuracy, and its replicates ``(B,)``."""
    budget = LabelBudget(f"{share}%", share=share / 100)
    folds = []
    for fold in ground.folds:
        kept = labelled_rows(ground.labels[fold.train], ground.units[fold.train], budget, seed)
        folds.append(replace(fold, train=fold.train[kept]))
    predicted = out_of_fold(replace(ground, folds=folds), features, HEAD).predicted
    n_classes = len(ground.classes)
    drawn = [
        class_counts(ground.labels, predicted, n_classes, weights).balanced_accuracy
        for weights in resampled_weights(ground.units, BOOT, ground.material.seed)
    ]
    value = float(class_counts(ground.labels, predicted, n_classes).balanced_accuracy[0])
    return float(np.mean([len(fold.train) for fold in folds])), value, np.concatenate(drawn)


def doubled_gain(sizes: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """What doubling the largest size takes off the error, by a power law fitted in logarithms.

    Parameters
    ----------
    sizes : ``(P,)`` rising.
    errors : ``(B, P)`` above 0; a smaller one counts as half a thousandth.

    Returns
    -------
    gains : ``(B,)`` fitted error at the largest size times (1 - 2^-b); negative where the error rises.
    """
    x, y = np.log(sizes), np.log(np.maximum(errors, 5e-4))
    x = x - x[-1]
    slope = ((x - x.mean()) * (y - y.mean(axis=1, keepdims=True))).sum(axis=1) / ((x - x.mean()) ** 2).sum()
    end = y.mean(axis=1) - slope * x.mean()
    return np.exp(end) * (1 - 2.0**slope)
