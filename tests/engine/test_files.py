from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from offshelf.engine.files import TEMPORARY, read_json, sha256_file, sweep, write_atomic, write_json
from offshelf.errors import RunError


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "value.txt"
    write_atomic(target, "old")
    write_atomic(target, b"new")
    assert target.read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["value.txt"]
    assert sha256_file(target) == "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"


def test_json_has_no_nan_and_takes_numpy(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"a": float("nan"), "b": np.float32(1.5), "c": np.arange(3), 4: (1, np.inf)})
    assert json.loads(path.read_text()) == {"a": None, "b": 1.5, "c": [0, 1, 2], "4": [1, None]}


def test_missing_and_broken_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"absent\.json: this file is missing"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text('{"a": 1')
    with pytest.raises(RunError, match=r"broken\.json: not valid JSON .*line 1"):
        read_json(tmp_path / "broken.json")


def _write_under_a_limit(path: Path, outcome: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        write_atomic(path, b"x" * 5000)
    except RunError as error:
        outcome.write_text(str(error)[:900])


def test_a_full_disk_keeps_the_old_file_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    write_atomic(path, "old")
    arguments = (path, tmp_path / "outcome")
    process = multiprocessing.get_context("fork").Process(target=_write_under_a_limit, args=arguments)
    process.start()
    process.join(30)
    said = (tmp_path / "outcome").read_text()
    assert "numbers.json: the disk is full" in said
    assert "nothing that was there before is lost" in said
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["numbers.json", "outcome"]


def test_sweep_removes_only_what_the_dead_left(tmp_path: Path) -> None:
    mine = tmp_path / f".a{TEMPORARY}{os.getpid()}-aa"
    dead = tmp_path / f".b{TEMPORARY}999999999-bb"
    mine.touch()
    dead.touch()
    assert sweep(tmp_path) == 1
    assert mine.exists()
    assert not dead.exists()
