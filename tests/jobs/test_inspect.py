"""`offshelf inspect` as a person runs it: names, folders, runs, tables, groups, and what cannot be looked at."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from offshelf import cli
from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.engine.runs import Run
from offshelf.errors import BackboneError, NotApplicable, UsageError
from offshelf.interpret import inspection
from offshelf.interpret.filter_quality import layer_quality
from offshelf.jobs.inspect import inspect
from offshelf.report.build import build_report

TRAINED, RANDOM = "test_resnet.offshelf_finetune_cifar10", "test_resnet.random"
VIT, CONVNEXT = "test_vit.random", "test_convnext.offshelf_spark_cifar10"


def test_a_run_is_sealed_shown_and_the_same_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "one"
    assert cli.run(["inspect", TRAINED, RANDOM, CONVNEXT, "--out", str(out), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "9 of the 20 layers of 2 networks look degenerate" in said
    assert "test_convnext.offshelf_spark_cifar10: no convolution of 3 x 3; its kernels are 2 x 2" in said
    run = Run.open(out)
    assert set(run.record["files"]) == {"results.json", "report.html", "layers.csv", "filters.parquet"}
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    results = json.loads((out / "results.json").read_text())
    again = inspect([TRAINED, RANDOM, CONVNEXT], out=tmp_path / "two").results
    for key in ("layers", "distributions", "shifts", "axes", "verdict", "data"):
        assert json.loads(json.dumps(again[key])) == results[key]
    # Every layer is that of the network, and every filter is there.
    model = load_backbone(TRAINED)
    rows = [row for row in results["layers"] if row["network"] == TRAINED]
    assert [row["layer"] for row in rows][:3] == ["conv1.0", "conv1.3", "conv1.6"]
    for row in rows:
        quality = layer_quality(model.get_submodule(row["layer"]).weight)
        assert (row["sparsity"], row["entropy"], row["n"]) == (quality.sparsity, quality.entropy, quality.n)
    filters = pq.read_table(out / "filters.parquet")
    own = filters.filter(np.array(filters["network"].to_pylist()) == TRAINED)
    first = np.stack([own.column(f"w{i}").to_numpy()[:48] for i in range(9)], axis=1)
    assert np.array_equal(first, model.get_submodule("conv1.0").weight.reshape(-1, 9).numpy())
    assert filters.num_rows == 2 * 36_656
    with (out / "layers.csv").open(newline="") as lines:
        table = list(csv.DictReader(lines))
    assert len(table) == 20 and table[0]["kernel"] == "3 3" and table[0]["data"] == "cifar10"
    assert float(table[5]["entropy"]) == results["layers"][5]["entropy"]
    before = (out / "report.html").read_bytes()
    assert len(before) < 2_000_000 and build_report(out).read_bytes() == before


def test_what_was_learnt_is_told_from_what_is_random(tmp_path: Path) -> None:
    results = inspect([TRAINED, RANDOM], filters=False, out=tmp_path / "run").results  # --no-filters
    assert not (tmp_path / "run" / "filters.parquet").exists()
    trained, random = results["networks"]
    # The smallest layer has 48 filters, of which a draw may fall a little below the edge of random ones.
    assert trained["degenerate"] == 0 and random["flags"]["random-like"] == random["layers"] - 1 == 9
    assert trained["relative_entropy"] < 0.95 < 1 <= random["relative_entropy"]
    axes = {axis["axis"]: axis for axis in results["axes"]}
    start = {point["label"]: point["value"] for point in axes["a network and its random start"]["points"]}
    chance = [point["value"] for point in axes["two random starts of a design"]["points"]]
    assert start[TRAINED] > 5 * max(chance) and start[RANDOM] < 2 * max(chance)
    assert axes["different networks"]["median"] > 5 * axes["two halves of a network's filters"]["median"]
    matrix = results["shifts"][0]
    assert matrix["key"] == "networks" and matrix["sizes"] == [36_656] * 2 and matrix["small"] == []
    # Both networks hang on the same two facts: one matrix serves for all of them.
    assert [one["key"] for one in results["shifts"]] == ["networks", "depth"]
    assert len(results["distributions"][TRAINED]["counts"]) == 9
    assert np.sum(results["distributions"][TRAINED]["counts"][0]) == 36_656


def test_another_seed_draws_other_halves_and_other_filters(tmp_path: Path) -> None:
    one = inspect([TRAINED], seed=0, filters_a_layer=500, out=tmp_path / "a").results
    two = inspect([TRAINED], seed=1, filters_a_layer=500, out=tmp_path / "b").results
    assert one["distributions"][TRAINED]["n"] == 48 + 256 + 8 * 500
    assert one["distributions"][TRAINED]["counts"] != two["distributions"][TRAINED]["counts"]
    assert [row["entropy"] for row in one["layers"]] == [row["entropy"] for row in two["layers"]]
    assert "No group has 10,000 filters" in " ".join(one["verdict"])


def test_groups_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_backbone(load_backbone("test_resnet.random_3"), tmp_path / "mine")
    (tmp_path / "n.csv").write_text(f"network,task\nmine,painting\n{TRAINED},naming\n{RANDOM},naming\n")
    results = inspect(["n.csv"], group=["learnt=" + TRAINED, f"not=./mine,{RANDOM}"]).results
    assert [one["label"] for one in results["networks"]] == ["mine", TRAINED, RANDOM]
    matrices = {one["key"]: one for one in results["shifts"]}
    assert (
        {"networks", "depth", "fact task", "fact method", "fact group"} >= set(matrices) >= {"networks", "fact group"}
    )
    group = matrices["fact group"]
    assert sorted(zip(group["names"], group["sizes"])) == [("learnt", 36_656), ("not", 2 * 36_656)]
    assert {axis["axis"] for axis in results["axes"]} >= {"different task", "different group"}
    assert (tmp_path / "runs" / "inspect-n" / "report.html").is_file()


def test_what_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match=r"test_vit.random: no convolution of 3 x 3; its kernels are 16 x 16 \(1"):
        inspect([VIT], out=tmp_path / "a")
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "failed"
    with pytest.raises(NotApplicable, match="test_vit.random: .* test_convnext"):
        inspect([VIT, CONVNEXT], out=tmp_path / "b")
    with pytest.raises(BackboneError, match="did you mean 'test_resnet'"):
        inspect(["test_resnt.random"], out=tmp_path / "c")
    assert not (tmp_path / "c").exists()
    with pytest.raises(UsageError, match="--kernel 1: expected 2 or more"):
        inspect([TRAINED], kernel=1)
    with pytest.raises(UsageError, match="--filters-a-layer 0: expected 1 or more"):
        inspect([TRAINED], filters_a_layer=0)
    assert inspect([VIT], kernel=16, out=tmp_path / "d").results["networks"][0]["layers"] == 1


def test_a_damaged_network_among_others_is_listed(tmp_path: Path) -> None:
    broken = save_backbone(load_backbone(RANDOM), tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(BackboneError, match="cut short or damaged"):
        inspect([str(broken)], out=tmp_path / "a")
    model = load_backbone(RANDOM)
    model.get_submodule("conv1.0").weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(BackboneError, match="layer conv1.0 holds NaN"):
        inspect([str(save_backbone(model, tmp_path / "nan"))], out=tmp_path / "b")
    done = inspect([str(broken), str(tmp_path / "nan"), TRAINED], out=tmp_path / "c")
    assert done.exit_code == 3 and [one["label"] for one in done.results["left_out"]] == ["broken", "nan"]
    assert [one["label"] for one in done.results["networks"]] == [TRAINED]
    assert done.results["networks"][0]["layers"] == len(done.results["layers"]) == 10


def test_another_look_keeps_a_network_without_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(inspection.LOOKS, "attention", "tests.jobs.test_inspect:look_at_attention")
    results = inspect([VIT, TRAINED], data="digits", out=tmp_path / "run").results
    assert results["attention"] == {VIT: {"pictures": 1797, "seed": 0}} and results["left_out"] == []
    vit = results["networks"][0]
    assert "16 x 16 (1 layer)" in vit["no_filters"] and vit["layers"] == 0 and vit["relative_entropy"] is None
    alone = inspect([VIT], out=tmp_path / "alone").results
    assert alone["layers"] == [] and "no convolution of 3 x 3" in (tmp_path / "alone" / "report.html").read_text()
    monkeypatch.delitem(inspection.LOOKS, "attention")
    told = inspect([TRAINED], data="digits", out=tmp_path / "other").results
    assert "Pictures were given, but nothing" in told["verdict"][-1]


def look_at_attention(model: torch.nn.Module, pictures: object, seed: int) -> dict[str, int] | None:
    if not hasattr(model, "blocks"):
        return None
    return {"pictures": len(pictures) if pictures is not None else 0, "seed": seed}  # type: ignore[arg-type]
