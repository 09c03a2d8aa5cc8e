"""A database of trained convolution filters, looked at without a single picture.

CNN Filter DB: An Empirical Investigation of Trained Convolutional Filters (Gavrikov and Keuper, CVPR 2022,
arXiv 2203.15331). All k x k filters of any number of networks (3 x 3 in the paper) are collected, one for each pair of
an output and an input channel, with where they come from; `filter_quality` grades each layer, and
`FilterDatabase.distributions` compares groups of filters along common axes.

The claim: the filters of networks trained on different pictures differ little, those of different depths more; and
over-sized networks trained on little data have layers that are sparse, of low diversity or like random ones.

Departures: the depth of a layer is its place among all convolutions in the order in which the network defines them,
where the paper counts along an exported graph; the two differ for side branches. Filters are kept in single precision
(the notebook has half). Other kernel sizes than 3 x 3 can be asked for; they have no threshold of randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from offshelf.errors import BackboneError, NotApplicable, RunError
from offshelf.interpret.filter_quality import LayerQuality, layer_quality
from offshelf.interpret.filter_shift import BINS, Distributions, distributions

ROWS = 2**18  # filters of one row group, which are in memory at once: 9 MB of 3 x 3
THIRDS = ("first third", "middle third", "last third")


@dataclass(frozen=True)
class Convolution:
    """One convolution layer of a network, with its weights as they lie there."""

    name: str
    place: int  # how many convolutions are defined before it
    depth: float  # place over the last place: 0 at the first convolution, 1 at the last
    kind: str  # "dense", "depthwise" or "grouped"
    weight: torch.Tensor  # (O, I, height, width), I of a group

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width."""
        return int(self.weight.shape[2]), int(self.weight.shape[3])


@dataclass(frozen=True)
class Layer:
    """One layer of the database: where it stands, what it is, and how good it looks; its filters are apart."""

    network: str
    name: str
    place: int
    depth: float
    kind: str
    shape: tuple[int, ...]
    quality: LayerQuality
    facts: dict[str, str] = field(default_factory=dict)  # what the user says of the network: task, data, ...

    def as_dict(self) -> dict[str, Any]:
        """One flat row, as JSON takes it; a fact that has the name of a measure is marked as given."""
        told: dict[str, Any] = {"network": self.network, "layer": self.name, "place": self.place, "depth": self.depth}
        told |= {"kind": self.kind, "outputs": self.shape[0], "inputs": self.shape[1]}
        found = self.quality.as_dict()
        facts = {f"{key} (given)" if key in told or key in found else key: value for key, value in self.facts.items()}
        return told | facts | found


