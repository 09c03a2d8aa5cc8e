"""How far apart the filters of two groups of layers lie: histograms along common axes, and their divergence.

As in CNN Filter DB (arXiv 2203.15331, section 3): coefficients along the principal components of all filters together,
70 bins for each over one common range, and the symmetric divergence of each component weighted by its share of the
variance. Filters are streamed three times (basis, range, histograms) and never held; what is kept is a histogram for
each layer, of which any grouping is a sum.

As in the authors' notebook, empty bins count as a density of float32's epsilon. So bins that few filters reach weigh
much, and small groups lie far from all others by chance alone. Each layer's filters are therefore put at random into
two halves as well: the shift between a group's halves is the floor below which a shift says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from offshelf.interpret.filter_basis import FilterBasis, Moments, scaled

BINS = 70
EMPTY = float(np.finfo(np.float32).eps)  # density of a bin that no filter falls into
FEWEST = 10_000  # filters below which a group's shifts are mostly chance

Batches = Callable[[], Iterable[tuple[int, np.ndarray]]]
"""Streams the same filters each time: number of the layer (0 to L - 1) and raw filters ``(n, k * k)``."""


@dataclass
class ShiftMatrix:
    """Shifts between groups: ``values`` (g, g) in the order of ``names``, and how many filters each holds."""

    names: list[str]
    values: np.ndarray
    sizes: list[int]
    floors: list[float]  # shift between two random halves of each group

    @property
    def small(self) -> list[str]:
        """Groups with fewer than 10,000 filters, whose shifts are in large part chance."""
        return [name for name, size in zip(self.names, self.sizes) if size < FEWEST]

    @property
    def pairs(self) -> np.ndarray:
        """The values above the diagonal, one for each pair of groups."""
        return self.values[np.triu_indices(len(self.names), 1)]

    def sorted(self) -> ShiftMatrix:
        """Groups in the order of their mean shift to all, the nearest to all others first."""
        order = np.argsort(self.values.mean(axis=1), kind="stable")
        return ShiftMatrix(
            [self.names[i] for i in order],
            self.values[np.ix_(order, order)],
            [self.sizes[i] for i in order],
            [self.floors[i] for i in order],
        )


@dataclass
class Distributions:
    """The basis of all filters, and each layer's histograms ``(L, 2, d, bins)`` along it, by random half."""

    basis: FilterBasis
    moments: list[Moments]
    low: float
    high: float
    counts: np.ndarray

    def of(self, layers: Sequence[int]) -> np.ndarray:
        """Histograms ``(d, bins)`` of some layers together."""
        return self.counts[list(layers)].sum(axis=(0, 1))

    def basis_of(self, layers: Sequence[int]) -> FilterBasis:
        """A basis of some layers alone; its components are their eigenimages."""
        return FilterBasis.of(_sum([self.moments[layer] for layer in layers]))

    def floor(self, layers: Sequence[int]) -> float:
        """Shift between two random halves of the same filters."""
        first, second = self.counts[list(layers)].sum(axis=0)
        return self.distance(first, second)

    def distance(self, p: np.ndarray, q: np.ndarray) -> float:
        """Shift between two sets of histograms of this basis."""
        return shift(p, q, self.basis.explained_variance_ratio_, self.low, self.high)

    def shifts(self, groups: Mapping[str, Sequence[int]]) -> ShiftMatrix:
        """Shifts between groups of layers; groups without filters are left out."""
        kept = {name: list(layers) for name, layers in groups.items() if self.of(layers).any()}
        histograms = [self.of(layers) for layers in kept.values()]
        values = np.zeros((len(kept), len(kept)))
        for i, p in enumerate(histograms):
            for j in range(i):
                values[i, j] = values[j, i] = self.distance(p, histograms[j])
        sizes = [int(one[0].sum()) for one in histograms]
        return ShiftMatrix(list(kept), values, sizes, [self.floor(layers) for layers in kept.values()])


