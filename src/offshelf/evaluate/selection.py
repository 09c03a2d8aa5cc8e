"""The score of "the best of several arms", with the choice itself inside the bootstrap.

Choosing the best of k arms on the rows that also score them flatters the winner. Following Tsamardinos, Greasidou and
Borboudakis (2018, Machine Learning 107, "Bootstrapping the out-of-sample predictions for efficient and accurate
cross-validation"), each replicate chooses the arm on the drawn rows and scores it on the rows that were not drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def selected_score(
    labels: np.ndarray,
    predictions: dict[str, np.ndarray],
    n_classes: int,
    groups: np.ndarray | None = None,
    seed: int = 0,
    n_boot: int = 1000,
) -> dict[str, Any]:
    """Balanced accuracy of choosing the best arm, corrected for the choice.

    Parameters
    ----------
    labels : (n,); predictions : arm name -> (n,) classes.
    groups : (n,), drawn as wholes; rows by themselves when None.

    Returns
    -------
    dict
        ``value, low, high, n, interval, arms`` and ``chosen``: how often each arm won.
    """
    names = list(predictions)
    right = np.stack([predictions[name] == labels for name in names])  # (arms, n)
    units = np.arange(len(labels)) if groups is None else np.unique(groups.astype(str), return_inverse=True)[1]
    draws = np.random.default_rng([seed, 7])
    n_units = int(units.max()) + 1
    scores, wins = [], dict.fromkeys(names, 0)
    for _ in range(n_boot):
        weight = np.bincount(draws.integers(0, n_units, n_units), minlength=n_units)[units]
        inside, outside = _balanced(right, labels, weight, n_classes), _balanced(right, labels, weight == 0, n_classes)
        if not (np.isfinite(inside).all() and np.isfinite(outside).all()):
            continue  # a class is missing on one side
        winner = int(inside.argmax())
        wins[names[winner]] += 1
        scores.append(outside[winner])
    enough = len(scores) >= 0.5 * n_boot
    low, high = np.percentile(scores, [2.5, 97.5]) if enough else (np.nan, np.nan)
    return {
        "value": float(np.mean(scores)) if enough else float("nan"),
        "low": float(low),
        "high": float(high),
        "n": len(labels),
        "interval": "bootstrap" if enough else "none",
        "arms": len(names),
        "chosen": {name: count / max(1, len(scores)) for name, count in wins.items()},
    }


def _balanced(right: np.ndarray, labels: np.ndarray, weight: np.ndarray, n_classes: int) -> np.ndarray:
    """Weighted balanced accuracy of every arm, (arms,); NaN when a class has no weight."""
    one_hot = np.eye(n_classes)[labels] * weight[:, None]  # (n, K)
    present = np.bincount(labels, minlength=n_classes) > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = (right @ one_hot) / one_hot.sum(0)
    return recall[:, present].mean(axis=1)
