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
from offshelf.evaluate.metrics import ClassCounts, class_counts
from offshelf.evaluate.resampling import resampled_weights
from offshelf.evaluate.seeds import over_seeds

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


def alike(low: float, high: float, margin: float) -> str:
    """Verdict on a difference said to be smaller than ``margin``: shown inside it, contradicted wholly outside."""
    if -margin < low and high < margin:
        return SHOWN
    return CONTRADICTED if low > margin or high < -margin else NOT_SHOWN


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

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        head, changed = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "src", "claims/*.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


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


def seeded_interval(
    labels: np.ndarray,
    a: np.ndarray,
    b: np.ndarray | None,
    units: np.ndarray,
    metric: str,
    seed: int = 0,
    n_boot: int = 2000,
) -> dict[str, float]:
    """A metric of predictions, or its paired difference, with an interval over units (patients) and seeds drawn again.

    For metrics that are no mean over rows: they are worked out anew in every resample. A resample draws units as wholes
    and seeds, the same for ``a`` and ``b``, and takes the mean over the seeds drawn.

    Parameters
    ----------
    labels : (n,) class numbers 0 to K - 1.
    a, b : (seeds, n) predicted class numbers; one row where nothing depends on a seed. Without ``b`` the metric of
        ``a`` itself is given.
    units : (n,) integers 0 to G - 1.
    metric : "accuracy", "balanced_accuracy" or "macro_f1".

    Returns
    -------
    dict
        ``difference`` (``value`` without ``b``), ``low``, ``high``.
    """
    n_seeds = max(len(a), 1 if b is None else len(b))
    point, drawn = _by_seed(labels, a, units, metric, seed, n_boot)
    if b is not None:
        point_b, drawn_b = _by_seed(labels, b, units, metric, seed, n_boot)
        point, drawn = point - point_b, drawn - drawn_b  # (seeds,), (seeds, n_boot); one row serves all seeds
    low, high = np.percentile(over_seeds(drawn, n_seeds, seed), [2.5, 97.5])
    return {"value" if b is None else "difference": float(point.mean()), "low": float(low), "high": float(high)}


def mean_interval(values: np.ndarray, key: str = "difference", n_boot: int = 2000, seed: int = 0) -> dict[str, float]:
    """Mean of ``(seeds, n)`` numbers, one a picture, with an interval by drawing pictures and seeds again.

    As `seeded_interval`, for what is a mean over pictures: ``key`` names it, ``low`` and ``high`` are its interval.
    """
    units = np.arange(values.shape[1])
    drawn = [values @ weights / weights.sum(axis=0) for weights in resampled_weights(units, n_boot, seed)]
    low, high = np.percentile(over_seeds(np.concatenate(drawn, axis=1), len(values), seed), [2.5, 97.5])
    return {key: float(values.mean()), "low": float(low), "high": float(high)}


def _by_seed(
    labels: np.ndarray, predictions: np.ndarray, units: np.ndarray, metric: str, seed: int, n_boot: int
) -> tuple[np.ndarray, np.ndarray]:
    """The metric of each seed's predictions ``(seeds,)`` and in every resample of units ``(seeds, n_boot)``."""
    n_classes = int(labels.max()) + 1
    point = [_metric(class_counts(labels, row, n_classes), metric)[0] for row in predictions]
    parts = [
        [_metric(class_counts(labels, row, n_classes, weights), metric) for row in predictions]
        for weights in resampled_weights(units, n_boot, seed)
    ]
    return np.array(point), np.concatenate([np.stack(part) for part in parts], axis=1)


def _metric(counts: ClassCounts, name: str) -> np.ndarray:
    metrics = {
        "accuracy": counts.accuracy,
        "balanced_accuracy": counts.balanced_accuracy,
        "macro_f1": counts.macro(counts.f1),
    }
    return metrics[name]
