"""Predictions of every row by a pipeline that never saw it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from offshelf.evaluate.predictions import Predictions
from offshelf.evaluate.rows import Rows
from offshelf.evaluate.splits import Fold, inner_folds
from offshelf.transfer.heads import chosen
from offshelf.transfer.pipelines import Arm, fit_pipeline, make_pipeline


def cross_predict(
    arm: Arm,
    features: np.ndarray,
    rows: Rows,
    folds: Sequence[Fold],
    *,
    seed: int = 0,
    after_fold: Callable[[int], None] = lambda n: None,
    **settings: Any,
) -> Predictions:
    """Fit ``arm`` on each fold's training rows and predict its test rows.

    Parameters
    ----------
    features : (n, D) of the n rows.
    rows : their labels, and what must stay together.
    folds : outer folds; inner ones for regularisation are drawn inside each training part.
    settings : passed to `make_pipeline` (copies, code_dim, hidden_dim, memory).
    """
    started = time.perf_counter()
    labels, n_classes = rows.labels, len(rows.classes)
    found = Predictions(
        arm,
        np.full((len(labels), n_classes), np.nan),
        np.full(len(labels), -1),
        np.full(len(labels), -1),
    )
    for number, fold in enumerate(folds):
        train, test = np.asarray(fold.train), np.asarray(fold.test)
        inside = rows.clusters(train)
        pipeline = make_pipeline(arm, inner=inner_folds(labels[train], inside, seed=seed), seed=seed, **settings)
        fit_pipeline(pipeline, features[train], labels[train], inside)
        # A class that is absent from the training part keeps probability 0 rather than shifting its neighbours.
        spread = np.zeros((len(test), n_classes))
        spread[:, pipeline.classes_] = pipeline.predict_proba(features[test])
        found.probabilities[test] = spread
        found.predicted[test] = pipeline.predict(features[test])
        found.fold[test] = number
        found.chosen[fold.name] = chosen(pipeline[-1])
        after_fold(1)
    found.seconds = time.perf_counter() - started
    return found
