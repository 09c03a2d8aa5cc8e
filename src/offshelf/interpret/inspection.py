"""One inspection: networks are taken in one by one, their filters graded, and all of them compared."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import resource
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from offshelf.backbones.card import card_of
from offshelf.backbones.fresh import fresh_copy
from offshelf.backbones.load import load_backbone
from offshelf.engine.console import Console
from offshelf.engine.files import write_atomic
from offshelf.engine.runs import cpu_name
from offshelf.errors import BackboneError, NotApplicable
from offshelf.interpret.cnn_filter_db import THIRDS, FilterDatabase, Layer, depth_third, of_kernel
from offshelf.interpret.filter_quality import LOW, RANDOM_LIKE, SPARSE
from offshelf.interpret.filter_shift import FEWEST, Distributions, ShiftMatrix, distributions
from offshelf.interpret.locality import hint
from offshelf.interpret.networks import Network

LOOKS: dict[str, str] = {"locality": "offshelf.interpret.locality:look"}
"""What else to look for in a network: key of results.json -> "module:function".

The function takes ``(model, pictures, seed)``, where ``pictures`` is a Dataset or None, and gives what it found as JSON
takes it, or None where the network has nothing of the kind. A network without filters to look at is refused only when
all of these give None. What they find stands in results.json under their key, by the network's label.
"""

DRAWN = 24  # filters of a layer that are drawn
FRESH = (10_001, 10_002)  # added to the seed: two draws of the same design, far from the seeds people use
FLAGS = {
    SPARSE: "sparse (a quarter of the filters or more do nothing)",
    LOW: "of low diversity (the filters are nearly all of one shape)",
    RANDOM_LIKE: "like random ones (nothing tells the filters from an untrained draw)",
}


def inspect_networks(
    networks: Sequence[Network],
    folder: Path,
    *,
    kernel: int = 3,
    filters: bool = True,
    most: int | None = None,
    pictures: Any = None,
    seed: int = 0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Everything the report of an inspection shows; ``cost.total_seconds`` is filled in by the job.

    Writes ``layers.csv`` and, with ``filters``, ``filters.parquet`` into ``folder``.

    Raises
    ------
    NotApplicable
        When none of the networks has anything to look at; the message says what each has.
    BackboneError
        When the only network cannot be loaded.
    """
    console = console or Console(quiet=True)
    started = time.perf_counter()
    study = FilterDatabase(folder / "filters.parquet", kernel, most, seed)
    controls = FilterDatabase(folder / ".fresh.parquet", kernel, most, seed)
    try:
        told = _gather(networks, study, controls, pictures, seed, console)
        seconds = {"gather_seconds": round(time.perf_counter() - started, 2)}
        started = time.perf_counter()
        comparison = _compare(study, controls, seed, console) if study.layers else {}
        seconds["compare_seconds"] = round(time.perf_counter() - started, 2)
    finally:
        controls.close()
        study.close()
        (folder / ".fresh.parquet").unlink(missing_ok=True)
        if not filters:
            (folder / "filters.parquet").unlink(missing_ok=True)
    layers = [layer.as_dict() for layer in study.layers]
    write_layers(folder / "layers.csv", layers)
    for row, drawn in zip(layers, told.pop("drawn")):
        row["drawn"] = drawn
    several = told["networks"]
    for one in several:
        one |= summary_of([row for row in layers if row["network"] == one["label"]])
    return {
        "title": (f"{kernel} × {kernel} filters of " if layers else "A look into ")
        + (several[0]["label"] if len(several) == 1 else f"{len(several)} networks"),
        "verb": "inspect",
        "kernel": kernel,
        "verdict": verdict(several, layers, comparison, told["left_out"]),
        "filters_a_layer": most,
        **told,
        "layers": layers,
        **comparison,
        "data": {
            "source": ", ".join(network.name for network in networks),
            "fingerprint": _fingerprint(several, kernel),
        },
        "cost": {
            "total_seconds": None,
            **seconds,
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
        },
    }


