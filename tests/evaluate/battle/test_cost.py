"""What a backbone costs: twins cost alike, whichever a process is asked about first."""

from __future__ import annotations

from pathlib import Path

import pytest

from offshelf.engine.work import run_jobs
from offshelf.evaluate.battle.cost import cost_job


def test_the_first_backbone_a_process_measures_costs_what_its_twin_does() -> None:
    names = ["test_byobnet.offshelf_finetune_cifar10", "test_byobnet.random"]
    jobs = [cost_job({"name": name, "path": name, "identity": [name]}, 64) for name in names]
    first, second = (
        one.value for one in sorted(run_jobs(jobs, workers=1), key=lambda one: names.index(one.job.spec["backbone"]))
    )
    assert first["images_per_second"] > 0
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not tell how much memory was used at most")
    assert first["memory_mb"] < 2 * second["memory_mb"] + 5  # it was five times as much, from modules loaded once
