"""One inspection: networks are taken in one by one, their filters graded, and all of them compared."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import resource
import time
from collections.abc import Sequence
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
from offshelf.interpret.cnn_filter_db import FilterDatabase, of_kernel
from offshelf.interpret.filter_comparison import DRAW, compare_filters
from offshelf.interpret.inspection_verdict import summary_of, verdict
from offshelf.interpret.locality_look import hint, sentences
from offshelf.interpret.networks import Network

LOOKS: dict[str, str] = {"locality": "offshelf.interpret.locality_look:look"}
"""What else to look for in a network: key of results.json -> "module:function".

The function takes ``(model, pictures, seed)``, where ``pictures`` is a Dataset or None, and gives what it found as JSON
takes it, or None where the network has nothing of the kind. A network without filters to look at is refused only when
all of these give None. What they find stands in results.json under their key, by the network's label.
"""

DRAWN = 24  # filters of a layer that are drawn
STARTS = (10_001, 10_002)  # added to the seed: two random starts of a design, far from the seeds that people use


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
    kept, hidden = folder / "filters.parquet", folder / ".starts.parquet"
    study, controls = (FilterDatabase(path, kernel, most, seed) for path in (kept, hidden))
    try:
        told = _gather(networks, study, controls, pictures, seed, console)
        gathered = time.perf_counter()
        comparison = compare_filters(study, controls, seed, console) if study.layers else {}
    finally:
        study.close()
        controls.close()
        hidden.unlink(missing_ok=True)
        if not filters:
            kept.unlink(missing_ok=True)
    layers = [layer.as_dict() for layer in study.layers]
    write_layers(folder / "layers.csv", layers)
    layers = [row | {"drawn": drawn} for row, drawn in zip(layers, told.pop("drawn"))]
    for one in told["networks"]:
        one |= summary_of([row for row in layers if row["network"] == one["label"]])
    said = verdict(told["networks"], layers, comparison.get("axes", []), told["left_out"])
    attention = sentences(told.get("locality") or {})
    said = said + attention if layers else attention + said
    if pictures is not None and not any(told.get(key) for key in LOOKS):
        said.append("Pictures were given, but nothing in these networks is told from pictures; they were not used.")
    whose = told["networks"][0]["label"] if len(told["networks"]) == 1 else f"{len(told['networks'])} networks"
    return {
        "title": (f"{kernel} × {kernel} filters of " if layers else "A look into ") + whose,
        "verb": "inspect",
        "kernel": kernel,
        "verdict": said,
        "filters_a_layer": most,
        **told,
        "layers": layers,
        **comparison,
        "data": {
            "source": ", ".join(network.name for network in networks),
            "fingerprint": _fingerprint(told["networks"], kernel),
        },
        "cost": {
            "total_seconds": None,
            "gather_seconds": round(gathered - started, 2),
            "compare_seconds": round(time.perf_counter() - gathered, 2),
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
            reason = None
            try:
                model = load_backbone(network.name)
                study.add(model, network.label, network.facts)
                drawn += [sample(one.weight, seed) for one in of_kernel(model, study.kernel)]
                _add_starts(model, network, controls, seed)
            except NotApplicable as error:
                reason = str(error)
            except BackboneError as error:
                if len(networks) == 1:
                    raise
                left_out.append({"label": network.label, "reason": str(error), "kind": "unreadable"})
                continue
            finally:
                advance(1)
            found = [_look(key, looks, model, network, pictures, seed) for key in LOOKS]
            if reason is not None and not any(found):
                reason += hint(model, pictures)
                left_out.append({"label": network.label, "reason": reason, "kind": "nothing to look at"})
                continue
            kept.append(
                {
                    "label": network.label,
                    "facts": network.facts,
                    "card": card_of(model).to_dict(),
                    "no_filters": reason,
                }
            )
    if not kept:
        raise NotApplicable(" ".join(one["reason"] for one in left_out))
    facts = dict.fromkeys(key for one in kept for key in one["facts"])
    told = {"networks": kept, "left_out": left_out, "facts": list(facts), "drawn": drawn}
    return told | {key: found for key, found in looks.items() if found}


def _look(key: str, looks: dict[str, Any], model: nn.Module, network: Network, pictures: Any, seed: int) -> bool:
    module, _, name = LOOKS[key].partition(":")
    found = getattr(import_module(module), name)(model, pictures, seed)
    if found is not None:
        looks[key][network.label] = found
    return found is not None


def _add_starts(model: nn.Module, network: Network, controls: FilterDatabase, seed: int) -> None:
    """Two random starts of the same design as controls; a network that timm cannot build again has none."""
    for number, offset in enumerate(STARTS, start=1):
        try:
            controls.add(fresh_copy(model, seed + offset), network.label, {DRAW: str(number)})
        except BackboneError:
            return


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
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None or value != value else value


def _fingerprint(networks: list[dict[str, Any]], kernel: int) -> str:
    hashes = [one["card"]["weights_hash"] for one in networks]
    return hashlib.sha256("|".join([str(kernel), *hashes]).encode()).hexdigest()
