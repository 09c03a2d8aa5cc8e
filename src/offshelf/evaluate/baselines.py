"""What a number must beat: chance, and always answering the commonest class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from offshelf.evaluate.splits import Fold


def baselines(labels: Sequence[int] | np.ndarray, folds: Sequence[Fold], classes: Sequence[str]) -> dict[str, Any]:
    """Chance and majority level of a measurement.

    Parameters
    ----------
    labels
        ``(n,)`` class numbers.
    folds
        The folds that are measured.
    classes
        Names of the K classes.

    Returns
    -------
    levels
        ``chance``: balanced accuracy of any answer that ignores the image, 1 over the number of classes among the
        tested rows; ``majority``: accuracy over all test rows when each fold answers the commonest class of its
        training rows (the first among equals); ``majority_class``: its name (the most frequent
        answer over the test rows).
    """
    y = np.asarray(labels)
    tested = np.concatenate([fold.test for fold in folds])
    answers: Counter[int] = Counter()
    right = 0
    for fold in folds:
        answer = int(np.argmax(np.bincount(y[fold.train], minlength=len(classes))))
        answers[answer] += len(fold.test)
        right += int(np.count_nonzero(y[fold.test] == answer))
    most = max(sorted(answers), key=lambda c: answers[c])
    return {
        "chance": 1.0 / np.unique(y[tested]).size,
        "majority": right / len(tested),
        "majority_class": str(classes[most]),
    }