def symmetric_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) + KL(q || p) in nats over the last axis of distributions without zeros."""
    return ((p - q) * (np.log(p) - np.log(q))).sum(axis=-1)


def shares(counts: np.ndarray, low: float, high: float) -> np.ndarray:
    """Counts ``(..., bins)`` as distributions that sum to 1, empty bins at a density of float32's epsilon."""
    counts = np.asarray(counts, dtype=np.float64)
    width = (high - low) / counts.shape[-1]
    density = counts / (counts.sum(axis=-1, keepdims=True) * width)
    density[counts == 0] = EMPTY
    return density / density.sum(axis=-1, keepdims=True)


def shift(p: np.ndarray, q: np.ndarray, ratios: np.ndarray, low: float, high: float) -> float:
    """Symmetric divergence of histograms ``(d, bins)``, each component weighted by its share of the variance."""
    return float(np.asarray(ratios) @ symmetric_kl(shares(p, low, high), shares(q, low, high)))


def distributions(
    batches: Batches, n_layers: int, *, fit_on: Sequence[int] | None = None, bins: int = BINS, seed: int = 0
) -> Distributions:
    """Basis, range and histograms of filters that are streamed three times.

    Parameters
    ----------
    batches : callable
        Gives the stream anew each time.
    n_layers : int
        How many layers it numbers.
    fit_on : sequence of int, optional
        The layers that make the basis; all by default. The range is always that of all.
    seed : int
        Which half a filter falls into hangs on it.
    """
    moments: list[Moments | None] = [None] * n_layers
    for layer, filters in batches():
        found = Moments.of(scaled(filters))
        before = moments[layer]
        moments[layer] = found if before is None else before + found
    d = next(len(one.total) for one in moments if one is not None)
    known = [one or Moments(0, np.zeros(d), np.zeros((d, d))) for one in moments]
    basis = FilterBasis.of(_sum(known if fit_on is None else [known[layer] for layer in fit_on]))
    low, high = _range(batches, basis)
    counts = np.zeros((n_layers, 2, d, bins), dtype=np.int64)
    random = np.random.default_rng(seed)
    for layer, filters in batches():
        cut = basis.transform(filters)
        counts[layer] += histograms(cut, low, high, bins, halves=random.random(len(cut), dtype=np.float32) < 0.5)
    return Distributions(basis, known, low, high, counts)


def histograms(
    coefficients: np.ndarray, low: float, high: float, bins: int = BINS, halves: np.ndarray | None = None
) -> np.ndarray:
    """Counts ``(d, bins)`` of every column of coefficients ``(n, d)``; the last bin holds its upper edge.

    With ``halves`` (n,), true or false for each row, the counts of the two are apart: ``(2, d, bins)``.
    """
    d = coefficients.shape[1]
    number = coefficients.dtype.type
    places = ((coefficients - number(low)) * number(bins / (high - low) if high > low else 0)).astype(np.int64)
    np.clip(places, 0, bins - 1, out=places)
    places += bins * np.arange(d)
    if halves is None:
        return np.bincount(places.ravel(order="K"), minlength=d * bins).reshape(d, bins)
    places += d * bins * halves[:, None]
    return np.bincount(places.ravel(order="K"), minlength=2 * d * bins).reshape(2, d, bins)


def shift_matrix(groups: Mapping[str, Any], *, bins: int = BINS, seed: int = 0) -> ShiftMatrix:
    """Shifts between groups of raw filters ``{name: (n, k * k)}`` that are in memory."""
    names, arrays = list(groups), [np.asarray(filters) for filters in groups.values()]
    found = distributions(lambda: enumerate(arrays), len(arrays), bins=bins, seed=seed)
    return found.shifts({name: [place] for place, name in enumerate(names)})


def _range(batches: Batches, basis: FilterBasis) -> tuple[float, float]:
    """Least and largest coefficient of all."""
    low, high = np.inf, -np.inf
    for _, filters in batches():
        if len(filters):
            cut = basis.transform(filters)
            low, high = min(low, float(cut.min())), max(high, float(cut.max()))
    return low, high


def _sum(moments: Sequence[Moments]) -> Moments:
    total = moments[0]
    for one in moments[1:]:
        total = total + one
    return total
