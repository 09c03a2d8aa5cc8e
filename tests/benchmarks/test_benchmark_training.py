"""Both loops of the training benchmark do the same work, and every part makes its table."""

from __future__ import annotations

import pytest

from benchmarks import training
from offshelf.errors import UsageError


def test_the_bare_loop_and_the_engine_end_with_the_same_loss(in_this_process: list[str]) -> None:
    kept = training.measure("toy", ["engine"], rounds=1, threads=1, command="a command")
    bare, ours = kept["parts"][0]["contestants"]
    assert (bare["name"], ours["name"]) == ("bare loop", "offshelf")
    assert ours["last_loss"] == pytest.approx(bare["last_loss"], rel=1e-4)
    assert bare["ratio"]["median"] == 1.0 and bare["unit"] == "step"
    assert len(training.tables(kept)[0].header) == 6


def test_every_part_makes_tables_whose_rows_fit(in_this_process: list[str]) -> None:
    kept = training.measure("toy", ["augmentation", "precision", "mask"], rounds=1, threads=1, command="a command")
    assert [each["part"] for each in kept["parts"]] == ["augmentation", "augmentation", "precision", "mask"]
    for table in training.tables(kept):
        assert len(table.rows) in (2, 3)
        assert all(len(row) == len(table.header) for row in table.rows)


def test_unknown_names_are_answered() -> None:
    with pytest.raises(UsageError, match="did you mean 'engine'"):
        training.measure("toy", ["engin"], 1, 1, "")
    with pytest.raises(UsageError, match="expected one of toy, small"):
        training.measure("large", ["engine"], 1, 1, "")
