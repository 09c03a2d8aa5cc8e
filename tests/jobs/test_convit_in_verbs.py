"""ConViT by name in the verbs: fine-tuned at a size of one's choice, its run read, inspected and fitted again."""

from __future__ import annotations

from pathlib import Path

import pytest

from offshelf import finetune, fit, inspect, predict


def test_fine_tuned_at_another_size_and_used(folder: Path, tmp_path: Path) -> None:
    run = finetune(
        str(folder), backbone="convit_mini.random", image_size=24, epochs=1, batch_size=16, precision="fp32",
        out=tmp_path / "tuned",
    )  # fmt: skip
    assert run.results["backbones"][0]["architecture"] == "convit_mini"
    found = predict(run.folder, [str(folder / "disc")])
    assert found.table.num_rows == 12
    looked = inspect([str(run.folder)], data=str(folder), filters=False, out=tmp_path / "looked")
    (study,) = looked.results["locality"].values()
    assert study["grid"] == [6, 6] and study["uniform"] == pytest.approx(3.0803, abs=5e-5)
    assert study["layers"][0]["gate"] != pytest.approx(0.7310586, abs=1e-7)  # training has moved it


@pytest.mark.parametrize(("name", "side"), [("convit_mini.random", 40), ("vit_tiny_patch16_224.random", 32)])
def test_frozen_features_at_another_size(folder: Path, tmp_path: Path, name: str, side: int) -> None:
    run = fit(
        str(folder),
        backbones=[name],
        input_size=side,
        heads=["logistic"],
        folds=2,
        out=tmp_path / "fitted",
    )
    assert run.results["backbones"][0]["input_size"] == [side, side]
    assert 0 <= run.results["arms"][0]["metrics"]["accuracy"]["value"] <= 1
