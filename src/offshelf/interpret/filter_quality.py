"""How good the filters of a convolution layer look, told from its weights alone.

The measures of CNN Filter DB (Gavrikov and Keuper, CVPR 2022, arXiv 2203.15331, section 4): sparsity, variance entropy
and the entropy above which a layer looks like one that was drawn at random; and the orthogonality of whole filters.
All take raw weights, as they lie in the network: normalisation layers are not folded in.

Departures: the paper sets no cut-offs for what is "sparse" and what is "of low diversity", so ours have names here
(`SPARSE_SHARE`, `LOW_DIVERSITY`). The variances come from the eigenvalues of the k²-by-k² covariance in double
precision and not from a singular value decomposition of all filters, which gives the same numbers in one pass. The
threshold was fitted to 3 x 3 filters, so that layers of other kernels have none and are not called random.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

SPARSE_EPS = 0.01  # of the layer's largest weight: a filter below it does nothing (the paper's)
SPARSE_SHARE = 0.25  # ours: a layer with at least this share of such filters is called sparse
LOW_DIVERSITY = 0.5  # ours: a layer whose entropy is below this share of its threshold is called of low diversity
FEWEST = 16  # filters below which the threshold says nothing (it is negative at two)
# Lower edge of the entropy of random normal layers over log2 of the number of filters, as the authors fitted it.
RISE, MIDDLE, STEEPNESS, FLOOR = 1.2618047, 2.30436435, 0.88767525, -0.31050834
ROUNDING = 1e-24  # variance, relative to the mean square, that is nothing but rounding: filters are equal

SPARSE, LOW, RANDOM_LIKE = "sparse", "low diversity", "random-like"


@dataclass(frozen=True)
class LayerQuality:
    """What `layer_quality` finds in one layer; plain numbers, NaN or None where one is not defined."""

    n: int  # filters: one for each pair of an output and an input channel (of its group)
    kernel: tuple[int, int]
    sparsity: float
    entropy: float
    clean_entropy: float
    threshold: float | None  # None for kernels other than 3 x 3
    orthogonality: float
    largest: float

    @property
    def relative_entropy(self) -> float | None:
        """Entropy over its threshold: 1 and above as random filters have it, near 0 where all filters are alike."""
        return None if self.threshold is None or self.n < FEWEST else self.entropy / self.threshold

    @property
    def flags(self) -> tuple[str, ...]:
        """What is degenerate about the layer: any of "sparse", "low diversity" and "random-like"; mostly nothing."""
        relative, found = self.relative_entropy, []
        if self.sparsity >= SPARSE_SHARE:
            found.append(SPARSE)
        if relative is not None and relative < LOW_DIVERSITY:
            found.append(LOW)
        if relative is not None and relative >= 1:
            found.append(RANDOM_LIKE)
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        told = asdict(self) | {"kernel": list(self.kernel)}
        return told | {"relative_entropy": self.relative_entropy, "flags": list(self.flags)}


def as_filters(weight: Any) -> np.ndarray:
    """Weights ``(O, I, k, k)`` as filters ``(O * I, k * k)``, row by row, in double precision; a copy."""
    array = as_array(weight)
    return array.reshape(-1, array.shape[-2] * array.shape[-1])


def as_array(weight: Any) -> np.ndarray:
    """A tensor or an array in double precision; always a copy, so that nothing done to it reaches the network."""
    if isinstance(weight, torch.Tensor):
        return np.array(weight.detach().to("cpu", torch.float64))
    return np.array(weight, dtype=np.float64)


def sparsity(weight: Any) -> float:
    """Share of filters in which no weight reaches a hundredth of the layer's largest weight.

    Parameters
    ----------
    weight : (O, I, k, k) or (n, k * k)
        Raw weights of one layer. A layer of zeros has sparsity 1.
    """
    filters = _rows(weight)
    return float(_silent(filters).mean()) if len(filters) else math.nan


def variance_entropy(filters: Any) -> float:
    """Entropy (base 10) of the variance along the principal axes of filters ``(n, k * k)``; 0 where all are equal.

    At most ``log10(k * k)``, 0.9542 for 3 x 3, where the filters spread alike in every direction.
    """
    rows = _rows(filters)
    if len(rows) < 2:
        return 0.0
    return entropy_of_covariance(np.cov(rows, rowvar=False), float(np.square(rows).mean()))


def entropy_of_covariance(covariance: np.ndarray, mean_square: float) -> float:
    """`variance_entropy` from the filters' covariance and mean square, for filters that are seen once only."""
    variances = np.clip(np.linalg.eigvalsh(covariance), 0, None)
    whole = variances.sum()
    if whole <= ROUNDING * mean_square:
        return 0.0
    shares = variances[variances > 0] / whole  # 0 log 0 = 0
    return float(abs(shares @ np.log10(shares)))


def clean_entropy(weight: Any) -> float:
    """`variance_entropy` of the filters that `sparsity` does not count; 0 where fewer than two are left."""
    filters = _rows(weight)
    return variance_entropy(filters[~_silent(filters)])


def entropy_threshold(n: float) -> float:
    """The entropy above which ``n`` filters of 3 x 3 look like random ones; says nothing below 16 filters.

    A logistic curve over log2(n), fitted by the paper's authors to the lower edge of random normal layers.
    """
    return RISE / (1 + math.exp(-STEEPNESS * (math.log2(n) - MIDDLE))) + FLOOR


def orthogonality(weight: Any) -> float:
    """1 minus the mean absolute cosine between the whole filters ``(I * k * k)`` of two different output channels.

    1 for filters at right angles, 0 for filters that are the same up to a factor; a filter of zeros is at right angles
    to all. NaN for a single output channel.
    """
    array = as_array(weight)
    rows = array.reshape(len(array), -1)
    if len(rows) < 2:
        return math.nan
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    total, block = 0.0, 2048  # output channels at a time: the table of cosines of a wide layer is large
    for start in range(0, len(units), block):
        total += float(np.abs(units[start : start + block] @ units.T).sum())
    total -= float(np.square(units).sum())  # the diagonal
    return float(np.clip(1 - total / (len(rows) * (len(rows) - 1)), 0, 1))


def layer_quality(weight: Any) -> LayerQuality:
    """All measures of one convolution layer.

    Parameters
    ----------
    weight : (O, I, k, k)
        Raw weights, tensor or array; I counts the input channels of a group. The tensor is not touched.

    Raises
    ------
    ValueError
        For weights of another number of dimensions, or none at all.
    """
    array = as_array(weight)
    if array.ndim != 4 or not array.size:
        raise ValueError(f"weights of shape {array.shape}: expected (outputs, inputs, height, width), none of them 0")
    filters = as_filters(array)
    kernel = (int(array.shape[2]), int(array.shape[3]))
    return LayerQuality(
        n=len(filters),
        kernel=kernel,
        sparsity=sparsity(filters),
        entropy=variance_entropy(filters),
        clean_entropy=clean_entropy(filters),
        threshold=entropy_threshold(len(filters)) if kernel == (3, 3) else None,
        orthogonality=orthogonality(array),
        largest=float(np.abs(array).max()),
    )


def _rows(weight: Any) -> np.ndarray:
    array = as_array(weight)
    return array if array.ndim == 2 else as_filters(array)


def _silent(filters: np.ndarray) -> np.ndarray:
    """Which filters ``(n, k * k)`` have no weight of a hundredth of the largest one; all of a layer of zeros."""
    sizes = np.abs(filters).max(axis=1, initial=0)
    return (sizes < SPARSE_EPS * sizes.max(initial=0)) | (sizes == 0)