def _gather(
    networks: Sequence[Network],
    study: FilterDatabase,
    controls: FilterDatabase,
    pictures: Any,
    seed: int,
    console: Console,
) -> dict[str, Any]:
    """Take in every network, and two fresh copies of each; what has nothing to look at is left out, with the reason."""
    looks: dict[str, dict[str, Any]] = {key: {} for key in LOOKS}
    kept: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    drawn: list[str] = []
    with console.progress("Reading networks", len(networks), "networks") as advance:
        for network in networks:
            console.say(f"Reading {network.label}")
            try:
                model = load_backbone(network.name)
            except BackboneError as error:
                if len(networks) == 1:
                    raise
                left_out.append({"label": network.label, "reason": str(error), "kind": "unreadable"})
                continue
            finally:
                advance(1)
            reason = None
            try:
                study.add(model, network.label, **network.facts)
                drawn += [sample(one.weight, seed) for one in of_kernel(model, study.kernel)]
                _add_fresh(model, network, controls, seed)
            except NotApplicable as error:
                reason = str(error)
            found = [_look(key, looks, model, network, pictures, seed) for key in LOOKS]
            if reason is not None and not any(found):
                reason += hint(model, pictures)
                left_out.append({"label": network.label, "reason": reason, "kind": "nothing to look at"})
                continue
            kept.append({"label": network.label, "facts": network.facts, "card": card_of(model).to_dict()})
            kept[-1]["no_filters"] = reason
    if not kept:
        raise NotApplicable(" ".join(one["reason"] for one in left_out))
    facts = dict.fromkeys(key for one in kept for key in one["facts"])
    return {"networks": kept, "left_out": left_out, "facts": list(facts), "drawn": drawn, **looks}


def _look(key: str, looks: dict[str, Any], model: nn.Module, network: Network, pictures: Any, seed: int) -> bool:
    module, _, name = LOOKS[key].partition(":")
    found = getattr(import_module(module), name)(model, pictures, seed)
    if found is not None:
        looks[key][network.label] = found
    return found is not None


def _add_fresh(model: nn.Module, network: Network, controls: FilterDatabase, seed: int) -> None:
    """Two draws of the same design as controls; a network that timm cannot build again has none."""
    for number, offset in enumerate(FRESH, start=1):
        try:
            controls.add(fresh_copy(model, seed + offset), network.label, draw=str(number))
        except BackboneError:
            return


def _compare(study: FilterDatabase, controls: FilterDatabase, seed: int, console: Console) -> dict[str, Any]:
    """Basis and histograms of all filters, and the shifts along every axis there is."""
    own = len(study.layers)

    def batches() -> Iterator[tuple[int, np.ndarray]]:
        for number, filters in study.batches():
            yield number, filters
            advance(len(filters))
        for number, filters in controls.batches() if controls.layers else ():
            yield own + number, filters
            advance(len(filters))

    total = sum(layer.quality.n for layer in [*study.layers, *controls.layers])
    console.say(f"Comparing {sum(layer.quality.n for layer in study.layers):,} filters")
    with console.progress("Comparing filters", 3 * total, "filters") as advance:
        found = distributions(batches, own + len(controls.layers), fit_on=range(own), seed=seed)
    networks = study.groups(lambda layer: layer.network)
    fresh = {
        draw: {name: [own + number for number in numbers] for name, numbers in groups.items()}
        for draw in ("1", "2")
        if (groups := controls.groups(lambda layer: layer.network if layer.facts["draw"] == draw else None))
    }
    matrices = _matrices(study, found, networks)
    return {
        "basis": _basis(found.basis),
        "range": [found.low, found.high],
        "distributions": {
            name: {"n": int(found.of(rows)[0].sum()), "counts": found.of(rows).tolist()} | _basis(found.basis_of(rows))
            for name, rows in networks.items()
        },
        "shifts": matrices,
        "axes": _axes(study, found, networks, fresh, matrices),
    }


