"""`offshelf pretrain` as a user runs it: on labelled and flat folders, gone on with, and refused in sentences."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from offshelf import pretrain
from offshelf.cli import run as command
from offshelf.errors import BackboneError, DataError, OffshelfError, RunError, UsageError
from tests.conftest import draw, write_folder

QUICK: dict[str, Any] = {
    "method": "spark", "backbone": "test_resnet.random", "image_size": 64, "batch_size": 8, "precision": "fp32",
}  # fmt: skip
SMALL = ("decoder_width=32",)


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_a_folder_becomes_a_backbone_that_every_verb_takes(folder: Path, tmp_path: Path) -> None:
    from offshelf import fit
    from offshelf.engine.runs import Run

    done = pretrain(str(folder), *SMALL, **QUICK, epochs=2, out=tmp_path / "run")
    results = done.results
    assert results["status"] == "complete" and results["training"]["steps"] == 8
    assert results["data"]["n_used"] == 36 and len(results["history"]) == 8
    assert {"knn_accuracy", "linear_accuracy", "feature_rank"} <= results["probes"][-1].keys()
    assert [one["name"] for one in results["pictures"]] == ["picture", "visible", "painted"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))
    assert not (tmp_path / "run" / "checkpoints").exists()
    record = Run.open(tmp_path / "run").record
    assert record["status"] == "complete" and "report.html" in record["files"]
    page = done.report.read_text(encoding="utf-8")
    assert "spark" in page and "decoder_width" in page
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True)
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 64, 64)
    fitted = fit(
        str(folder), backbones=[str(tmp_path / "run")], heads=["logistic"], control="none", out=tmp_path / "fit"
    )
    assert fitted.results["backbones"][0]["weights"] == "run"


def test_a_flat_folder_without_labels_and_with_a_broken_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    place = tmp_path / "flat"
    place.mkdir()
    for number in range(12):
        Image.fromarray(draw(number % 3, number)).save(place / f"{number}.png")
    (place / "broken.png").write_bytes(b"not a picture")
    done = pretrain(str(place), *SMALL, **QUICK, steps=2, out=tmp_path / "run")
    assert done.results["data"]["n_used"] == 12
    assert "broken.png" in done.results["data"]["bad_files"][0]["path"]
    assert "knn_accuracy" not in done.results["probes"][-1]
    assert "left out:" in capsys.readouterr().err
    with pytest.raises(DataError, match="--strict was asked for"):
        pretrain(str(place), *SMALL, **QUICK, steps=2, strict=True, out=tmp_path / "strict")


def test_the_test_split_is_left_out(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_folder(tmp_path / "data" / split, per_class=6)
    done = pretrain(str(tmp_path / "data"), *SMALL, **QUICK, steps=1, out=tmp_path / "run")
    assert done.results["data"]["n"] == 36 and done.results["data"]["n_used"] == 18


def test_a_stopped_run_goes_on_with_the_same_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = pretrain(str(folder), *SMALL, **QUICK, steps=6, probes=2, out=tmp_path / "whole")
    with pytest.raises(UsageError, match="no unfinished run of this command to --resume"):
        pretrain(str(folder), *SMALL, **QUICK, steps=6, probes=2, resume=True)
    first = pretrain(str(folder), *SMALL, **QUICK, steps=6, probes=2, minutes=1e-9)
    assert first.results["status"] == "stopped" and first.results["training"]["steps"] == 1
    assert json.loads((first.folder / "run.json").read_text())["status"] == "stopped"
    second = pretrain(str(folder), *SMALL, **QUICK, steps=6, probes=2, resume=True)
    assert second.folder == first.folder and second.results["status"] == "complete"
    assert weights(second.folder) == weights(whole.folder)
    assert "went on from step 1" in second.results["notes"]
    third = pretrain(str(folder), *SMALL, **QUICK, steps=6, probes=2)
    assert third.folder != first.folder  # a complete run stays


def test_other_settings_or_data_do_not_go_on(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain(str(folder), *SMALL, **QUICK, steps=6, minutes=1e-9, out=out)
    with pytest.raises(UsageError, match="--steps was 6 and is now 7"):
        pretrain(str(folder), *SMALL, **QUICK, steps=7, out=out)
    with pytest.raises(UsageError, match="--settings was"):
        pretrain(str(folder), "decoder_width=64", **QUICK, steps=6, out=out)
    (folder / "disc" / "000.jpg").unlink()
    with pytest.raises(RunError, match="belongs to another training.*data was"):
        pretrain(str(folder), *SMALL, **QUICK, steps=6, out=out)
    assert pretrain(str(folder), *SMALL, **QUICK, steps=6, out=out, overwrite=True).results["status"] == "complete"


def test_a_corrupt_checkpoint_gives_way_to_the_one_before(folder: Path, tmp_path: Path) -> None:
    settings = QUICK | {"steps": 6, "out": tmp_path / "run", "save_seconds": 0.0}
    stopped = pretrain(str(folder), *SMALL, **settings, minutes=0.004)
    if stopped.results["training"]["steps"] < 2:
        stopped = pretrain(str(folder), *SMALL, **settings, minutes=1e-9)
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))
    assert len(checkpoints) == 2
    checkpoints[-1].write_bytes(checkpoints[-1].read_bytes()[:1000])
    done = pretrain(str(folder), *SMALL, **settings)
    assert done.results["status"] == "complete"
    assert any("damaged or cut short" in note for note in done.results["notes"])


@pytest.mark.slow
def test_killed_from_outside_it_goes_on_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "offshelf.cli", "pretrain", str(folder), *SMALL, "--method", "spark"]
    words += ["--backbone", "test_resnet.random", "--image-size", "64", "--batch-size", "8"]
    words += ["--steps", "40", "--save-seconds", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(out: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*words, "--out", str(tmp_path / out)], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )

    assert start("whole").wait() == 0
    process, deadline = start("killed"), time.monotonic() + 120
    while not list((tmp_path / "killed" / "checkpoints").glob("*.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert start("killed").wait() == 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_further_pre_training_starts_from_the_weights_and_measures_drift(folder: Path, tmp_path: Path) -> None:
    name = "test_byobnet.offshelf_finetune_cifar10"
    done = pretrain(str(folder), *SMALL, **(QUICK | {"backbone": name}), steps=4, warm_head=0.5, out=tmp_path / "run")
    assert done.results["training"]["frozen_trunk_steps"] == 2
    drifts = [probe["drift"] for probe in done.results["probes"]]
    assert drifts[0] == pytest.approx(0, abs=1e-6) and drifts[-1] > 0


def test_two_processes_write_one_run(folder: Path, tmp_path: Path) -> None:
    one = pretrain(str(folder), *SMALL, **QUICK, steps=2, accelerator="cpu", out=tmp_path / "one")
    two = pretrain(str(folder), *SMALL, **QUICK, steps=2, accelerator="cpu", devices=2, out=tmp_path / "two")
    assert two.results["training"]["world"] == 2
    assert two.results["history"][-1]["loss"] == pytest.approx(one.results["history"][-1]["loss"], rel=1e-3)
    assert two.results["probes"][-1]["step"] == 2


def test_wrong_names_are_answered_with_near_ones(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no method; did you mean 'spark'"):
        pretrain(str(folder), method="sparc")
    with pytest.raises(UsageError, match="belongs to `offshelf fit"):
        pretrain(str(folder), method="off-the-shelf")
    with pytest.raises(UsageError, match="no such setting; did you mean 'mask_ratio'"):
        pretrain(str(folder), "mask_ration=0.5", method="spark")
    with pytest.raises(UsageError, match="say the same thing twice"):
        pretrain(str(folder), **QUICK, steps=1, epochs=1)
    assert not list(tmp_path.glob("runs"))


def test_backbones_and_sizes_that_do_not_fit_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="mae-thorax"):  # what fits a vision transformer
        pretrain(
            str(folder), **(QUICK | {"backbone": "test_vit.random", "image_size": 160}), steps=1, out=tmp_path / "a"
        )
    with pytest.raises(UsageError, match="expected a multiple of the network's stride, 32"):
        pretrain(str(folder), *SMALL, **(QUICK | {"image_size": 70}), steps=1, out=tmp_path / "b")


def test_empty_and_one_picture_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        pretrain(str(tmp_path / "empty"), **QUICK, steps=1, out=tmp_path / "a")
    (tmp_path / "one").mkdir()
    Image.fromarray(draw(0, 0)).save(tmp_path / "one" / "a.png")
    with pytest.raises(DataError, match="1 usable pictures; pre-training needs at least two"):
        pretrain(str(tmp_path / "one"), *SMALL, **QUICK, steps=1, out=tmp_path / "b")


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("chattr"), reason="root may write everywhere")
def test_an_unwritable_folder_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OffshelfError, match="file"):
        pretrain(str(folder), *SMALL, **QUICK, steps=1, out=tmp_path / "file" / "run")


def test_a_loss_that_is_no_number_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OffshelfError, match=r"the loss became nan at step .* of 6\. Lower the learning rate"):
        pretrain(str(folder), *SMALL, **QUICK, steps=6, learning_rate=1e30, out=tmp_path / "run")


def test_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["pretrain", str(folder), "mask_ratio=0.5", "decoder_width=32", "--method", "spark", "--steps", "1"]
    words += ["--backbone", "test_resnet.random", "--image-size", "64", "--out", str(tmp_path / "run")]
    assert command(words) == 0
    assert "next:   offshelf finetune" in capsys.readouterr().out
    assert command(words) == 2  # complete; nothing is replaced
    assert "--overwrite replaces it" in capsys.readouterr().err


def test_tensorboard_is_an_extra(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(OffshelfError, match=r"offshelf\[tensorboard\]"):
        pretrain(str(folder), *SMALL, **QUICK, steps=1, tensorboard=True, out=tmp_path / "run")


def test_equal_commands_give_equal_weights_whatever_drew_before(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    first = pretrain(str(folder), *SMALL, **QUICK, steps=1, out=tmp_path / "a")
    torch.manual_seed(6)
    second = pretrain(str(folder), *SMALL, **QUICK, steps=1, out=tmp_path / "b")
    assert weights(first.folder) == weights(second.folder)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_under_torchrun_the_first_process_writes_and_shards_come_together(
    folder: Path, tmp_path: Path, strategy: str
) -> None:
    words = ["pretrain", str(folder), *SMALL, "--method", "spark", "--backbone", "test_resnet.random", "--steps", "2"]
    words += ["--image-size", "64", "--batch-size", "8", "--precision", "fp32", "--accelerator", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    told = subprocess.run(
        [*starter, "-m", "offshelf.cli", *words, "--strategy", strategy, "--out", str(tmp_path / "run")],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-2000:]
    assert told.stdout.count("report:") == 1
    alone = pretrain(str(folder), *SMALL, **QUICK, steps=2, accelerator="cpu", out=tmp_path / "alone")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["training"]["world"] == 2
    losses = [[record["loss"] for record in each["history"]] for each in (results, alone.results)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    one, two = (
        timm.create_model(f"local-dir:{place / 'model'}", pretrained=True).state_dict()
        for place in (tmp_path / "run", alone.folder)
    )
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-2, atol=2e-3)
