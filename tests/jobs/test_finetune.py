from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm

from offshelf.backbones.load import load_backbone
from offshelf.errors import BackboneError, DataError, UsageError
from offshelf.jobs.common import Common
from offshelf.jobs.finetune import finetune
from offshelf.jobs.fit import Fitted, fit
from offshelf.jobs.predict import predict
from tests.conftest import write_folder

QUIET = Common(quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fitted, Path]:
    root = tmp_path_factory.mktemp("finetune")
    data = write_folder(root / "data", per_class=30)
    run = finetune(
        str(data), backbone="test_resnet.random", epochs=8, image_size=32, batch_size=16, learning_rate=1e-2,
        out=root / "run", common=QUIET,
    )  # fmt: skip
    return run, data


def test_it_learns_what_it_is_shown(trained: tuple[Fitted, Path]) -> None:
    run, _ = trained
    score = run.results["arms"][0]["metrics"]["balanced_accuracy"]
    assert score["n"] == 18  # one fifth of 90 is held out
    assert score["value"] > 0.8
    losses = [json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text().splitlines() if line]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert run.results["protocol"]["label"] == "finetune/v1"


def test_its_product_is_a_plain_timm_folder(trained: tuple[Fitted, Path]) -> None:
    run, _ = trained
    model = timm.create_model(f"local-dir:{run.folder / 'model'}", pretrained=True)
    assert model.num_classes == 3
    assert timm.data.resolve_model_data_config(model)["input_size"] == [3, 32, 32]
    ours = load_backbone(run.folder, num_classes=None)
    assert ours.card.weights == "run"
    for name, tensor in model.state_dict().items():
        assert np.array_equal(tensor.numpy(), ours.state_dict()[name].numpy()), name


def test_predict_uses_it_and_agrees_with_what_was_measured(trained: tuple[Fitted, Path]) -> None:
    run, data = trained
    measured = {row["id"]: row for row in pq.read_table(run.folder / "predictions.parquet").to_pylist()}
    assert len(measured) == 18
    found = predict(run.folder, [str(data)], common=QUIET).table.to_pylist()
    matched = 0
    for row in found:
        twin = measured.get("/".join(Path(row["path"]).parts[-2:]))
        if twin:
            matched += 1
            assert row["p_disc"] == pytest.approx(twin["p_disc"], abs=1e-5)
            assert row["label"] == twin["predicted"]
    assert matched == 18


def test_fit_takes_a_finetuned_run_as_backbone(trained: tuple[Fitted, Path], tmp_path: Path) -> None:
    run, data = trained
    again = fit(
        str(data), backbones=[str(run.folder)], heads=["logistic"], control="none", out=tmp_path / "fit", common=QUIET
    )
    assert again.results["backbones"][0]["weights"] == "run"
    assert again.results["arms"][0]["metrics"]["accuracy"]["value"] > 0.8
    assert predict(again.folder, [str(data)], common=QUIET).table.num_rows == 90


def test_equal_commands_give_equal_weights(folder: Path, tmp_path: Path) -> None:
    settings = {"backbone": "test_resnet.random", "epochs": 2, "image_size": 32, "batch_size": 8, "common": QUIET}
    for name in "ab":
        finetune(str(folder), out=tmp_path / name, **settings)
    a, b = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab")
    assert a == b
    finetune(str(folder), out=tmp_path / "c", seed=1, **settings)
    assert (tmp_path / "c" / "model" / "model.safetensors").read_bytes() != a


def test_wrong_settings_and_data_are_refused_before_work(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--epochs 0: expected 1 or more"):
        finetune(str(folder), epochs=0, common=QUIET)
    with pytest.raises(BackboneError, match="test_resnet"):
        finetune(str(folder), backbone="test_resnt.random", out=tmp_path / "a", epochs=1, common=QUIET)
    for extra in ("down", "disc"):
        for file in (folder / extra).iterdir():
            file.unlink()
        (folder / extra).rmdir()
    with pytest.raises(DataError, match="are of class 'across'; at least 2 classes"):
        finetune(str(folder), backbone="test_resnet.random", out=tmp_path / "b", epochs=1, common=QUIET)
    assert json.loads((tmp_path / "b" / "run.json").read_text())["status"] == "failed"
