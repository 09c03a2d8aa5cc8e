"""The benchmarks on a toy size, inside the test's own process: what they compute is tested, never how fast."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
if str(PROJECT) not in sys.path:
    sys.path.append(str(PROJECT))

from benchmarks import _process  # noqa: E402


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Contestants are called instead of started; the list names those that were."""
    called: list[str] = []

    def call(target: str, arguments: dict[str, Any], threads: int) -> _process.Measured:
        called.append(target)
        module, function = target.split(":")
        watch = _process.Watch()
        facts, arrays = getattr(import_module(module), function)(watch, **arguments)
        return _process.Measured(
            watch.seconds,
            watch.cpu_seconds,
            watch.peak_memory_mb,
            watch.memory_before_mb,
            0.0,
            watch.laps,
            facts,
            arrays,
        )

    for name in ("features", "memory", "probes", "parts"):
        monkeypatch.setattr(f"benchmarks.{name}.in_child", call)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    return called
