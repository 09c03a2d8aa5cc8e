"""Likely label errors, by confident learning.

Northcutt, Jiang and Chuang (2021), "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70. From
out-of-fold probabilities: the threshold of class j is the mean probability of j over the pictures labelled j (their
eq. 2); a picture labelled i counts towards (i, j) when its probability of j reaches j's threshold, and j is the most
probable of the classes whose threshold is reached (eq. 1). What is off the diagonal is likely mislabelled.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from offshelf.evaluate.audit.finding import bounds, finding, not_judged, several
from offshelf.evaluate.audit.ground import Ground, balanced_accuracy, excess, out_of_fold
from offshelf.evaluate.intervals import wilson_interval

ABLE, ALARM, WARNING = 0.8, 0.05, 0.01
SHOWN, LISTED = 24, 1000


def label_errors(ground: Ground | str) -> dict[str, Any]:
    """Judge how many labels are likely wrong, and name them, the likeliest first.

    The probe is a logistic head on the backbone's features, folds with groups and copies whole. The number is the
    estimate of the calibrated confident joint (eq. 3), its interval Wilson's over the units. Fixed beforehand: alarm
    when the lower bound of the share is at least 5 % and the probe goes at least 0.8 of the way from chance to
    certainty; warning when the share is at least 1 %; fine otherwise. A probe no better than chance judges nothing. A
    weak probe takes hard pictures for wrong ones, and the sentence says so.
    """
    key, title = "label_errors", "Likely label errors"
    if isinstance(ground, str):
        return not_judged(key, title, ground)
    found = out_of_fold(ground, ground.material.features[ground.rows])
    score = balanced_accuracy(ground.labels, found.predicted, ground.units, len(ground.classes), ground.material.seed)
    if score["low"] is None or score["low"] <= ground.chance:
        reason = f"the probe is no better than chance ({bounds(score)}, {ground.chance:.2f})."
        return not_judged(key, title, reason, score=score, chance=ground.chance)
    suspects = suspected(ground.labels, found.probabilities)
    joint = estimated_joint(ground.labels, found.probabilities)
    n = len(ground.labels)
    share = float(1 - np.trace(joint))
    low, high = wilson_interval(share, float(np.unique(ground.units).size))
    able = excess(score["value"], ground.chance) >= ABLE
    level = "fine" if share < WARNING else "alarm" if able and low >= ALARM else "warning"
    sentence = (
        f"About {several(round(share * n), 'label')} of {n:,} are likely wrong ({share:.1%} [{low:.1%}, {high:.1%}]); "
        f"{several(len(suspects), 'picture is', 'pictures are')} named below. The probe that says so is right in "
        f"{bounds(score)} (balanced accuracy, chance {ground.chance:.2f})"
    )
    sentence += "." if able else ": many of them will be hard pictures rather than wrong labels."
    named = [_suspect(ground, found.probabilities, row, suggested) for row, suggested in suspects[:LISTED]]
    for one, (row, _) in zip(named[:SHOWN], suspects):
        one |= ground.material.picture(int(ground.rows[row]))
    todo = "" if level == "fine" else "Look through the pictures named below and mend the labels that are wrong."
    return finding(
        key, title, level, sentence, todo, n=n, estimated=round(share * n), share=share, low=low, high=high,
        n_suspects=len(suspects), score=score, chance=ground.chance, suspects=named, classes=ground.classes,
        counts=confident_joint(ground.labels, found.probabilities).tolist(),
    )  # fmt: skip


def thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """``(K,)`` mean probability of each class over the pictures labelled as it."""
    return np.array([probabilities[labels == k, k].mean() for k in range(probabilities.shape[1])])


def confident_class(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """``(n,)`` the class that a picture is confidently of, -1 where it is of none."""
    reached = probabilities >= thresholds(labels, probabilities)[None] - 1e-6
    likeliest = np.where(reached, probabilities, -np.inf).argmax(axis=1)
    return np.where(reached.any(axis=1), likeliest, -1)


def confident_joint(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """``(K, K)`` counts: given label by confident class."""
    confident = confident_class(labels, probabilities)
    kept = confident >= 0
    counts = np.zeros((probabilities.shape[1],) * 2, dtype=np.int64)
    np.add.at(counts, (labels[kept], confident[kept]), 1)
    return counts


def estimated_joint(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """``(K, K)`` estimated shares of (given, true) label; lines sum to the shares of the given labels (eq. 3)."""
    counts = confident_joint(labels, probabilities).astype(np.float64)
    given = np.bincount(labels, minlength=len(counts))
    sums = counts.sum(axis=1)
    counts[sums == 0] = np.eye(len(counts))[sums == 0]  # nothing is known against such a class
    scaled = counts / counts.sum(axis=1, keepdims=True) * given[:, None]
    return scaled / scaled.sum()


def suspected(labels: np.ndarray, probabilities: np.ndarray) -> list[tuple[int, int]]:
    """Rows off the diagonal with the class they are confidently of, ranked by normalised margin.

    A row whose given label is its most probable class is not among them. The margin is the probability of the given
    label less that of the most probable other.
    """
    confident = confident_class(labels, probabilities)
    rows = np.flatnonzero((confident >= 0) & (confident != labels) & (probabilities.argmax(axis=1) != labels))
    own = probabilities[rows, labels[rows]]
    others = probabilities[rows].copy()
    others[np.arange(len(rows)), labels[rows]] = -np.inf
    order = np.argsort(own - others.max(axis=1, initial=-np.inf), kind="stable")
    return [(int(row), int(confident[row])) for row in rows[order]]


def _suspect(ground: Ground, probabilities: np.ndarray, row: int, suggested: int) -> dict[str, Any]:
    return {
        "path": ground.material.names[ground.rows[row]],
        "label": ground.classes[ground.labels[row]],
        "suggested": ground.classes[suggested],
        "self_confidence": float(probabilities[row, ground.labels[row]]),
        "confidence": float(probabilities[row, suggested]),
    }
