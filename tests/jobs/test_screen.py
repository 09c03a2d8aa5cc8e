"""`screen` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from offshelf import cli
from offshelf.errors import UsageError
from offshelf.jobs.common import Common
from offshelf.jobs.predict import predict
from offshelf.jobs.screen import Screened, screen
from tests.conftest import write_folder

QUIET = Common(quiet=True)
FAST = {
    "backbones": ["test_resnet.random"], "epochs": 14, "image_size": 32, "batch_size": 8, "learning_rate": 1e-3,
    "translation": 0.05, "folds": 3, "common": QUIET,
}  # fmt: skip
PLAIN = "test_resnet.random + finetuned"
AUGMENTED = "test_resnet.random + finetuned, augmented and balanced"


@pytest.fixture(scope="module")
def screened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Screened, Path]:
    root = tmp_path_factory.mktemp("screen")
    data = write_folder(root / "data", per_class=12)
    return screen(str(data), out=root / "run", **FAST), data


def test_every_arm_predicts_every_picture_once(screened: tuple[Screened, Path]) -> None:
    run, _ = screened
    results = json.loads((run.folder / "results.json").read_text())
    assert [arm["name"] for arm in results["arms"]] == [PLAIN, AUGMENTED]
    table = pq.read_table(run.folder / "predictions.parquet").to_pylist()
    for arm in results["arms"]:
        mine = [row for row in table if row["arm"] == arm["name"]]
        assert len({row["id"] for row in mine}) == len(mine) == 36
        right = np.mean([row["label"] == row["predicted"] for row in mine])
        rates = results["screening"][arm["name"]]
        assert rates["accuracy"]["value"] == pytest.approx(right)
        assert rates["sensitivity"]["value"] == pytest.approx(right)
        assert arm["metrics"]["accuracy"]["value"] == pytest.approx(right)
        for name in ("precision", "specificity", "f1"):
            assert arm["metrics"][f"weighted_{name}"]["value"] == pytest.approx(rates[name]["value"])
        assert np.array(arm["confusion"]).sum() == 36
    best = next(arm for arm in results["arms"] if arm["name"] == results["best"])
    assert best["metrics"]["balanced_accuracy"]["value"] > 0.6
    assert results["protocol"]["label"] == "screening/v1"
    assert sum(fold["n_test"] for fold in results["protocol"]["folds"]) == 36
    assert results["controls"]["blank_centre"]["blanked"]["n"] == 36
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines() if line]
    assert len(lines) == 2 * 3 * 14  # arms, folds, epochs


def test_the_page_shows_where_it_looked(screened: tuple[Screened, Path]) -> None:
    run, _ = screened
    shown = run.results["saliency"]
    assert len(shown) == 6  # two of each class
    page = (run.folder / "report.html").read_text()
    assert "Where it looked" in page and "Weighted specificity" in page
    for one in shown:
        assert len(one["images"]) == 2 and all(image in page for image in one["images"])
        assert one["path"].startswith(one["truth"] + "/") and one["predicted"] in ("across", "disc", "down")
        assert 1 / 3 <= one["confidence"] <= 1


def test_its_run_predicts_new_files(screened: tuple[Screened, Path]) -> None:
    run, data = screened
    found = predict(run.folder, [str(data)], common=QUIET).table.to_pylist()
    assert len(found) == 36
    right = np.mean([row["label"] == Path(row["path"]).parts[-2] for row in found])
    assert right > 0.6  # it was fitted on these


def test_what_is_printed(screened: tuple[Screened, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from offshelf.engine.console import Console

    run, _ = screened
    run.show(Console(quiet=True))
    said = " ".join(capsys.readouterr().out.split())
    assert "accuracy precision sensitivity specificity f1" in said
    value = run.results["screening"][PLAIN]["specificity"]["value"]
    assert f"{value:.3f} [" in said
    assert run.summary()["screening"][PLAIN]["specificity"]["n"] == 36


def test_two_classes_are_the_same_folds_with_a_new_head(screened: tuple[Screened, Path], tmp_path: Path) -> None:
    run, data = screened
    arguments = [
        "screen", str(data), "--only", "down", "disc", "--augmentation", "off", "--folds", "3", "--epochs", "8",
        "--backbones", "test_resnet.random", "--image-size", "32", "--batch-size", "8", "--control", "none",
        "--out", str(tmp_path / "two"), "--quiet",
    ]  # fmt: skip
    assert cli.run(arguments) == 0
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert results["classes"] == ["down", "disc"] and results["controls"]["blank_centre"] is None
    assert results["arms"][0]["per_class"]["disc"]["n"] == 12
    assert set(results["arms"][0]["roc"]) <= {"down", "disc"} and results["arms"][0]["roc"]
    fold_of = {row["id"]: row["fold"] for row in pq.read_table(run.folder / "predictions.parquet").to_pylist()}
    two = pq.read_table(tmp_path / "two" / "predictions.parquet").to_pylist()
    assert len(two) == 24
    assert all(fold_of[row["id"]] == row["fold"] for row in two)


def test_wrong_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--folds 1: expected 2 or more"):
        screen(str(folder), **(FAST | {"folds": 1}))
    with pytest.raises(UsageError, match="--rotation -1: expected 0 or more"):
        screen(str(folder), **(FAST | {"rotation": -1}))
    with pytest.raises(UsageError, match="class 'dics': not in the data; did you mean 'disc'"):
        screen(str(folder), only=["dics", "down"], out=tmp_path / "a", **FAST)
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "failed"
