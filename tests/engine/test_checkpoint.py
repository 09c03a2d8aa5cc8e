"""Checkpoints: whole or not at all, the last two kept, foreign and damaged ones noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from offshelf.engine.checkpoint import Checkpoints
from offshelf.errors import RunError


def test_what_is_saved_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    keeper = Checkpoints(tmp_path, {"method": "mae"})
    for step in (1, 2, 3):
        keeper.save(step, {"w": torch.full((2,), float(step)), "history": [{"loss": 0.5}], "none": None})
    assert len(list(tmp_path.iterdir())) == 2
    found, damaged = keeper.latest()
    assert found is not None and found["step"] == 3 and damaged == []
    assert torch.equal(found["state"]["w"], torch.tensor([3.0, 3.0])) and found["state"]["history"] == [{"loss": 0.5}]


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b[:-40] + b"\0" + b[-39:], lambda b: b""])
def test_a_damaged_one_gives_way_to_the_one_before(tmp_path: Path, spoil) -> None:
    keeper = Checkpoints(tmp_path, {})
    keeper.save(1, {"w": torch.zeros(3)})
    last = keeper.save(2, {"w": torch.ones(3)})
    last.write_bytes(spoil(last.read_bytes()))
    found, damaged = keeper.latest()
    assert found is not None and found["step"] == 1
    assert len(damaged) == 1 and last.name in damaged[0]


def test_when_none_is_whole_it_says_so(tmp_path: Path) -> None:
    keeper = Checkpoints(tmp_path, {})
    keeper.save(1, {"w": torch.zeros(3)}).write_bytes(b"x")
    with pytest.raises(RunError, match="none of 1 checkpoints is whole.*--overwrite"):
        keeper.latest()


def test_another_training_is_refused_and_named(tmp_path: Path) -> None:
    Checkpoints(tmp_path, {"method": "mae", "data": "abc", "format": 1}).save(1, {})
    with pytest.raises(RunError, match="data was 'abc' and is now 'abd'"):
        Checkpoints(tmp_path, {"method": "mae", "data": "abd", "format": 1}).latest()
    with pytest.raises(RunError, match="format was 1 and is now 2"):
        Checkpoints(tmp_path, {"method": "mae", "data": "abc", "format": 2}).latest()


def test_an_empty_folder_holds_nothing_and_leftovers_are_ignored(tmp_path: Path) -> None:
    (tmp_path / ".step-000000001-0.pt.tmp-999999-ab").write_bytes(b"half")
    assert Checkpoints(tmp_path, {}).latest() == (None, [])
