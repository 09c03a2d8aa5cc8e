"""Where the pictures lie, and how a result is written down with what it depends on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from offshelf.engine.runs import machine, versions
from offshelf.errors import DataError

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
ENDINGS = (".png", ".jpg", ".jpeg")
QUIET_LOAD = 1.2  # one-minute load average above which a machine is not quiet enough for absolute numbers


def pictures(source: str, most: int | None = None) -> list[str]:
    """Files of a folder, or of a data set by name, evenly spread over the sorted list.

    Parameters
    ----------
    source : str
        A folder, or a name below ``OFFSHELF_DATA`` (by default where a checkout keeps its data).
    most : int, optional
        Take so many; all by default.

    Raises
    ------
    DataError
        When there is no such folder, no picture in it, or fewer than asked.
    """
    root = Path(os.environ.get("OFFSHELF_DATA") or PROJECT.parent / "shared" / "data")
    folder = Path(source) if Path(source).is_dir() else root / source
    found = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not found:
        raise DataError(f"{source}: no pictures there or in {root}; name a folder, or set OFFSHELF_DATA.")
    if most is None:
        return found
    if not 0 < most <= len(found):
        raise DataError(f"{source}: {most} pictures asked for, {len(found)} are there; ask for 1 to {len(found)}.")
    return [found[number * len(found) // most] for number in range(most)]


def load() -> float:
    """Processes that wanted a processor during the last minute; 1 is one core kept busy."""
    return round(os.getloadavg()[0], 2)


def record(
    benchmark: str, command: str, settings: Mapping[str, Any], load_before: float, **found: Any
) -> dict[str, Any]:
    """A result with everything it depends on; no host or user names."""
    return {
        "benchmark": benchmark,
        "command": command,
        "settings": dict(settings),
        "load_before": load_before,
        **found,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }


def commit() -> str:
    """The commit that is checked out, with ``+`` when the library or the benchmarks differ from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", "src", "benchmarks/*.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
