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

ABLE, ALARM, WARNING = 0.6, 0.05, 0.01
SUREST = 4  # one row in so many
SHOWN, LISTED = 24, 1000


def label_errors(ground: Ground | str) -> dict[str, Any]:
    """Judge how many labels are likely wrong, and name them, the likeliest first.

    The probe is a logistic head on the backbone's features, folds with groups and copies whole. The number is the
    estimate of the calibrated confident joint (eq. 3). It takes hard pictures for wrong ones, so the level hangs on
    those that are not hard: the share of labels contradicted among the quarter of the pictures of which the probe is
    surest. (On three real sets that share was 0.000 to 0.007 as they were and 0.028 to 0.122 with 3 % and 10 % of the
    labels exchanged, where confident learning said 0.008 to 0.123 and 0.036 to 0.223.) The rule: alarm when it
    is at least 5 % with a lower bound (Wilson) of at least 2.5 %; warning when it is at least 1 %; fine otherwise. Not
    judged when the probe goes less than 0.6 of the way from chance to certainty; the pictures that it contradicts with
    confidence are named all the same, unless it is no better than chance.
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
    sure = contradicted_when_sure(ground.labels, found.predicted, found.probabilities)
    able = excess(score["value"], ground.chance) >= ABLE
    level = "fine" if sure["value"] < WARNING else "warning"
    if sure["value"] >= ALARM and sure["low"] >= ALARM / 2:
        level = "alarm"
    probe = f"balanced accuracy {bounds(score)}, chance {ground.chance:.2f}"
    sentence = (
        f"Among the {sure['n']:,} pictures of which the probe is surest it contradicts {sure['value']:.1%} of the "
        f"labels [{sure['low']:.1%}, {sure['high']:.1%}]. Over all {n:,}, confident learning estimates "
        f"{several(round(share * n), 'wrong label')} ({share:.1%}), hard pictures counted as wrong; {len(suspects):,} "
        f"are named below (probe: {probe})."
    )
    if not able:
        level = "not judged"
        sentence = (
            f"Not judged: the probe is too weak to tell wrong labels from hard pictures ({probe}). It contradicts the "
            f"label of {several(len(suspects), 'picture')} with confidence; a stronger --backbone may tell more."
        )
    named = [_suspect(ground, found.probabilities, row, suggested) for row, suggested in suspects[:LISTED]]
    for one, (row, _) in zip(named[:SHOWN], suspects):
        one |= ground.material.picture(int(ground.rows[row]))
    raised = level in ("alarm", "warning")
    todo = "Look through the pictures named below and mend the labels that are wrong." if raised else ""
    return finding(
        key, title, level, sentence, todo, n=n, estimated=round(share * n), share=share, sure=sure,
        n_suspects=len(suspects), score=score, chance=ground.chance, suspects=named, classes=ground.classes,
        counts=confident_joint(ground.labels, found.probabilities).tolist(),
    )  # fmt: skip


def contradicted_when_sure(labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Share of labels that differ from the prediction among the quarter of the rows predicted with most confidence."""
    n = max(1, len(labels) // SUREST)
    surest = np.argsort(-probabilities.max(axis=1), kind="stable")[:n]
    value = float((predicted[surest] != labels[surest]).mean())
    low, high = wilson_interval(value, n)
    return {"value": value, "low": low, "high": high, "n": n, "interval": "wilson"}


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
    """Rows that are likely mislabelled, with the class they are likely of, ranked by normalised margin.

    The rows off the diagonal of the confident joint, and where these are fewer than the estimated joint says of given
    label i and true label j, further rows labelled i with the largest margin of j over i ("prune by noise rate", the
    paper's section 3.2). A row whose given label is its most probable class is never among them. They are ranked by the
    probability of the given label less that of the most probable other.
    """
    confident = confident_class(labels, probabilities)
    doubted = probabilities.argmax(axis=1) != labels
    told = {int(row): int(confident[row]) for row in np.flatnonzero((confident >= 0) & (confident != labels) & doubted)}
    wanted = np.rint(estimated_joint(labels, probabilities) * len(labels)).astype(int)
    for i, j in np.argwhere(wanted > 0):
        rows = np.flatnonzero((labels == i) & doubted)
        margin = probabilities[rows, j] - probabilities[rows, i]
        rows = rows[np.argsort(-margin, kind="stable")]
        missing = int(wanted[i, j]) - sum(told.get(int(row)) == j for row in rows)
        open_ = [int(row) for row in rows if int(row) not in told and probabilities[row].argmax() == j]
        if i != j and missing > 0:
            told |= dict.fromkeys(open_[:missing], int(j))
    order = np.array(sorted(told), dtype=np.int64)
    others = probabilities[order].copy()
    others[np.arange(len(order)), labels[order]] = -np.inf
    margin = probabilities[order, labels[order]] - others.max(axis=1, initial=-np.inf)
    return [(int(row), told[int(row)]) for row in order[np.argsort(margin, kind="stable")]]


def _suspect(ground: Ground, probabilities: np.ndarray, row: int, suggested: int) -> dict[str, Any]:
    return {
        "path": ground.material.names[ground.rows[row]],
        "label": ground.classes[ground.labels[row]],
        "suggested": ground.classes[suggested],
        "self_confidence": float(probabilities[row, ground.labels[row]]),
        "confidence": float(probabilities[row, suggested]),
    }
