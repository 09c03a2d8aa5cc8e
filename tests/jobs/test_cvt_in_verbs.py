"""A network of ours that timm lacks goes through the verbs like any other, at sizes that its strides do not divide."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from offshelf import cli
from offshelf.backbones.load import load_backbone
from offshelf.errors import BackboneError
from offshelf.jobs.common import Common
from offshelf.jobs.fit import fit
from offshelf.jobs.predict import predict
from offshelf.jobs.pretrain import pretrain
from tests.conftest import write_folder

QUIET = Common(quiet=True)


def test_the_command_of_the_list_trains_it_and_its_product_predicts(tmp_path: Path) -> None:
    data, run = write_folder(tmp_path / "data", per_class=12), tmp_path / "run"
    words = "--backbone cvt_tiny.random --image-size 30 --epochs 6 --batch-size 8 --drop-path 0.1 --quiet --out"
    assert cli.run(["finetune", str(data), *words.split(), str(run)]) == 0
    results = json.loads((run / "results.json").read_text())
    score = results["arms"][0]["metrics"]["balanced_accuracy"]
    assert score["n"] == 8 and score["value"] > 0.6  # stripes across, stripes down and discs; chance is a third
    model = load_backbone(run, num_classes=None)
    assert model.card.architecture == "cvt_tiny" and model.card.input_size == (30, 30)
    assert model.pretrained_cfg["label_names"] == ["across", "disc", "down"]
    measured = {row["id"]: row for row in pq.read_table(run / "predictions.parquet").to_pylist()}
    table = predict(run, [str(data)], common=QUIET).table.to_pylist()
    found = {"/".join(Path(row["path"]).parts[-2:]): row for row in table}
    assert len(measured) == 8
    for name, row in measured.items():
        assert found[name]["p_down"] == pytest.approx(row["p_down"], abs=1e-5)


def test_frozen_features_of_it_serve_a_head(folder: Path, tmp_path: Path) -> None:
    settings = {
        "backbones": ["cvt_tiny.random"],
        "input_size": 46,
        "heads": ["logistic"],
        "control": "none",
        "common": QUIET,
    }
    run = fit(str(folder), out=tmp_path / "run", **settings)  # type: ignore[arg-type]
    assert run.results["backbones"][0]["width"] == 128
    assert run.results["arms"][0]["metrics"]["balanced_accuracy"]["value"] > 0.8


@pytest.mark.parametrize("method", ["spark", "selfie"])
def test_pre_training_of_convolutional_networks_refuses_it(folder: Path, tmp_path: Path, method: str) -> None:
    with pytest.raises(BackboneError, match="CvT"):
        pretrain(
            str(folder), method=method, backbone="cvt_tiny.random", image_size=64, steps=1, out=tmp_path / "run",
            common=QUIET,
        )  # fmt: skip
