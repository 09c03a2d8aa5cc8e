"""How far apart the filters of networks, depths and groups are, held against what random starts and chance give."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from offshelf.engine.console import Console
from offshelf.interpret.cnn_filter_db import THIRDS, FilterDatabase, Layer, depth_third
from offshelf.interpret.filter_basis import FilterBasis
from offshelf.interpret.filter_shift import FEWEST, Distributions, ShiftMatrix, distributions

DRAW = "draw"  # fact of a control's layers: which of the random starts it is
Groups = Mapping[str, Sequence[int]]


def compare_filters(study: FilterDatabase, controls: FilterDatabase, seed: int, console: Console) -> dict[str, Any]:
    """Basis and histograms of all filters of ``study``, and the shifts along every axis there is.

    ``controls`` holds random starts of the same networks, under the same names; they do not make the basis.

    Returns
    -------
    dict
        ``basis``, ``range``, ``distributions`` by network, ``shifts`` (matrices) and ``axes``, as
        `offshelf.report.inspection` says.
    """
    own = len(study.layers)

    def batches() -> Iterator[tuple[int, np.ndarray]]:
        for number, filters in itertools.chain(
            study.batches(), ((own + number, filters) for number, filters in controls.batches())
        ):
            yield number, filters
            advance(len(filters))

    n = sum(layer.quality.n for layer in study.layers)
    console.say(f"Comparing {n:,} filters")
    total = 3 * (n + sum(layer.quality.n for layer in controls.layers))
    with console.progress("Comparing filters", total, "filters") as advance:
        found = distributions(batches, own + len(controls.layers), fit_on=range(own), seed=seed)
    networks = study.groups(lambda layer: layer.network)
    matrices = _matrices(study, found, networks)
    return {
        "basis": _basis(found.basis),
        "range": [found.low, found.high],
        "distributions": {
            name: {"n": int(found.of(rows)[0].sum()), "counts": found.of(rows).tolist()} | _basis(found.basis_of(rows))
            for name, rows in networks.items()
        },
        "shifts": matrices,
        "axes": _axes(study, found, networks, _starts(controls, own), matrices),
    }


def _basis(basis: FilterBasis) -> dict[str, Any]:
    return {
        "mean": basis.mean_.tolist(),
        "components": basis.components_.tolist(),
        "ratios": basis.explained_variance_ratio_.tolist(),
    }


def _starts(controls: FilterDatabase, own: int) -> list[dict[str, list[int]]]:
    """Each draw of random starts as numbers of layers by network, counted on after those of the study."""
    draws: dict[str, dict[str, list[int]]] = {}
    for number, layer in enumerate(controls.layers):
        draws.setdefault(layer.facts[DRAW], {}).setdefault(layer.network, []).append(own + number)
    return list(draws.values())


def _matrices(study: FilterDatabase, found: Distributions, networks: Groups) -> list[dict[str, Any]]:
    """Shift matrices between networks, thirds of depth, kinds of layer, and every fact that has several values."""
    thirds = study.groups(lambda layer: depth_third(layer.depth))
    axes: list[tuple[str, str, Groups]] = [
        ("networks", "Networks", networks),
        ("depth", "Thirds of depth", {third: thirds[third] for third in THIRDS if third in thirds}),
        ("kind", "Kinds of layer", study.groups(lambda layer: layer.kind)),
    ]
    for key in dict.fromkeys(key for layer in study.layers for key in layer.facts):
        axes.append((f"fact {key}", key.capitalize(), study.groups(_fact(key))))
    told, seen = [], set()
    for key, title, groups in axes:
        parts = frozenset(tuple(rows) for rows in groups.values())
        matrix = found.shifts(groups)
        if len(matrix.names) > 1 and parts not in seen:  # two facts may divide the networks alike
            seen.add(parts)
            told.append({"key": key, "title": title} | _matrix(matrix if key == "depth" else matrix.sorted()))
    return told


def _fact(key: str) -> Callable[[Layer], str | None]:
    return lambda layer: layer.facts.get(key)


def _matrix(matrix: ShiftMatrix) -> dict[str, Any]:
    return {
        "names": matrix.names,
        "values": matrix.values.tolist(),
        "sizes": matrix.sizes,
        "floors": matrix.floors,
        "small": matrix.small,
    }


def _axes(
    study: FilterDatabase,
    found: Distributions,
    networks: Groups,
    starts: Sequence[Groups],
    matrices: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """All shifts of one kind together; the last two kinds are what random starts and chance give.

    The median is over pairs of groups with 10,000 filters or more, and None where there is no such pair.
    """

    def size(rows: Sequence[int]) -> int:
        return int(found.of(rows)[0].sum())

    def between(label: str, p: Sequence[int], q: Sequence[int]) -> dict[str, Any]:
        return {"label": label, "value": found.distance(found.of(p), found.of(q)), "n": min(size(p), size(q))}

    thirds = []
    for name, rows in networks.items():
        parts = {third: [n for n in rows if depth_third(study.layers[n].depth) == third] for third in THIRDS}
        present = [third for third in THIRDS if parts[third]]
        thirds += [between(f"{name}: {a} and {b}", parts[a], parts[b]) for a, b in itertools.combinations(present, 2)]
    axes: list[dict[str, Any]] = [{"axis": "thirds of depth of a network", "points": thirds}]
    for matrix in matrices:
        if title := _axis_of(matrix, len(networks)):
            axes.append({"axis": title, "points": _pairs(matrix)})
    if starts:
        points = [between(name, rows, starts[0][name]) for name, rows in networks.items() if name in starts[0]]
        axes.append({"axis": "a network and its random start", "points": points})
    if len(starts) > 1:
        points = [between(name, rows, starts[1][name]) for name, rows in starts[0].items() if name in starts[1]]
        axes.append({"axis": "two random starts of a design", "points": points})
    halves = [{"label": name, "value": found.floor(rows), "n": size(rows)} for name, rows in networks.items()]
    axes.append({"axis": "two halves of a network's filters", "points": halves})
    for axis in axes:
        large = [point["value"] for point in axis["points"] if point["n"] >= FEWEST]
        axis["median"] = statistics.median(large) if large else None
    return [axis for axis in axes if axis["points"]]


def _axis_of(matrix: dict[str, Any], networks: int) -> str | None:
    """What a matrix is called among the axes; one that says nothing new there has no name."""
    if matrix["key"] == "networks":
        return "different networks"
    if matrix["key"] == "depth":
        return "thirds of depth, networks together" if networks > 1 else None
    return f"different {matrix['key'].removeprefix('fact ')}" if matrix["key"].startswith("fact ") else None


def _pairs(matrix: dict[str, Any]) -> list[dict[str, Any]]:
    names, sizes = matrix["names"], matrix["sizes"]
    return [
        {"label": f"{names[i]} and {names[j]}", "value": matrix["values"][i][j], "n": min(sizes[i], sizes[j])}
        for i, j in itertools.combinations(range(len(names)), 2)
    ]
