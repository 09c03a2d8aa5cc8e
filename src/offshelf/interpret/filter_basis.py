"""The axes along which filters differ most: scaling, and principal components found in one pass.

As in CNN Filter DB (arXiv 2203.15331, section 3): every filter is divided by its largest absolute weight, and all
components of the scaled filters are kept. Only the sums and products of the k² weights are held, so that any number of
filters needs the same few hundred bytes, and two sets are joined by adding theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np


def scaled(filters: np.ndarray) -> np.ndarray:
    """Filters ``(n, k * k)`` with a largest absolute weight of 1; filters of zeros stay zeros. Keeps single precision.

    Raises
    ------
    ValueError
        When a weight is NaN or infinite.
    """
    rows = np.asarray(filters)
    if not np.issubdtype(rows.dtype, np.floating) or rows.dtype == np.float16:
        rows = rows.astype(np.float32 if rows.dtype == np.float16 else np.float64)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    if not np.isfinite(largest).all():
        raise ValueError("filters hold NaN or infinite weights; expected numbers")
    largest[largest == 0] = 1
    return rows / largest


@dataclass
class Moments:
    """How many filters there are, and the sums ``(d,)`` and products ``(d, d)`` of their weights."""

    n: int
    total: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, filters: np.ndarray) -> Moments:
        """Those of filters ``(n, d)``, in double precision."""
        rows = np.asarray(filters, dtype=np.float64)
        return cls(len(rows), rows.sum(axis=0), rows.T @ rows)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.total + other.total, self.products + other.products)

    @property
    def mean(self) -> np.ndarray:
        """Mean filter ``(d,)``."""
        return self.total / max(self.n, 1)

    @property
    def covariance(self) -> np.ndarray:
        """Covariance ``(d, d)``, divided by ``n - 1``; zeros for fewer than two filters."""
        if self.n < 2:
            return np.zeros_like(self.products)
        return (self.products - self.n * np.outer(self.mean, self.mean)) / (self.n - 1)


class FilterBasis:
    """Principal components of scaled filters: an exact basis in one pass and constant memory.

    ``fit`` takes filters ``(n, k * k)``, ``fit_batches`` any number of such blocks, and `FilterBasis.of` sums that were
    taken elsewhere. Filters are scaled here (`scaled`); give them raw.

    Attributes
    ----------
    mean_ : (d,)
        The mean scaled filter.
    components_ : (d, d)
        One component a row, the one of most variance first; its largest weight is positive.
    explained_variance_ratio_ : (d,)
        Their shares of the variance, which sum to 1 (all 0 where filters do not differ).
    n_filters_ : int
    """

    mean_: np.ndarray
    components_: np.ndarray
    explained_variance_ratio_: np.ndarray
    n_filters_: int

    def fit(self, filters: Any) -> FilterBasis:
        """Learn the basis of raw filters ``(n, k * k)``."""
        return self.fit_batches([np.asarray(filters)])

    def fit_batches(self, batches: Iterable[np.ndarray]) -> FilterBasis:
        """Learn the basis of raw filters that come block by block."""
        blocks = iter(batches)
        moments = Moments.of(scaled(next(blocks)))
        for block in blocks:
            moments = moments + Moments.of(scaled(block))
        return self._learn(moments)

    @classmethod
    def of(cls, moments: Moments) -> FilterBasis:
        """The basis of scaled filters of which only the moments are left."""
        return cls()._learn(moments)

    def _learn(self, moments: Moments) -> FilterBasis:
        variances, vectors = np.linalg.eigh(moments.covariance)
        variances, components = np.clip(variances[::-1], 0, None), vectors.T[::-1]
        largest = np.abs(components).argmax(axis=1)
        self.components_ = components * np.sign(components[np.arange(len(components)), largest])[:, None]
        whole = variances.sum()
        self.explained_variance_ratio_ = variances / whole if whole > 0 else variances
        self.mean_ = moments.mean
        self.n_filters_ = moments.n
        return self

    def transform(self, filters: Any) -> np.ndarray:
        """Coefficients ``(n, d)`` of raw filters ``(n, d)``."""
        rows = scaled(np.asarray(filters))
        return (rows - self.mean_.astype(rows.dtype)) @ self.components_.T.astype(rows.dtype)

    def inverse_transform(self, coefficients: Any) -> np.ndarray:
        """Scaled filters again from their coefficients; exact, since no component is left out."""
        return np.asarray(coefficients) @ self.components_ + self.mean_