def convolutions(model: nn.Module) -> list[Convolution]:
    """All two-dimensional convolutions of a network, of any kernel, in the order of their definition."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    last = max(len(found) - 1, 1)
    return [
        Convolution(name, place, place / last, _kind(module), module.weight.detach())
        for place, (name, module) in enumerate(found)
    ]


def of_kernel(model: nn.Module, kernel: int, name: str = "the network") -> list[Convolution]:
    """The convolutions of ``kernel`` x ``kernel``.

    Raises
    ------
    NotApplicable
        Saying which kernels there are, when there are none of this one.
    """
    everything = convolutions(model)
    found = [one for one in everything if one.kernel == (kernel, kernel)]
    if found:
        return found
    if not everything:
        raise NotApplicable(f"{name}: it has no convolution layers, and so no filters to look at.")
    sizes: dict[tuple[int, int], int] = {}
    for one in everything:
        sizes[one.kernel] = sizes.get(one.kernel, 0) + 1
    told = ", ".join(f"{h} x {w} ({n} layer{'s' * (n > 1)})" for (h, w), n in sorted(sizes.items()))
    square = [h for h, w in sorted(sizes) if h == w and h > 1]
    advice = f" --kernel {square[0]} looks at those." if square else ""
    raise NotApplicable(f"{name}: no convolution of {kernel} x {kernel}; its kernels are {told}.{advice}")


def collect_filters(model: nn.Module, kernel: int = 3) -> pa.Table:
    """All ``kernel`` x ``kernel`` filters of a network as a table, a row a filter.

    Parameters
    ----------
    model : nn.Module
        Any network; it is not touched.

    Returns
    -------
    pyarrow.Table
        ``layer``, ``place``, ``depth``, ``kind`` and the weights ``w0`` to ``w8``, row by row of the kernel.

    Raises
    ------
    NotApplicable
        When it has no convolution of this kernel.
    """
    tables = []
    for one in of_kernel(model, kernel):
        filters = _rows(one.weight)
        n = len(filters)
        columns: dict[str, Any] = {
            "layer": pa.array([one.name] * n),
            "place": np.full(n, one.place, dtype=np.int32),
            "depth": np.full(n, one.depth, dtype=np.float32),
            "kind": pa.array([one.kind] * n),
        }
        tables.append(pa.table(columns | {f"w{i}": column for i, column in enumerate(filters.T)}))
    return pa.concat_tables(tables)


def filter_quality(model: nn.Module, kernel: int = 3) -> list[dict[str, Any]]:
    """Sparsity, entropy, orthogonality and flags of every ``kernel`` x ``kernel`` layer, a dictionary a layer.

    Raises
    ------
    NotApplicable
        When the network has no convolution of this kernel.
    BackboneError
        When a weight is NaN or infinite.
    """
    return [_layer(one, "", {}).as_dict() for one in of_kernel(model, kernel)]


def depth_third(depth: float) -> str:
    """Which third of the network a normalised depth lies in."""
    return THIRDS[0 if depth <= 1 / 3 else 1 if depth <= 2 / 3 else 2]


class FilterDatabase:
    """Filters of many networks, with the quality of every layer; in a Parquet file, or in memory without a path.

    Networks are added one after another and need not stay. With a path, the filters go to disk in row groups, and
    `batches` reads them back a row group at a time, so that hundreds of millions need no more memory than a few. The
    columns of the file: ``layer`` (its number), ``network``, ``name``, ``depth``, ``kind`` and ``w0`` to ``w8``.

    Parameters
    ----------
    path : path, optional
        The file; it is written anew.
    kernel : int
        Height and width of the filters.
    most : int, optional
        At most so many filters of a layer, drawn at random, go into the database, lest a few wide layers decide the
        distributions; the quality of a layer is always that of all its filters.
    seed : int
        The draw hangs on it.
    """

    def __init__(self, path: Path | None = None, kernel: int = 3, most: int | None = None, seed: int = 0) -> None:
        self.path, self.kernel, self.most, self.seed = path, kernel, most, seed
        self.layers: list[Layer] = []
        self._held: list[np.ndarray] = []
        self._waiting: list[tuple[int, np.ndarray]] = []
        self._writer: pq.ParquetWriter | None = None

    def add(self, model: nn.Module, name: str, facts: Mapping[str, str] | None = None) -> list[int]:
        """Take in a network's filters under a name; what is known of it (``task``, ``data``, ...) goes along.

        Returns
        -------
        list of int
            The numbers of its layers.

        Raises
        ------
        NotApplicable
            When it has no convolution of this kernel.
        BackboneError
            When a weight is NaN or infinite.
        """
        chosen = of_kernel(model, self.kernel, name)
        graded = [
            _layer(one, name, dict(facts or {})) for one in chosen
        ]  # all or none: a bad layer refuses the network
        return [self.add_layer(layer, _rows(one.weight)) for layer, one in zip(graded, chosen)]

    def add_layer(self, layer: Layer, filters: np.ndarray) -> int:
        """Take in the filters ``(n, k * k)`` of one layer; returns its number."""
        number = len(self.layers)
        self.layers.append(layer)
        if self.most is not None and len(filters) > self.most:
            random = np.random.default_rng([self.seed, number])
            filters = filters[np.sort(random.choice(len(filters), self.most, replace=False))]
        if self.path is None:
            self._held.append(np.array(filters, dtype=np.float32))
            return number
        for start in range(0, len(filters), ROWS):
            self._waiting.append((number, np.array(filters[start : start + ROWS], dtype=np.float32)))
            if sum(len(block) for _, block in self._waiting) >= ROWS:
                self._write()
        return number

    def close(self) -> None:
        """End the file; needed before it is read."""
        if self._waiting:
            self._write()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def batches(self) -> Iterator[tuple[int, np.ndarray]]:
        """The number of a layer and some of its filters ``(n, k * k)``, over and over, in the order they came in."""
        if self.path is None:
            yield from enumerate(self._held)
            return
        self.close()
        if not self.layers:
            return
        names = [f"w{i}" for i in range(self.kernel**2)]
        with pq.ParquetFile(self.path) as file:
            # One row group after another: reading the file as a stream would fetch far ahead, and so hold all of it.
            for group in range(file.num_row_groups):
                block = file.read_row_group(group, columns=["layer", *names], use_threads=False)
                numbers = block.column(0).to_numpy()
                filters = np.stack([block.column(i + 1).to_numpy() for i in range(len(names))]).T
                cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
                for start, end in zip(cuts, cuts[1:]):
                    yield int(numbers[start]), filters[start:end]

    def distributions(self, *, bins: int = BINS, seed: int = 0) -> Distributions:
        """Basis and histograms of all filters, which are read three times."""
        return distributions(self.batches, len(self.layers), bins=bins, seed=seed)

    def groups(self, of: Callable[[Layer], str | None]) -> dict[str, list[int]]:
        """Numbers of layers by what ``of`` says of each; layers of which it says nothing are left out."""
        found: dict[str, list[int]] = {}
        for number, layer in enumerate(self.layers):
            if key := of(layer):
                found.setdefault(key, []).append(number)
        return found

    def _write(self) -> None:
        """The waiting filters as one row group; constant columns take next to no room."""
        assert self.path is not None
        weights = np.concatenate([block for _, block in self._waiting]).T
        lengths = [len(block) for _, block in self._waiting]
        owners = [self.layers[number] for number, _ in self._waiting]
        columns: dict[str, Any] = {"layer": np.repeat(np.array([n for n, _ in self._waiting], np.int32), lengths)}
        columns |= {
            key: pa.DictionaryArray.from_arrays(
                np.repeat(np.arange(len(owners), dtype=np.int32), lengths), [getattr(one, key) for one in owners]
            ).cast(pa.string())
            for key in ("network", "name", "kind")
        }
        columns["depth"] = np.repeat(np.array([one.depth for one in owners], np.float32), lengths)
        columns |= {f"w{i}": np.ascontiguousarray(row) for i, row in enumerate(weights)}
        table = pa.table(columns)
        text = ["layer", "network", "name", "kind", "depth"]
        try:
            if self._writer is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pq.ParquetWriter(self.path, table.schema, compression="none", use_dictionary=text)
            self._writer.write_table(table, row_group_size=2 * ROWS)
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror or error}); free some space, or choose another "
                "folder with --out."
            ) from error
        self._waiting = []


def _layer(one: Convolution, network: str, facts: dict[str, str]) -> Layer:
    if not bool(torch.isfinite(one.weight).all()):
        raise BackboneError(
            f"{network or 'the network'}: layer {one.name} holds NaN or infinite weights; expected a network that was "
            "trained to the end without diverging. Train it again, or take an earlier checkpoint."
        )
    shape = tuple(int(side) for side in one.weight.shape)
    return Layer(network, one.name, one.place, one.depth, one.kind, shape, layer_quality(one.weight), facts)


def _rows(weight: torch.Tensor) -> np.ndarray:
    """Filters ``(O * I, k * k)`` in single precision; they may share the network's memory: nothing writes to them."""
    return weight.detach().to("cpu", torch.float32).reshape(-1, weight.shape[-2] * weight.shape[-1]).numpy()


def _kind(module: nn.Conv2d) -> str:
    if module.groups == 1:
        return "dense"
    return "depthwise" if module.groups == module.in_channels else "grouped"
