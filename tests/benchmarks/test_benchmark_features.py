"""Both sides of the feature benchmark compute the same thing, and the record says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import features, memory
from benchmarks._process import Measured
from benchmarks.keeping import pictures
from benchmarks.timm_loop import _bounds
from offshelf.errors import DataError


@pytest.fixture
def odd_pictures(tmp_path: Path) -> Path:
    """Six smooth pictures whose sides cannot be halved."""
    root = tmp_path / "odd"
    root.mkdir()
    rows, columns = np.mgrid[:51, :43]
    for number in range(6):
        random = np.random.default_rng(number)
        waves = [np.sin(rows / (3 + 4 * a) + columns / (3 + 4 * b) + number) for a, b in random.random((3, 2))]
        Image.fromarray((127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)).save(root / f"{number}.png")
    return root


def test_the_whole_comparison_on_a_toy(odd_pictures: Path, in_this_process: list[str]) -> None:
    names = ["test_byobnet.random", "test_resnet.random"]
    kept = features.measure(names, str(odd_pictures), None, rounds=1, threads=1, command="a command")
    assert [target.split(":")[1] for target in in_this_process] == [
        "write_backbones", "run", "run", "offshelf_features", "offshelf_features", "offshelf_features",
    ]  # fmt: skip
    assert kept["settings"]["images"] == 6
    assert [each["name"] for each in kept["contestants"]][0] == "timm loop"
    assert kept["contestants"][0]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    for each in kept["contestants"]:
        assert 6 / each["images_per_second"] == pytest.approx(each["rounds"][0]["seconds"], abs=0.001)
    for backbone, width in zip(kept["backbones"], (256, 96)):
        assert backbone["width"] == width
        assert "random weights" in backbone["label"]
        # the same tiles through the same weights: anything cut, resized or ordered otherwise falls far below
        assert backbone["exact_to_timm"]["centred_min"] > 0.999
        assert backbone["offshelf_to_timm"]["plain_min"] > 0.99
        assert backbone["second_run_is_equal"] is True
        assert backbone["exact_to_timm"]["largest_difference"] < 0.2 * backbone["exact_to_timm"]["typical_size"]
    speed, alike = features.tables(kept)
    assert [row[0] for row in alike.rows] == names
    assert len(speed.rows) == 5
    assert all(len(row) == len(table.header) for table in (speed, alike) for row in table.rows)


def test_random_backbones_see_pictures_before_they_are_measured(odd_pictures: Path, tmp_path: Path) -> None:
    from benchmarks._process import Watch
    from benchmarks.feature_contestants import write_backbones
    from offshelf.backbones.load import load_backbone

    write_backbones(Watch(), ["test_resnet.random"], str(tmp_path / "b"), pictures(str(odd_pictures)))
    settled, drawn = load_backbone(tmp_path / "b" / "0"), load_backbone("test_resnet.random")
    assert float(drawn.bn1.running_var.min()) == 1.0
    assert float(settled.bn1.running_var.std()) > 0.0
    assert (settled.conv1.weight == drawn.conv1.weight).all() if hasattr(drawn.conv1, "weight") else True
    assert not settled.training


@pytest.mark.parametrize("length", [7, 8, 13, 50])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_the_loop_cuts_as_numpy_splits(length: int, parts: int) -> None:
    sizes = [len(part) for part in np.array_split(np.arange(length), parts)]
    assert np.diff(_bounds(length, parts)).tolist() == sizes


def measured(seconds: float, **facts: object) -> Measured:
    return Measured(seconds, seconds, 1.0, 1.0, 0.0, {"prepared": 2.0}, dict(facts))


def test_the_steady_rate_leaves_preparation_out() -> None:
    assert features.steady_rate(measured(12.0), 50) == 5.0
    ticks = [(4.0, 16), (6.0, 16), (7.0, 11), (7.5, 0)]
    assert features.steady_rate(measured(8.0, ticks=ticks, computed=43), 43) == pytest.approx(27 / 3.5)
    assert features.steady_rate(measured(8.0, ticks=[(4.0, 16), (4.1, 0)], computed=16), 16) is None
    assert features.steady_rate(measured(8.0, ticks=ticks, computed=0), 43) is None, "all came out of the cache"


def test_pictures_are_spread_evenly_and_counted(odd_pictures: Path) -> None:
    assert [Path(path).name for path in pictures(str(odd_pictures), 3)] == ["0.png", "2.png", "4.png"]
    with pytest.raises(DataError, match="7 pictures asked for, 6 are there"):
        pictures(str(odd_pictures), 7)
    with pytest.raises(DataError, match="no pictures"):
        pictures("a-set-that-is-not")


def test_memory_is_tabled_for_every_number(odd_pictures: Path, in_this_process: list[str]) -> None:
    kept = memory.measure(["test_resnet.random"], str(odd_pictures), [2, 4], threads=1, command="a command")
    assert [row["images"] for row in kept["rows"]] == [2, 4]
    # 4 tiles x 96 channels x 4 bytes a picture
    assert kept["rows"][1]["offshelf"]["result_mb"] == pytest.approx(4 * 4 * 96 * 4 / 2**20, abs=0.005)
    assert all(row[who]["peak_memory_mb"] > 0 for row in kept["rows"] for who in memory.CONTESTANTS)
    (table,) = memory.tables(kept)
    assert [row[0] for row in table.rows] == ["2", "4"]
    assert all(len(row) == len(table.header) for row in table.rows)
