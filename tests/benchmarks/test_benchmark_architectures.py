"""Every contestant of the architectures benchmark does the work it is named for, and every part makes its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import architectures
from benchmarks.__main__ import main
from benchmarks._process import Watch
from benchmarks.halo_contestants import layer
from benchmarks.tables import tables_of
from offshelf.errors import UsageError


def test_halo_makes_its_tables(tmp_path: Path, in_this_process: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "architectures-toy.json"
    arguments = ["architectures", "--size", "toy", "--parts", "halo", "--rounds", "1", "--threads", "1"]
    assert main([*arguments, "--json", str(path)]) == 0
    kept = json.loads(path.read_text())
    assert kept["benchmark"] == "architectures" and [each["part"] for each in kept["parts"]] == ["halo", "halo"]
    layers, networks = tables_of(kept)
    assert layers.title.startswith("Attention over blocks with a halo: one layer forward and backward, 1 x 8 x 8 x 8")
    assert layers.header[-3:] == ["keys", "gathered", "MACs (million)"] and layers.header[1] == "ms a step"
    rows = {row[0]: row[-3:] for row in layers.rows}
    assert rows["windows of 3 x 3, gathered"][:2] == ["9", "9.00"] and rows["windows of 3 x 3, shifted"][1] == "-"
    assert rows["blocks of 4, halo 1"] == rows["blocks of 4, halo 1, timm's layer"] == ["36", "2.25", "0"]
    assert rows["global, sees everything"][:2] == ["64", "1.00"]
    assert len({row[-2] for row in networks.rows[:3]}) == 1  # the same parameters
    losses = [one["last_loss"] for one in kept["parts"][1]["contestants"]]
    assert networks.header[-1] == "last loss" and losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert all(len(row) == len(table.header) for table in (layers, networks) for row in table.rows)
    assert "windows of 3 x 3, shifted" in capsys.readouterr().out
    assert {target.partition(":")[0] for target in in_this_process} == {"benchmarks.halo_contestants"}


def test_b_cos_makes_its_tables(in_this_process: list[str]) -> None:
    kept = architectures.measure("toy", ["b-cos"], 1, 1, "")
    forward, step, explanation = tables_of(kept)
    assert forward.title == "B-cos networks: forward, test_resnet, 32 px, batch 2, fp32"
    assert [row[0] for row in step.rows] == ["the ordinary network", "its B-cos twin, by its recipe"]
    assert explanation.header[-1] == "logit not explained"
    plain, exact = (float(row[-1]) for row in explanation.rows)
    assert exact < 1e-4 < plain
    assert {target.partition(":")[0] for target in in_this_process} == {"benchmarks.b_cos_contestants"}


def test_filters_make_their_tables(in_this_process: list[str]) -> None:
    kept = architectures.measure("toy", ["filters"], 1, 1, "")
    compared, large, graded = tables_of(kept)
    assert compared.header[1] == graded.header[1] == "filters/s"
    assert [row[-1] for row in compared.rows[:2]] == ["-", "-"] and int(compared.rows[2][-1]) >= 0
    assert [row[0] for row in large.rows] == ["20,000 filters"]
    assert len(in_this_process) == 6


def test_contestants_that_should_agree_do() -> None:
    job = architectures.SIZES["toy"]["halo"]["layer"]
    square = {
        (form, block): float(layer(Watch(), form=form, block=block, **job)[1]["square"][0])
        for form, block in (("windows", 1), ("shifted", 1), ("blocks", 4), ("timm", 4))
    }
    assert square["windows", 1] == pytest.approx(square["shifted", 1], rel=1e-4)
    assert square["blocks", 4] != pytest.approx(square["windows", 1], rel=1e-3)


def test_unknown_names_are_answered() -> None:
    with pytest.raises(UsageError, match="did you mean 'halo'"):
        architectures.measure("toy", ["hallo"], 1, 1, "")
    with pytest.raises(UsageError, match="expected one of toy, small"):
        architectures.measure("large", ["halo"], 1, 1, "")


def test_every_part_has_its_sizes_and_its_heading() -> None:
    for named in (*architectures.SIZES.values(), architectures.HEADINGS):
        assert tuple(named) == architectures.PARTS
