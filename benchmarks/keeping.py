"""Where the pictures lie, and how a result is written down with what it depends on."""

from __future__ import annotations

import os
import subprocess
import time
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
QUIET_SHARE = 0.1  # likewise, share of the processors' time that went to others


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


class Quiet:
    """How busy others kept the machine: before a benchmark began, and while it ran."""

    def __init__(self) -> None:
        self.load_before = round(os.getloadavg()[0], 2)
        self._started, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def numbers(self) -> dict[str, float | None]:
        """``load_before``: processes that wanted a processor in the minute before; ``others_share``: of all the
        processors' time since, what went to processes that are not ours (null where the system does not tell).
        """
        if self._busy is None:
            return {"load_before": self.load_before, "others_share": None}
        available = (time.monotonic() - self._started) * (os.cpu_count() or 1)
        others = (_busy_seconds() or 0.0) - self._busy - (_own_seconds() - self._own)
        return {"load_before": self.load_before, "others_share": round(max(0.0, others) / max(available, 1e-9), 3)}


def _busy_seconds() -> float | None:
    """Seconds that all processors together have worked since the system started; time stolen by a host counts."""
    status = Path("/proc/stat")
    if not status.is_file():
        return None
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = map(
        int, status.read_text().split("\n")[0].split()[1:9]
    )
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Processor seconds of this process and of its finished children."""
    return sum(os.times()[:4])


def record(benchmark: str, command: str, settings: Mapping[str, Any], quiet: Quiet, **found: Any) -> dict[str, Any]:
    """A result with everything it depends on; no host or user names."""
    return {
        "benchmark": benchmark,
        "command": command,
        "settings": dict(settings),
        **quiet.numbers(),
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
