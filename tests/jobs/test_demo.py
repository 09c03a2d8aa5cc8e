from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_runs_and_prints_table_and_report(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "offshelf.cli", "demo", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "reproductive + svm-rbf" in done.stdout
    assert str(tmp_path / "run" / "report.html") in done.stdout
    assert 100_000 < (tmp_path / "run" / "report.html").stat().st_size < 2_000_000
