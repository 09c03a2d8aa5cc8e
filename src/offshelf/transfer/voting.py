"""One-vs-one scores to votes: how a machine of pairwise deciders names one class (libsvm's rule)."""

from __future__ import annotations

import numpy as np


def class_pairs(n_classes: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, in libsvm's order; a positive pairwise score speaks for i."""
    return [(i, j) for i in range(n_classes) for j in range(i + 1, n_classes)]


def votes(pairwise: np.ndarray, n_classes: int) -> np.ndarray:
    """Count of pairs won ``(n, K)`` from pairwise scores ``(n, K (K - 1) / 2)``; zero speaks for the second class."""
    won = np.zeros((len(pairwise), n_classes))
    for column, (i, j) in enumerate(class_pairs(n_classes)):
        first = pairwise[:, column] > 0
        won[:, i] += first
        won[:, j] += ~first
    return won


def summed_margins(pairwise: np.ndarray, n_classes: int) -> np.ndarray:
    """Each class's pairwise scores added up ``(n, K)``: smoother than votes, and what probabilities are made from."""
    summed = np.zeros((len(pairwise), n_classes))
    for column, (i, j) in enumerate(class_pairs(n_classes)):
        summed[:, i] += pairwise[:, column]
        summed[:, j] -= pairwise[:, column]
    return summed


def vote_scores(pairwise: np.ndarray, n_classes: int) -> np.ndarray:
    """Votes ``(n, K)`` plus the summed pairwise scores squeezed into (-1/3, 1/3), which order classes of equal votes.

    The squeeze, ``s / (3 (|s| + 1))``, keeps every vote worth more than all scores together; it is scikit-learn's.
    """
    summed = summed_margins(pairwise, n_classes)
    return votes(pairwise, n_classes) + summed / (3.0 * (np.abs(summed) + 1.0))
