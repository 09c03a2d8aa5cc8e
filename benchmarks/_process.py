"""One contestant in one child process: seconds, processor seconds, peak memory, and what it computed.

Contestants are functions ``f(watch, **arguments) -> (facts, arrays)`` named ``"module:function"``. They import what
they need, call ``watch.start()``, work, and call ``watch.stop()``: imports are not timed. A process of its own for each
means that no contestant finds another's memory, thread pools or warm caches.

The parent stays small on purpose: on Linux ``getrusage`` of a child begins at the peak of the process that started it.
The kernel's own high-water mark (``VmHWM``) has no such memory and is read where there is one.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parents[1]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Watch:
    """Seconds of the wall clock and of the processors between ``start`` and ``stop``."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = self.memory_before_mb = self.peak_memory_mb = float("nan")
        self.laps: dict[str, float] = {}

    def start(self) -> None:
        """Begin: what was imported so far is not counted."""
        self.memory_before_mb = peak_memory_mb()
        self._cpu = _cpu_seconds()
        self._started = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds since `start`."""
        return time.perf_counter() - self._started

    def lap(self, name: str) -> None:
        """Note the seconds so far; a name that was noted before keeps its first time."""
        self.laps.setdefault(name, self.elapsed())

    def stop(self) -> None:
        """End: what follows (writing results down) is not counted."""
        self.seconds = self.elapsed()
        self.cpu_seconds = _cpu_seconds() - self._cpu
        self.peak_memory_mb = peak_memory_mb()


@dataclass(frozen=True)
class Measured:
    """What one child did.

    seconds, cpu_seconds : between the contestant's start and stop; the latter over all threads and joined workers.
    peak_memory_mb : of the child itself, imports and all; memory_before_mb : its peak when the imports were done.
    worker_memory_mb : peak of its largest joined worker process, 0 where it had none.
    laps : seconds from the start to named moments. facts, arrays : what the contestant handed back.
    """

    seconds: float
    cpu_seconds: float
    peak_memory_mb: float
    memory_before_mb: float
    worker_memory_mb: float
    laps: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def numbers(self) -> dict[str, Any]:
        """What is kept of a round in a result file."""
        return {
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "peak_memory_mb": round(self.peak_memory_mb, 1),
            "memory_before_mb": round(self.memory_before_mb, 1),
            "worker_memory_mb": round(self.worker_memory_mb, 1),
            "laps": {name: round(value, 3) for name, value in self.laps.items()},
        }


def in_child(target: str, arguments: Mapping[str, Any], threads: int) -> Measured:
    """Run ``target`` in a fresh Python with so many threads, and wait for it.

    Raises
    ------
    RuntimeError
        When the child fails; its own message is in the text.
    """
    with tempfile.TemporaryDirectory(prefix="offshelf-benchmark-") as folder:
        (Path(folder) / "arguments.json").write_text(json.dumps(dict(arguments)), encoding="utf-8")
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks._process", target, folder],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{target} left with exit code {done.returncode}:\n{done.stderr[-3000:]}")
        told = json.loads((Path(folder) / "told.json").read_text(encoding="utf-8"))
        with np.load(Path(folder) / "arrays.npz") as arrays:
            return Measured(**told, arrays={name: arrays[name] for name in arrays.files})


Contestant = Callable[[int], Measured]


def in_turn(
    contestants: Mapping[str, Contestant], rounds: int, say: Callable[[str], None] = lambda line: None
) -> dict[str, list[Measured]]:
    """A B C A B C: every round runs every contestant once, so that a change of the machine's mood meets all of them."""
    found: dict[str, list[Measured]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run in contestants.items():
            measured = run(number)
            found[name].append(measured)
            say(f"round {number + 1}/{rounds}  {name:<32} {measured.seconds:8.2f} s")
    return found


def ratios(baseline: list[float], contestant: list[float]) -> dict[str, float]:
    """How many times faster: median, lowest and highest of the per-round quotients ``baseline / contestant``."""
    quotients = [before / after for before, after in zip(baseline, contestant, strict=True)]
    return {"median": statistics.median(quotients), "low": min(quotients), "high": max(quotients)}


def peak_memory_mb() -> float:
    """Highest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return _in_mb(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _in_mb(maximum: int) -> float:
    return maximum / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _child(target: str, folder: Path) -> None:
    module, function = target.split(":")
    arguments = json.loads((folder / "arguments.json").read_text(encoding="utf-8"))
    watch = Watch()
    facts, arrays = getattr(import_module(module), function)(watch, **arguments)
    told = {
        "seconds": watch.seconds,
        "cpu_seconds": watch.cpu_seconds,
        "peak_memory_mb": watch.peak_memory_mb,
        "memory_before_mb": watch.memory_before_mb,
        "worker_memory_mb": _in_mb(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss),
        "laps": watch.laps,
        "facts": facts,
    }
    np.savez(folder / "arrays.npz", **arrays)
    (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    _child(sys.argv[1], Path(sys.argv[2]))
