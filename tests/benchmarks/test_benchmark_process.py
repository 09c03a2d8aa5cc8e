"""A child process is measured for what it does, and for nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks._process import Measured, in_child, in_turn, ratios
from benchmarks.keeping import Quiet, _busy_seconds, _own_seconds

CONTESTANTS = """
import os
import time

import numpy as np


def work(watch, mb, seconds):
    time.sleep(0.2)
    watch.start()
    kept = np.ones(mb * 2**17)
    time.sleep(seconds)
    watch.lap("slept")
    total = 0
    while time.process_time() < 0.3:
        total += 1
    watch.stop()
    later = np.ones(200 * 2**17)
    return {"threads": os.environ["OMP_NUM_THREADS"], "later": int(later[0])}, {"sum": np.array([kept.sum()])}


def fail(watch):
    raise ValueError("the reason for it")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "made_up_contestants.py").write_text(CONTESTANTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "made_up_contestants"


def test_a_child_is_timed_between_start_and_stop(module: str) -> None:
    found = in_child(f"{module}:work", {"mb": 1, "seconds": 0.3}, threads=3)
    assert found.facts == {"threads": "3", "later": 1}
    assert found.arrays["sum"][0] == 2**17
    assert found.seconds >= found.laps["slept"] >= 0.3
    assert found.cpu_seconds <= found.seconds + 0.05, "sleep is no work"
    assert found.numbers()["laps"] == {"slept": round(found.laps["slept"], 3)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the kernel's high-water mark of a process")
def test_the_peak_is_the_childs_own_and_of_the_timed_part(module: str) -> None:
    parent = bytearray(400 * 2**20)  # getrusage of a child would begin here
    parent[:: 2**12] = b"\1" * len(parent[:: 2**12])
    found = in_child(f"{module}:work", {"mb": 100, "seconds": 0.0}, threads=1)
    assert 95 < found.peak_memory_mb - found.memory_before_mb < 120, "neither more nor less than was taken"
    assert found.peak_memory_mb < 300, "nothing of the parent, and nothing that came after the end"
    assert len(parent)


def test_a_child_that_fails_says_why(module: str) -> None:
    with pytest.raises(RuntimeError, match="the reason for it"):
        in_child(f"{module}:fail", {}, threads=1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the kernel's account of the processors")
def test_work_of_others_is_told_from_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"busy": 100.0, "own": 10.0, "clock": 0.0}
    monkeypatch.setattr("benchmarks.keeping._busy_seconds", lambda: seconds["busy"])
    monkeypatch.setattr("benchmarks.keeping._own_seconds", lambda: seconds["own"])
    monkeypatch.setattr("benchmarks.keeping.time.monotonic", lambda: seconds["clock"])
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    quiet = Quiet()
    seconds.update(busy=114.0, own=18.0, clock=10.0)
    assert quiet.numbers()["others_share"] == 0.3, "14 seconds of work, 8 of them ours, of 20 that there were"
    seconds.update(busy=107.0)
    assert quiet.numbers()["others_share"] == 0.0
    monkeypatch.undo()
    assert _busy_seconds() > _own_seconds() > 0


def test_contestants_run_in_turn() -> None:
    order: list[tuple[str, int]] = []

    def contestant(name: str):
        def run(number: int) -> Measured:
            order.append((name, number))
            return Measured(1.0, 1.0, 1.0, 1.0, 0.0)

        return run

    found = in_turn({"a": contestant("a"), "b": contestant("b")}, rounds=2)
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [len(runs) for runs in found.values()] == [2, 2]


def test_ratios_are_taken_round_by_round() -> None:
    # quotients 4, 2, 9: the quotient of the medians would be 8 / 2
    assert ratios([8.0, 4.0, 9.0], [2.0, 2.0, 1.0]) == {"median": 4.0, "low": 2.0, "high": 9.0}
    with pytest.raises(ValueError, match="shorter|longer"):
        ratios([1.0], [1.0, 2.0])
