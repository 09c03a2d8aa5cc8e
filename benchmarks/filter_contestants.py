"""What runs in a child process for the filters benchmark: comparing many filters, and grading layers, two ways each.

Filters are noise, stretched along one direction in every other layer: what is timed does not depend on their values,
and the shift between the two kinds of layer is not nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._process import Watch

LAYER = 2**18  # filters of one layer: a convolution of 512 to 512 channels
BINS = 70
Answer = tuple[dict[str, Any], dict[str, np.ndarray]]


def layers(n: int) -> Iterator[np.ndarray]:
    """Blocks of filters ``(LAYER, 9)`` float32, ``n`` in all; one block of noise serves for all of them."""
    noise = np.random.default_rng(0).normal(size=(min(LAYER, n), 9)).astype(np.float32)
    other = noise * np.array([1, 1, 1, 1, 2, 1, 1, 1, 1], dtype=np.float32)
    for number, start in enumerate(range(0, n, LAYER)):
        yield (noise, other)[number % 2][: n - start]


def streamed(watch: Watch, n: int) -> Answer:
    """Into a Parquet file layer by layer, then basis, range and histograms from three passes over it."""
    from offshelf.interpret.cnn_filter_db import FilterDatabase

    with tempfile.TemporaryDirectory() as folder:
        database = FilterDatabase(Path(folder) / "filters.parquet")
        watch.start()
        _fill(database, n)
        database.close()
        watch.lap("written")
        answer = _answer(database, n)
        watch.stop()
        size = (Path(folder) / "filters.parquet").stat().st_size
    return {"count": n, "unit": "filter", "columns": {"file, MiB": f"{size / 2**20:.0f}"}}, answer


def in_memory(watch: Watch, n: int) -> Answer:
    """The same without a file."""
    from offshelf.interpret.cnn_filter_db import FilterDatabase

    database = FilterDatabase()
    watch.start()
    _fill(database, n)
    watch.lap("written")
    answer = _answer(database, n)
    watch.stop()
    return {"count": n, "unit": "filter", "columns": {"file, MiB": "-"}}, answer


def plain(watch: Watch, n: int) -> Answer:
    """As one writes it by hand: all filters in one array, scikit-learn's components, NumPy's histograms."""
    from scipy.stats import entropy
    from sklearn.decomposition import PCA

    blocks = list(layers(n))
    watch.start()
    filters = np.concatenate(blocks)
    watch.lap("written")
    kind = np.repeat(np.arange(len(blocks)) % 2, [len(block) for block in blocks])
    largest = np.abs(filters).max(axis=1, keepdims=True)
    scaled = filters / np.where(largest == 0, 1, largest)
    pca = PCA(scaled.shape[1])
    cut = pca.fit_transform(scaled)
    low, high = float(cut.min()), float(cut.max())
    found = []
    for group in (0, 1):
        own = cut[kind == group]
        found.append([np.histogram(column, bins=BINS, range=(low, high), density=True)[0] for column in own.T])
    p, q = (np.where(np.array(one) == 0, np.finfo(np.float32).eps, np.array(one)) for one in found)
    shift = sum(a * (entropy(x, y) + entropy(y, x)) for a, x, y in zip(pca.explained_variance_ratio_, p, q))
    watch.stop()
    answer = {"ratios": pca.explained_variance_ratio_, "shift": np.array([shift])}
    return {"count": n, "unit": "filter", "columns": {"file, MiB": "-"}}, answer


def graded(watch: Watch, channels: int, count: int) -> Answer:
    """Sparsity, entropy and orthogonality of ``count`` layers of ``channels`` to ``channels``, by the library."""
    from offshelf.interpret.filter_quality import layer_quality

    weights = _weights(channels, count)
    watch.start()
    found = [layer_quality(weight) for weight in weights]
    watch.stop()
    numbers = np.array([[one.sparsity, one.entropy, one.orthogonality] for one in found])
    return {"count": count * channels**2, "unit": "filter"}, {"quality": numbers}


def graded_by_hand(watch: Watch, channels: int, count: int) -> Answer:
    """The same by singular values, and a table of all cosines."""
    weights = _weights(channels, count)
    watch.start()
    numbers = []
    for weight in weights:
        filters = weight.reshape(-1, 9)
        sparsity = (np.abs(filters).max(axis=1) < 0.01 * np.abs(filters).max()).mean()
        values = np.linalg.svd(filters - filters.mean(axis=0), full_matrices=False, compute_uv=False) ** 2
        shares = values / values.sum()
        rows = weight.reshape(channels, -1)
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = np.abs(units @ units.T)
        np.fill_diagonal(cosines, 0)
        orthogonality = 1 - cosines.sum() / (channels * (channels - 1))
        numbers.append([sparsity, -(shares * np.log10(shares)).sum(), orthogonality])
    watch.stop()
    return {"count": count * channels**2, "unit": "filter"}, {"quality": np.array(numbers)}


def _weights(channels: int, count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(size=(channels, channels, 3, 3)).astype(np.float32) for _ in range(count)]


def _fill(database: Any, n: int) -> None:
    from offshelf.interpret.cnn_filter_db import Layer
    from offshelf.interpret.filter_quality import LayerQuality

    nothing = float("nan")
    for number, filters in enumerate(layers(n)):
        ungraded = LayerQuality(len(filters), (3, 3), nothing, nothing, nothing, None, nothing, nothing)
        database.add_layer(Layer("noise", f"{number}", number, 0.0, "dense", (512, 512, 3, 3), ungraded), filters)


def _answer(database: Any, n: int) -> dict[str, np.ndarray]:
    found = database.distributions()
    even = [number for number in range(len(database.layers)) if number % 2 == 0]
    odd = [number for number in range(len(database.layers)) if number % 2]
    shift = found.distance(found.of(even), found.of(odd)) if odd else 0.0
    return {"ratios": found.basis.explained_variance_ratio_, "shift": np.array([shift])}
