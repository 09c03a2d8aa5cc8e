"""Collecting filters: what is counted, where it comes from, and that the network and the file are as they should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from torch import nn

from offshelf.errors import BackboneError, NotApplicable, RunError
from offshelf.interpret import cnn_filter_db
from offshelf.interpret.cnn_filter_db import (
    FilterDatabase,
    collect_filters,
    convolutions,
    depth_third,
    filter_quality,
)
from offshelf.interpret.filter_quality import layer_quality


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 7),
        nn.Conv2d(8, 16, 3),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.Conv2d(16, 8, 3, groups=4),
        nn.ReLU(),
    )


def test_resnet18_has_sixteen_layers_and_so_many_filters() -> None:
    model = timm.create_model("resnet18", num_classes=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table, quality = collect_filters(model), filter_quality(model)
    assert table.num_rows == 1_220_608 == 10_985_472 // 9 == sum(row["n"] for row in quality)
    assert len(quality) == 16 and quality[0]["layer"] == "layer1.0.conv1"
    assert {row["kind"] for row in quality} == {"dense"}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    # The 7 x 7 stem is the first convolution, and the three shortcuts count for depth, too.
    assert [row["place"] for row in quality][:5] == [1, 2, 3, 4, 5] and len(convolutions(model)) == 20


def test_where_filters_come_from() -> None:
    model = small()
    table = collect_filters(model)
    assert table.num_rows == 8 * 16 + 16 + 8 * 4
    layers, kinds = table.column("layer").to_pylist(), table.column("kind").to_pylist()
    found = dict.fromkeys(zip(layers, kinds, table.column("depth").to_pylist()))
    expected = [("1", "dense", 1 / 3), ("2", "depthwise", 2 / 3), ("3", "grouped", 1.0)]
    assert [(a, b, pytest.approx(c)) for a, b, c in expected] == list(found)
    rows = np.stack([table.column(f"w{i}").to_numpy() for i in range(9)], axis=1)
    assert np.array_equal(rows[5 * 8 + 3].reshape(3, 3), model[1].weight[5, 3].detach().numpy())
    assert collect_filters(model, 7).num_rows == 24 and collect_filters(model, 7).num_columns == 4 + 49


@pytest.mark.parametrize(("depth", "third"), [(0.0, 0), (1 / 3, 0), (0.34, 1), (2 / 3, 1), (0.67, 2), (1.0, 2)])
def test_thirds(depth: float, third: int) -> None:
    assert depth_third(depth) == cnn_filter_db.THIRDS[third]


def test_what_has_no_such_filters_says_what_it_has() -> None:
    with pytest.raises(NotApplicable, match="it has no convolution layers"):
        filter_quality(nn.Linear(3, 3))
    with pytest.raises(
        NotApplicable, match=r"no convolution of 5 x 5; its kernels are 3 x 3 \(3 layers\), 7 x 7 \(1 la"
    ):
        collect_filters(small(), 5)
    with pytest.raises(NotApplicable, match=r"16 x 16 \(1 layer\)\. --kernel 16 looks at those"):
        filter_quality(timm.create_model("vit_tiny_patch16_224", num_classes=0))
    with pytest.raises(NotApplicable) as told:
        filter_quality(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, (1, 3))))
    assert "1 x 1 (1 layer), 1 x 3 (1 layer)" in str(told.value) and "--kernel" not in str(told.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(bad: float) -> None:
    model = small()
    with torch.no_grad():
        model[2].weight[3, 0, 1, 1] = bad
    with pytest.raises(BackboneError, match="net: layer 2 holds NaN or infinite weights"):
        FilterDatabase().add(model, "net")
    with pytest.raises(BackboneError, match="the network: layer 2"):
        filter_quality(model)


def test_a_file_holds_what_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cnn_filter_db, "ROWS", 50)  # layers are divided over row groups, and share them
    held, filed = FilterDatabase(), FilterDatabase(tmp_path / "deep" / "f.parquet")
    for database in (held, filed):
        assert database.add(small(0), "a", {"data": "x"}) == [0, 1, 2]
        assert database.add(small(1), "b") == [3, 4, 5]

    def together(database: FilterDatabase) -> list[np.ndarray]:
        rows: dict[int, list[np.ndarray]] = {}
        for number, filters in database.batches():
            assert len(filters) <= 50 or database is held
            rows.setdefault(number, []).append(filters)
        return [np.concatenate(rows[number]) for number in range(6)]

    for one, other in zip(together(held), together(filed)):
        assert np.array_equal(one, other)
    assert np.array_equal(together(held)[0], small(0)[1].weight.detach().reshape(-1, 9).numpy())
    assert [layer.quality for layer in held.layers] == [layer.quality for layer in filed.layers]
    assert held.layers[0].quality == layer_quality(small(0)[1].weight)
    table = pq.read_table(tmp_path / "deep" / "f.parquet")
    assert table.num_rows == 2 * 176 and pq.ParquetFile(tmp_path / "deep" / "f.parquet").num_row_groups >= 6
    last = table.slice(351).to_pylist()[0]
    assert (last["layer"], last["network"], last["name"], last["kind"]) == (5, "b", "3", "grouped")
    assert last["depth"] == 1.0
    one, other = held.distributions(), filed.distributions()
    assert np.array_equal(one.counts, other.counts) and one.basis.n_filters_ == 352


def test_a_database_may_be_empty_and_is_read_again_and_again(tmp_path: Path) -> None:
    database = FilterDatabase(tmp_path / "f.parquet")
    assert list(database.batches()) == []
    database.add(small(), "a")
    first, second = list(database.batches()), list(database.batches())
    assert len(first) == len(second) == 3


def test_at_most_so_many_of_a_layer(tmp_path: Path) -> None:
    database, again, other = FilterDatabase(most=20), FilterDatabase(most=20), FilterDatabase(most=20, seed=1)
    for one in (database, again, other):
        one.add(small(), "a")
    sizes = [len(filters) for _, filters in database.batches()]
    assert sizes == [20, 16, 20]
    assert [layer.quality.n for layer in database.layers] == [128, 16, 32]  # graded by all
    drawn = [next(iter(one.batches()))[1] for one in (database, again, other)]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    everything = {row.tobytes() for row in small()[1].weight.detach().reshape(-1, 9).numpy()}
    assert {row.tobytes() for row in drawn[0]} < everything


def test_groups_and_rows() -> None:
    database = FilterDatabase()
    database.add(small(0), "a", {"data": "x", "kind": "mine"})
    database.add(small(1), "b")
    assert database.groups(lambda layer: layer.network) == {"a": [0, 1, 2], "b": [3, 4, 5]}
    assert database.groups(lambda layer: layer.facts.get("data")) == {"x": [0, 1, 2]}
    row = database.layers[1].as_dict()
    assert row["kind"] == "depthwise" and row["kind (given)"] == "mine" and row["data"] == "x"
    assert (row["outputs"], row["inputs"], row["kernel"]) == (16, 1, [3, 3])


def test_the_file_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cnn_filter_db.pq.ParquetWriter, "write_table", full)
    database = FilterDatabase(tmp_path / "f.parquet")
    database.add(small(), "a")
    with pytest.raises(RunError, match=r"f\.parquet: cannot be written \(No space left on device\)"):
        database.close()
