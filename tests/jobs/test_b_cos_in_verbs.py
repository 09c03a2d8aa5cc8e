"""B-cos networks through the verbs: trained, used, explained, read as features, refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from offshelf.backbones.b_cosification import BCosNetwork
from offshelf.backbones.load import load_backbone
from offshelf.errors import BackboneError, UsageError
from offshelf.interpret.b_cos_explanation import explain_b_cos
from offshelf.jobs.common import Common
from offshelf.jobs.finetune import finetune
from offshelf.jobs.fit import fit
from offshelf.jobs.predict import predict
from offshelf.pretrain.spark import SparK
from tests.conftest import write_folder

QUIET = Common(quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    root = tmp_path_factory.mktemp("b_cos")
    data = write_folder(root / "data", per_class=20)
    run = finetune(
        str(data), backbone="test_resnet.offshelf_finetune_cifar10", b_cos=2.0, epochs=6, image_size=32, batch_size=8,
        learning_rate=2e-2, trunk_scale=1.0, out=root / "run", common=QUIET,
    )  # fmt: skip
    return run, data


def test_the_product_is_a_b_cos_network_that_explains_its_answers(trained: tuple[Any, Path]) -> None:
    run, _ = trained
    assert run.results["arms"][0]["metrics"]["balanced_accuracy"]["value"] > 0.5
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert config["architecture"] == "b_cos" and config["model_args"]["base"] == "test_resnet"
    assert (config["pretrained_cfg"]["mean"], config["pretrained_cfg"]["std"]) == ([0, 0, 0], [1, 1, 1])
    model: Any = load_backbone(run.folder, num_classes=None)
    assert isinstance(model, BCosNetwork) and model.b == 2
    assert "as a B-cos network (B = 2)" in model.card.note
    found = explain_b_cos(model, torch.rand(2, 3, 32, 32))
    assert found.remainder.abs().max() < 1e-4 < found.contributions.abs().max()


def test_predict_and_fit_take_it_and_it_goes_on(trained: tuple[Any, Path], tmp_path: Path) -> None:
    run, data = trained
    rows = predict(run.folder, [str(data / "disc")], common=QUIET).table.to_pylist()
    assert len(rows) == 20
    assert sum(row["label"] == "disc" for row in rows) > 10
    fitted = fit(str(data), backbones=[str(run.folder)], heads=["logistic"], out=tmp_path / "fit", common=QUIET)
    assert fitted.results["arms"][0]["metrics"]["balanced_accuracy"]["value"] > 0.5
    again = finetune(
        str(data),
        backbone=str(run.folder),
        epochs=1,
        image_size=32,
        batch_size=16,
        out=tmp_path / "again",
        common=QUIET,
    )
    assert isinstance(load_backbone(again.folder), BCosNetwork)


def test_what_does_not_fit_is_said_before_any_training(trained: tuple[Any, Path], tmp_path: Path) -> None:
    run, data = trained
    with pytest.raises(UsageError, match="b_cos=0.5: expected 1 or more"):
        finetune(str(data), backbone="test_resnet.random", b_cos=0.5, out=tmp_path / "a", common=QUIET)
    with pytest.raises(BackboneError, match="does not know: stages.0.blocks.0.mlp .*GlobalResponseNormMlp"):
        finetune(str(data), backbone="convnextv2_atto.random", b_cos=2, out=tmp_path / "b", common=QUIET)
    with pytest.raises(UsageError, match="B-cos network with B = 2 already"):
        finetune(str(data), backbone=str(run.folder), b_cos=3, image_size=32, out=tmp_path / "c", common=QUIET)
    with pytest.raises(BackboneError, match="no sparse twins for BCosResNet"):
        SparK(load_backbone(run.folder), 64)
