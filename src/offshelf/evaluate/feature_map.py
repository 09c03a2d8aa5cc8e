"""A picture of the feature space: the first two principal components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.decomposition import PCA

from offshelf.errors import DataError

MAX_POINTS = 2000


def feature_map(
    features: np.ndarray,
    labels: Sequence[int | None] | np.ndarray,
    seed: int = 0,
    max_points: int = MAX_POINTS,
) -> dict[str, Any]:
    """Project features on the first two principal components of the points shown.

    Parameters
    ----------
    features
        ``(n, d)`` finite, n >= 2.
    labels
        ``(n,)`` class numbers; ``None`` becomes -1.
    seed
        Draws the points when there are more than ``max_points``.
    max_points
        Most points shown; the components are those of the points shown.

    Returns
    -------
    map
        ``x``, ``y``, ``label`` (lists of equal length, in row order), ``explained`` (two shares of the variance) and
        ``method``. The sign of a component is such that its largest loading is positive. A single feature has y = 0.
    """
    x = np.asarray(features, dtype=np.float64)
    y = [-1 if label is None else int(label) for label in labels]
    if x.ndim != 2 or len(x) != len(y) or len(x) < 2 or not np.isfinite(x).all():
        raise DataError(
            f"features: shape {x.shape} for {len(y)} labels; expected finite numbers, a row a label, at least 2 rows"
        )
    rows = np.arange(len(x))
    if len(x) > max_points:
        rows = np.sort(np.random.default_rng(seed).choice(len(x), max_points, replace=False))
    shown = x[rows]
    n_components = min(2, *shown.shape)
    points, explained = np.zeros((len(rows), 2)), np.zeros(2)
    if np.ptp(shown, axis=0).any():  # identical rows have no direction
        solver = "randomized" if min(shown.shape) > 500 else "full"
        pca = PCA(n_components, svd_solver=solver, random_state=seed, iterated_power=7)
        projected = pca.fit_transform(shown)
        largest = np.abs(pca.components_).argmax(axis=1)
        signs = np.sign(pca.components_[np.arange(n_components), largest])
        points[:, :n_components] = projected * signs
        explained[:n_components] = pca.explained_variance_ratio_
    return {
        "x": points[:, 0].tolist(),
        "y": points[:, 1].tolist(),
        "label": [y[row] for row in rows],
        "explained": explained.tolist(),
        "method": "PCA of the features",
    }
