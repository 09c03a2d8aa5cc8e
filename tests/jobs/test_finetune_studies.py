"""The studies that finetune makes: few labels, folds, several labels a picture, and every setting of a recipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from offshelf.cli import app
from offshelf.data.sources import open_dataset
from offshelf.engine.files import read_json
from offshelf.errors import DataError, UsageError
from offshelf.jobs.common import Common
from offshelf.jobs.finetune import finetune
from offshelf.jobs.fit import Fitted, fit
from offshelf.jobs.predict import predict
from tests.conftest import draw, write_folder

QUIET = Common(quiet=True)
SMALL: dict[str, Any] = {
    "backbone": "test_resnet.random", "image_size": 24, "batch_size": 16, "learning_rate": 1e-2, "common": QUIET,
}  # fmt: skip


def several_labels(root: Path, n: int = 60) -> Path:
    """Pictures of stripes and discs laid over each other, two a patient, with a table of which are there."""
    random = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    rows = ["path,patient,across,disc,never,names"]
    for number in range(n):
        across, disc = (int(random.random() < 0.5) for _ in range(2))
        parts = [draw(kind, number).astype(float) for kind, there in ((0, across), (2, disc)) if there]
        parts = parts or [110 + random.normal(0, 25, (48, 48, 3))]  # noise: equal pictures would be one group
        picture = np.mean(parts, axis=0).clip(0, 255)
        Image.fromarray(picture.astype(np.uint8)).save(root / f"{number:03d}.png")
        names = "|".join(name for name, there in (("across", across), ("disc", disc)) if there) or "No Finding"
        unknown = number % 10 == 3
        rows.append(f"{number:03d}.png,p{number // 2:02d},{'' if unknown else across},{disc},0,{names}")
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    return root / "table.csv"


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    root = tmp_path_factory.mktemp("curve")
    data = write_folder(root / "data", per_class=25)
    return finetune(str(data), epochs=4, labels=["100%", "6", "30%"], seeds=2, out=root / "run", **SMALL)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fitted, Path]:
    root = tmp_path_factory.mktemp("labelled")
    table = several_labels(root / "data")
    run = finetune(
        str(table), epochs=10, label_columns=["across", "disc", "never"], group_column="patient", out=root / "run",
        **SMALL,
    )  # fmt: skip
    return run, table


# ---- few labels ----------------------------------------------------------------------------------


def test_the_curve_goes_from_few_to_many_over_the_same_test_part(curve: Fitted) -> None:
    found = curve.results["label_efficiency"]
    assert [(p["labels"], p["n"]) for p in found["points"]] == [("6", 6), ("30%", 18), ("100%", 60)]
    assert found["seeds"] == [0, 1]
    assert found["protocol"]["label"] == "label-efficiency/v1"
    assert found["protocol"]["n_seeds"] == 2
    for point in found["points"]:
        cell = point["metrics"]["balanced_accuracy"]
        assert cell["n"] == 15
        assert cell["value"] == pytest.approx(np.mean(point["by_seed"]["balanced_accuracy"]))
    assert [p["epochs"] for p in found["points"]] == [12, 12, 4]  # 12 steps are what all labels get
    assert curve.results["trained"] | {"notes": []} == {
        "pictures": [60], "of": [60], "epochs": 4, "best_epoch": 4, "status": "complete", "notes": [],
    }  # fmt: skip


def test_every_training_of_the_curve_is_kept(curve: Fitted) -> None:
    kept = pq.read_table(curve.folder / "predictions.parquet").to_pylist()
    arms = sorted({row["arm"] for row in kept})
    assert len(arms) == 6
    assert arms[0] == "test_resnet.random + finetuned, 100% of the labels, seed 0"
    tested = [{row["id"] for row in kept if row["arm"] == arm} for arm in arms]
    assert all(ids == tested[0] for ids in tested)
    # the numbers of the curve follow from these rows
    rows = [row for row in kept if row["arm"] == arms[1]]
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert curve.results["label_efficiency"]["points"][2]["by_seed"]["accuracy"][1] == pytest.approx(right)
    lines = [json.loads(line) for line in (curve.folder / "metrics.jsonl").read_text().splitlines() if line]
    assert len(lines) == 2 * (12 + 12 + 4)
    assert {(line["labels"], line["seed"]) for line in lines} == {(t, s) for t in ("6", "30%", "100%") for s in (0, 1)}


def test_the_page_of_a_curve_draws_it_and_predict_uses_the_run(curve: Fitted, capsys: pytest.CaptureFixture) -> None:
    page = curve.report.read_text()
    assert "How many labels it takes" in page
    assert 'aria-label="Balanced accuracy over labelled training pictures' in page
    assert curve.results["arms"][0]["name"] == curve.results["best"] == "test_resnet.random + finetuned"
    assert any("Balanced accuracy: with 6 labels (6 pictures)" in sentence for sentence in curve.results["verdict"])
    assert predict(curve.folder, [str(curve.folder.parent / "data" / "disc")], common=QUIET).table.num_rows == 25
    curve.show(QUIET.console())
    assert "Mean of 2 seeds" in capsys.readouterr().out
    assert "label_efficiency" in curve.summary()
    assert read_json(curve.folder / "run.json")["status"] == "complete"


def test_one_number_of_labels_is_one_training(folder: Path, tmp_path: Path) -> None:
    run = finetune(str(folder), epochs=1, labels=["40%"], out=tmp_path / "run", **SMALL)
    assert "label_efficiency" not in run.results
    assert run.results["trained"]["pictures"] == [11]  # of 28: one fifth of 36 is held out, 8 pictures
    assert run.results["arms"][0]["metrics"]["accuracy"]["n"] == 8
    assert "on 11 pictures of 3 classes" in (run.folder / "model" / "config.json").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": ["0"]}, "--labels 0: nothing can be learnt"),
        ({"labels": ["0.1"]}, "--labels 0.1: expected a share .* Did you mean 10%"),
        ({"labels": ["10%", "10%"]}, "10% stands twice"),
        ({"labels": ["90"]}, "--labels 90: there are 28 labelled pictures to train on"),
        ({"labels": ["2"]}, "--labels 2: 2 of 28 .* expected 3 or more"),
        ({"labels": ["50%", "14"]}, "both are 14 of 28 pictures"),
        ({"seeds": 5}, "--seeds 5: expected several numbers of labels"),
        ({"labels": ["10%", "50%"], "seeds": 0}, "--seeds 0: expected 1 or more"),
        ({"folds": 1}, "--folds 1: expected 2 or more"),
        ({"ema": 1.0}, "--ema 1.0: expected a decay between 0 and 1"),
        ({"early_stopping": 0}, "--early-stopping 0: expected 1 or more"),
        ({"drop_path": 1.5}, r"drop_path=1.5: expected from 0 to below 1"),
        ({"rand_augment": "augmix-m3"}, "rand_augment='augmix-m3': timm cannot read it"),
        ({"multi_label": True}, "--multi-label: .* has one class a picture; expected several columns"),
        ({"label_column": "a", "label_columns": ["b", "c"]}, "--label-column and --label-columns: expected one of"),
        ({"label_columns": ["b"]}, "--label-columns b: expected two or more"),
    ],
)
def test_wrong_options_are_refused_with_what_is_expected(
    folder: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        finetune(str(folder), epochs=1, out=tmp_path / "run", **options, **SMALL)


# ---- folds ---------------------------------------------------------------------------------------


def test_folds_test_every_picture_once_groups_whole(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", per_class=12)
    rows = ["path,label,patient,split"]
    for kind in ("across", "down", "disc"):
        for number, file in enumerate(sorted((data / kind).iterdir())):
            rows.append(f"{kind}/{file.name},{kind},p{number // 2},{'train' if number < 8 else 'test'}")
    (data / "table.csv").write_text("\n".join(rows) + "\n")
    run = finetune(str(data / "table.csv"), epochs=2, folds=3, out=tmp_path / "run", **SMALL)
    kept = pq.read_table(run.folder / "predictions.parquet").to_pylist()
    assert len(kept) == len({row["id"] for row in kept}) == 36
    fold_of: dict[str, set[int]] = {}
    for row in kept:
        fold_of.setdefault(row["group"], set()).add(row["fold"])
    assert all(len(folds) == 1 for folds in fold_of.values())
    assert run.results["arms"][0]["metrics"]["accuracy"]["n"] == 36
    assert run.results["protocol"]["label"] == "finetune-folds/v1"
    assert len(run.results["protocol"]["folds"]) == 3
    assert run.results["data"]["splits"] == {}  # given splits are not used, as in fit
    # what ships was trained on all
    assert "on 36 pictures of 3 classes" in (run.folder / "model" / "config.json").read_text()
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines() if line]
    assert [line["fold"] for line in lines] == [1, 1, 2, 2, 3, 3, "all", "all"]


def test_fold_predictions_come_from_a_network_that_never_saw_the_row(tmp_path: Path) -> None:
    """Labels drawn by lot are learnt by heart on the training rows, and tell nothing of the others."""
    random = np.random.default_rng(0)
    rows = ["path,label"]
    for number in range(60):
        Image.fromarray(draw(2, number)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'ab'[random.integers(2)]}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    run = finetune(str(tmp_path / "table.csv"), epochs=8, folds=3, shift=0, out=tmp_path / "run", **SMALL)
    assert run.results["arms"][0]["metrics"]["macro_auroc"]["value"] < 0.7


# ---- several labels ------------------------------------------------------------------------------


def test_several_labels_are_learnt_and_measured(labelled: tuple[Fitted, Path]) -> None:
    run, _ = labelled
    results = run.results
    assert results["classes"] == ["across", "disc"]  # no picture has the third label
    assert "Left out, since all pictures answer alike: never." in results["data"]["notes"]
    assert results["primary_metric"] == "macro_auroc"
    assert results["protocol"]["label"] == "finetune-multi-label/v1"
    arm = results["arms"][0]
    assert arm["metrics"]["macro_auroc"]["value"] > 0.8
    assert set(arm["metrics"]) == {"macro_auroc", "macro_average_precision", "macro_f1", "brier"}
    kept = pq.read_table(run.folder / "predictions.parquet").to_pylist()
    unknown = sum(row["y_across"] is None for row in kept)
    assert 0 < unknown < len(kept)
    assert arm["per_class"]["across"]["known"] == len(kept) - unknown
    assert arm["per_class"]["disc"]["n"] == sum("disc" in row["label"] for row in kept)
    groups = {row["group"] for row in kept}
    assert len(kept) == 2 * len(groups)  # both pictures of a patient
    assert results["multi_label"] == {"measured": 2, "left_out": {}}


def test_the_page_of_several_labels_shows_what_makes_sense(
    labelled: tuple[Fitted, Path], capsys: pytest.CaptureFixture
) -> None:
    run, _ = labelled
    page = run.report.read_text()
    assert "Label by label" in page and "Mean AUROC" in page and "ROC curves" in page
    for absent in ("Confusion matrix", "Calibration</strong>", "uniform guess", "commonest class"):
        assert absent not in page
    run.show(QUIET.console())
    out = capsys.readouterr().out
    assert "average precision" in out and "across" in out
    assert run.summary()["multi_label"]["measured"] == 2


def test_predict_writes_a_probability_for_each_label(labelled: tuple[Fitted, Path]) -> None:
    run, table = labelled
    found = predict(run.folder, [str(table.parent / "000.png")], common=QUIET).table
    assert found.column_names == ["path", "labels", "p_across", "p_disc", "error"]
    row = found.to_pylist()[0]
    assert row["labels"] == [name for name in ("across", "disc") if row[f"p_{name}"] >= 0.5]
    measured = pq.read_table(run.folder / "predictions.parquet").to_pylist()
    again = {one["path"]: one for one in predict(run.folder, [str(table.parent)], common=QUIET).table.to_pylist()}
    for one in measured:
        twin = next(found for path, found in again.items() if path.endswith(one["id"]))
        assert twin["p_disc"] == pytest.approx(one["p_disc"], abs=1e-5)


def test_one_column_of_names_and_folds(tmp_path: Path) -> None:
    table = several_labels(tmp_path / "data", n=40)
    run = finetune(
        str(table), epochs=1, label_column="names", label_separator="|", group_column="patient", folds=2,
        out=tmp_path / "run", **SMALL,
    )  # fmt: skip
    assert run.results["classes"] == ["across", "disc"]
    assert run.results["protocol"]["label"] == "finetune-multi-label-folds/v1"
    assert run.results["arms"][0]["metrics"]["macro_auroc"]["n"] == 40


def test_labels_that_say_nothing_and_verbs_that_take_one_label(tmp_path: Path) -> None:
    table = several_labels(tmp_path / "data", n=20)
    rows = [line.split(",") for line in table.read_text().splitlines()]
    rows[0][3] = "nothing"
    blank = [[*row[:3], "0" if number else row[3], *row[4:]] for number, row in enumerate(rows)]
    table.write_text("\n".join(map(",".join, blank)) + "\n")
    with pytest.raises(DataError, match="none of the labels never, nothing is 1 for some pictures and 0 for others"):
        finetune(str(table), epochs=1, label_columns=["never", "nothing"], out=tmp_path / "a", **SMALL)
    with pytest.raises(DataError, match="several labels a picture; this verb takes one"):
        data = open_dataset(table, label_column=["across", "never"])
        fit(data, backbones=["test_resnet.random"], input_size=32, out=tmp_path / "b", common=QUIET)


# ---- the recipe ----------------------------------------------------------------------------------


def test_every_setting_reaches_the_training(folder: Path, tmp_path: Path) -> None:
    words = (
        "--warm-head 0.2 --layer-decay 0.7 --drop-path 0.05 --rand-augment rand-m6-mstd0.5-inc1 --crop 0.6 --mixup 0.2 "
        "--cutmix 0.5 --balanced --rotation 5 --scale 0.1 --translation 0.1 --ema 0.9 --early-stopping 2 "
        "--validation-share 0.25 --trunk-scale 0.5 --precision fp32 --accelerator cpu --epochs 3 --image-size 24 "
        "--batch-size 8 --backbone test_resnet.random --quiet --out"
    )
    command, bound, _ = app.parse_args(["finetune", str(folder), *words.split(), str(tmp_path / "run")])
    run = command(*bound.args, **bound.kwargs)
    settings = run.results["protocol"]["settings"]
    expected = {
        "warm_head": 0.2, "layer_decay": 0.7, "drop_path": 0.05, "rand_augment": "rand-m6-mstd0.5-inc1", "crop": 0.6,
        "mixup": 0.2, "cutmix": 0.5, "balanced": True, "rotation": 5.0, "scale": 0.1, "translation": 0.1,
        "average": 0.9, "early_stopping": 2, "validation_share": 0.25, "trunk_scale": 0.5, "precision": "fp32",
        "multi_label": False,
    }  # fmt: skip
    assert {key: settings[key] for key in expected} == expected
    assert all("validation_loss" in record for record in run.results["history"])
    assert "validation loss" in run.report.read_text()


def test_a_training_of_a_handful_of_steps_is_remarked_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = {"backbone": "test_resnet.random", "image_size": 32, "common": Common(quiet=True)}
    finetune(str(folder), **settings, epochs=2, out=tmp_path / "few")
    assert "2 steps are few for a training; lower --batch-size" in capsys.readouterr().err
    finetune(str(folder), **settings, epochs=10, batch_size=4, out=tmp_path / "enough")
    assert "few for a training" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_that_was_ended_from_outside_goes_on_with_the_same_command(folder: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "offshelf.cli", "finetune", str(folder), "--backbone", "test_resnet.random"]
    words += ["--image-size", "32", "--epochs", "30", "--batch-size", "8", "--early-stopping", "30", "--out"]

    def start(name: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*words, str(tmp_path / name)], env=environment, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    process = start("ended")
    log, deadline = tmp_path / "ended" / "metrics.jsonl", time.monotonic() + 120
    while not log.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    assert json.loads((tmp_path / "ended" / "run.json").read_text())["status"] == "failed"
    assert list((tmp_path / "ended" / "checkpoints").rglob("step-*.pt"))
    assert start("ended").wait() == 0
    assert not (tmp_path / "ended" / "checkpoints").exists()
    one, two = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "ended"))
    assert one == two
    epochs = [json.loads(line)["epoch"] for line in log.read_text().splitlines() if line]
    assert epochs == list(range(1, 31))