def _basis(basis: Any) -> dict[str, Any]:
    return {
        "mean": basis.mean_.tolist(),
        "components": basis.components_.tolist(),
        "ratios": basis.explained_variance_ratio_.tolist(),
    }


def _matrices(study: FilterDatabase, found: Distributions, networks: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Shift matrices between networks, thirds of depth, kinds of layer, and every fact that has several values."""
    axes: list[tuple[str, str, dict[str, list[int]]]] = [
        ("networks", "Networks", networks),
        ("depth", "Thirds of depth", study.groups(lambda layer: depth_third(layer.depth))),
        ("kind", "Kinds of layer", study.groups(lambda layer: layer.kind)),
    ]
    for key in dict.fromkeys(key for layer in study.layers for key in layer.facts):
        axes.append((f"fact {key}", key.capitalize(), study.groups(lambda layer: layer.facts.get(key))))
    told = []
    for key, title, groups in axes:
        matrix = found.shifts(groups)
        if len(matrix.names) > 1:
            told.append({"key": key, "title": title} | _matrix(matrix.sorted() if key != "depth" else matrix))
    return told


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
    networks: dict[str, list[int]],
    fresh: dict[str, dict[str, list[int]]],
    matrices: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """All shifts of one kind together, to be held against each other; the last two are what chance alone gives."""

    def size(rows: Sequence[int]) -> int:
        return int(found.of(rows)[0].sum())

    def between(label: str, p: Sequence[int], q: Sequence[int]) -> dict[str, Any]:
        return {"label": label, "value": found.distance(found.of(p), found.of(q)), "n": min(size(p), size(q))}

    thirds: list[dict[str, Any]] = []
    for name, rows in networks.items():
        parts = {key: [n for n in rows if depth_third(study.layers[n].depth) == key] for key in THIRDS}
        present = [key for key in THIRDS if parts[key]]
        pairs = [(a, b) for i, a in enumerate(present) for b in present[i + 1 :]]
        thirds += [between(f"{name}: {a} and {b}", parts[a], parts[b]) for a, b in pairs]
    axes = [{"axis": "thirds of depth of a network", "points": thirds}]
    for matrix in matrices:
        if matrix["key"] == "networks" or matrix["key"].startswith("fact "):
            what = "networks" if matrix["key"] == "networks" else f"values of {matrix['key'].removeprefix('fact ')}"
            names, values, sizes = matrix["names"], matrix["values"], matrix["sizes"]
            points = [
                {"label": f"{names[i]} and {names[j]}", "value": values[i][j], "n": min(sizes[i], sizes[j])}
                for i in range(len(names))
                for j in range(i)
            ]
            axes.append({"axis": f"different {what}", "points": points})
    first, second = fresh.get("1", {}), fresh.get("2", {})
    axes += [
        {
            "axis": "a network and its own random start",
            "points": [between(name, rows, first[name]) for name, rows in networks.items() if name in first],
        },
        {
            "axis": "two random starts of a design",
            "points": [between(name, rows, second[name]) for name, rows in first.items() if name in second],
        },
        {
            "axis": "two halves of a network's filters",
            "points": [
                {"label": name, "value": found.floor(rows), "n": size(rows) // 2} for name, rows in networks.items()
            ],
        },
    ]
    for axis in axes:
        values = [one["value"] for one in axis["points"]]
        axis["median"] = statistics.median(values) if values else None
    return [axis for axis in axes if axis["points"]]


def summary_of(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """A network's layers in a few numbers; None where nothing is defined."""

    def median(key: str) -> float | None:
        known = [row[key] for row in layers if row[key] is not None and row[key] == row[key]]
        return statistics.median(known) if known else None

    flags = Counter(flag for row in layers for flag in row["flags"])
    return {
        "layers": len(layers),
        "filters": sum(row["n"] for row in layers),
        "degenerate": sum(bool(row["flags"]) for row in layers),
        "flags": {flag: flags[flag] for flag in FLAGS},
        "judged": sum(row["relative_entropy"] is not None for row in layers),
        "sparsity": median("sparsity"),
        "relative_entropy": median("relative_entropy"),
        "orthogonality": median("orthogonality"),
    }


def verdict(
    networks: list[dict[str, Any]],
    layers: list[dict[str, Any]],
    comparison: dict[str, Any],
    left_out: list[dict[str, str]],
) -> list[str]:
    """What was found, in sentences; the first one is the whole in short."""
    said = []
    if layers:
        bad = [row for row in layers if row["flags"]]
        of = f"{len(layers)} layer{'s' * (len(layers) > 1)} of {_networks(sum(one['layers'] > 0 for one in networks))}"
        if not bad:
            said.append(f"None of the {of} looks degenerate.")
        else:
            said.append(
                f"{len(bad)} of the {of} look degenerate." if len(bad) > 1 else f"1 of the {of} looks degenerate."
            )
        for flag, words in FLAGS.items():
            own = [row for row in bad if flag in row["flags"]]
            if own:
                where = Counter(row["network"] for row in own)
                most = "; ".join(f"{name} {n}" for name, n in where.most_common(4))
                rest = f"; {len(where) - 4} more networks" if len(where) > 4 else ""
                said.append(f"{len(own)} {'is' if len(own) == 1 else 'are'} {words}: {most}{rest}.")
        unjudged = sum(row["relative_entropy"] is None for row in layers)
        if unjudged:
            said.append(
                f"For {unjudged} layer{'s' * (unjudged > 1)} diversity and randomness are not judged: the threshold "
                "is one of 3 × 3 kernels, and of 16 filters or more."
            )
    medians = {axis["axis"]: axis["median"] for axis in comparison.get("axes", [])}
    if len(medians) > 1:
        told = ", ".join(f"{name} {value:.3f}" for name, value in medians.items())
        said.append(f"Median shift between {told}.")
    if left_out:
        said.append(f"Left out: {', '.join(one['label'] for one in left_out)}; the reasons stand below.")
    return said or ["There were no filters to look at; what else was found stands below."]


def _networks(n: int) -> str:
    return f"{n} networks" if n > 1 else "the network"


def sample(weight: torch.Tensor, seed: int) -> str:
    """Some filters of a layer for the page, the largest first: a byte a weight, 128 is zero, as base64."""
    filters = weight.detach().to("cpu", torch.float32).reshape(-1, weight.shape[-2] * weight.shape[-1]).numpy()
    chosen = np.random.default_rng(seed).permutation(len(filters))[:DRAWN]
    rows = filters[chosen]
    sizes = np.abs(rows).max(axis=1)
    rows = rows[np.argsort(-sizes, kind="stable")]
    drawn = np.rint(128 + 127 * rows / (float(sizes.max()) or 1.0)).astype(np.uint8)
    return base64.b64encode(drawn.tobytes()).decode("ascii")


def write_layers(path: Path, layers: list[dict[str, Any]]) -> Path:
    """One row a layer as CSV; what is not defined is an empty cell."""
    columns = list(dict.fromkeys(key for row in layers for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in layers:
        writer.writerow([_cell(row.get(key)) for key in columns])
    return write_atomic(path, text.getvalue())


def _cell(value: Any) -> Any:
    if value is None or value != value:
        return ""
    return (
        (" ".join if all(isinstance(one, str) for one in value) else _by)(value) if isinstance(value, list) else value
    )


def _by(sides: list[int]) -> str:
    return "x".join(map(str, sides))


def _fingerprint(networks: list[dict[str, Any]], kernel: int) -> str:
    hashes = [one["card"]["weights_hash"] for one in networks]
    return hashlib.sha256("|".join([str(kernel), *hashes]).encode()).hexdigest()
