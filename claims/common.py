"""What every claim shares: where the data lies, how a difference is judged, and how a result is kept."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from offshelf.engine.files import read_json, write_json
from offshelf.engine.runs import machine, versions
from offshelf.errors import DataError

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "claims" / "results"
SHOWN, NOT_SHOWN, CONTRADICTED = "shown", "not shown at this scale", "contradicted"


def data_folder(name: str) -> Path:
    """A real data set by name: below ``OFFSHELF_DATA``, or where a checkout keeps it.

    Raises
    ------
    DataError
        Saying where it was looked for.
    """
    root = Path(os.environ.get("OFFSHELF_DATA") or PROJECT.parent / "shared" / "data")
    if not (root / name).is_dir():
        raise DataError(f"{name}: no such data set in {root}; set OFFSHELF_DATA to the folder that holds it.")
    return root / name


def better(low: float, high: float, margin: float = 0.0) -> str:
    """Verdict on a paired difference whose 95 % interval is [low, high].

    Shown when it lies above ``-margin`` (at least as good within the margin; better for margin 0), contradicted when
    below it, else not shown at this scale.
    """
    if low > -margin:
        return SHOWN
    return CONTRADICTED if high < -margin else NOT_SHOWN


def together(verdicts: list[str]) -> str:
    """A claim of several parts: shown when all are, contradicted when any is."""
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    return SHOWN if all(verdict == SHOWN for verdict in verdicts) else NOT_SHOWN


@dataclass
class Clock:
    """Seconds since it was made."""

    started: float

    @classmethod
    def start(cls) -> Clock:
        """Start counting."""
        return cls(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return round(time.perf_counter() - self.started, 1)


def commit() -> str:
    """The commit that is checked out, with ``+`` when files differ from it."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "src", "claims/*.py"], cwd=PROJECT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def keep(slug: str, version: int, result: dict[str, Any], clock: Clock) -> Path:
    """Write ``claims/results/<slug>.json``: the result with machine, commit, versions, seconds and date."""
    record = {
        "method": slug,
        "version": version,
        "command": f"python -m claims {slug}",
        **result,
        "seconds": clock.seconds,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "commit": commit(),
        "versions": versions(),
    }
    return write_json(RESULTS / f"{slug}.json", record)


def read(slug: str) -> dict[str, Any] | None:
    """A kept result, or None."""
    path = RESULTS / f"{slug}.json"
    return read_json(path) if path.is_file() else None


def paired_interval(
    values_a: np.ndarray, values_b: np.ndarray, units: np.ndarray, seed: int = 0, n_boot: int = 2000
) -> dict[str, float]:
    """Mean of ``a - b`` over seeds and rows with an interval over units (patients) and seeds drawn again.

    Parameters
    ----------
    values_a, values_b : (seeds, n) per-row scores whose mean is the metric; one row where nothing depends on a seed.
    units : (n,) integers; drawn as wholes.
    """
    draws = np.random.default_rng([seed, 11])
    n_units = int(units.max()) + 1
    n_seeds = max(len(values_a), len(values_b))
    a, b = (np.broadcast_to(v, (n_seeds, v.shape[1])) for v in (values_a, values_b))
    differences = np.empty(n_boot)
    for i in range(n_boot):
        weight = np.bincount(draws.integers(0, n_units, n_units), minlength=n_units)[units].astype(float)
        chosen = draws.integers(0, n_seeds, n_seeds)
        differences[i] = ((a[chosen] - b[chosen]).mean(0) * weight).sum() / weight.sum()
    low, high = np.percentile(differences, [2.5, 97.5])
    return {"difference": float((a - b).mean()), "low": float(low), "high": float(high)}
