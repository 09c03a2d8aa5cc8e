"""One audit: all checks on one reading of the data."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from offshelf.data.columns import notes
from offshelf.data.summary import class_counts, count_groups, count_unlabelled, fingerprint, split_counts
from offshelf.engine.console import Console
from offshelf.engine.runs import cpu_name
from offshelf.evaluate.audit.balance import balance
from offshelf.evaluate.audit.files import files
from offshelf.evaluate.audit.fingerprints import fingerprints
from offshelf.evaluate.audit.ground import ground_of
from offshelf.evaluate.audit.label_errors import label_errors
from offshelf.evaluate.audit.leaks import leaks
from offshelf.evaluate.audit.material import Material, gather
from offshelf.evaluate.audit.more_labels import more_labels
from offshelf.evaluate.audit.near_duplicates import find_copies, near_duplicates
from offshelf.evaluate.audit.origins import origins
from offshelf.evaluate.audit.overall import overall
from offshelf.evaluate.audit.shortcuts import shortcuts
from offshelf.evaluate.groups import united


def audit_results(
    dataset: Dataset,
    source: str,
    backbone: str,
    *,
    seed: int = 0,
    source_column: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Everything the report of an audit shows; ``cost.total_seconds`` is filled in by the job.

    Raises
    ------
    DataError
        When no picture can be read, or the source column is not there.
    """
    material = gather(dataset, source, backbone, seed, console or Console(quiet=True), source_column)
    checks = run_checks(material)
    name = Path(source).name or source
    found = overall(checks)
    return {
        "title": f"{name}: audit of {material.n_found:,} pictures",
        "verb": "audit",
        "classes": material.classes,
        "data": _data(dataset, source, material),
        "backbone": material.card.to_dict() | {"label": material.card.label},
        **found,
        "checks": checks,
        "cost": {
            "total_seconds": None,
            **{f"{key}_seconds": round(value, 2) for key, value in material.seconds.items()},
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
        },
    }


def run_checks(material: Material) -> list[dict[str, Any]]:
    """All checks in the order of the report."""
    checks: list[dict[str, Any]] = []

    def timed(name: str, step: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = step()
        material.seconds[name] = time.perf_counter() - started
        return result

    def check(name: str, step: Callable[[], dict[str, Any]]) -> None:
        checks.append(timed(name, step))
        material.console.say(f"  {checks[-1]['title']}: {checks[-1]['level']}")

    pairs, compared = timed("copies", lambda: find_copies(material))
    material.units = united(len(material), material.groups, pairs)
    ground = ground_of(material)
    check("files", lambda: files(material, pairs))
    check("near_duplicates", lambda: near_duplicates(material, pairs, compared))
    check("leaks", lambda: leaks(material, pairs))
    check("balance", lambda: balance(material))
    check("fingerprints", lambda: fingerprints(material.looks, ground))
    check("shortcuts", lambda: shortcuts(ground))
    check("origins", lambda: origins(material, ground))
    check("label_errors", lambda: label_errors(ground))
    check("more_labels", lambda: more_labels(ground))
    return checks


def _data(dataset: Dataset, source: str, material: Material) -> dict[str, Any]:
    return {
        "source": source,
        "n": material.n_found,
        "n_used": len(material),
        "fingerprint": fingerprint(material.keys, material.label_texts),
        "class_counts": class_counts(dataset) if material.several or material.classes else {},
        "splits": split_counts(dataset),
        "groups": count_groups(dataset),
        "unlabelled": count_unlabelled(dataset),
        "notes": notes(dataset),
    }
