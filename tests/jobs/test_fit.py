"""`fit` and `predict` as a user runs them, on good input and on broken input."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from offshelf import cli
from offshelf.engine.console import Console
from offshelf.errors import BackboneError, DataError, RunError, UsageError
from offshelf.jobs.common import Common
from offshelf.jobs.fit import Fitted, fit
from offshelf.jobs.predict import predict
from tests.conftest import draw, write_folder

QUIET = Common(quiet=True)
FAST = {"backbones": ["test_resnet.random"], "input_size": 32, "common": QUIET}


@pytest.fixture
def fitted(folder: Path, tmp_path: Path) -> Fitted:
    return fit(str(folder), heads=["logistic", "knn"], out=tmp_path / "run", **FAST)


def test_a_folder_gives_a_run_that_holds_together(fitted: Fitted) -> None:
    results = json.loads((fitted.folder / "results.json").read_text())
    assert results["best"] in {"deep + logistic", "deep + knn"}
    best = next(arm for arm in results["arms"] if arm["name"] == results["best"])
    score = best["metrics"]["balanced_accuracy"]
    assert score["value"] > 0.9  # stripes and discs
    assert score["low"] <= score["value"] <= score["high"]
    assert score["n"] == 36
    assert np.array(best["confusion"]).sum() == 36
    assert results["baselines"]["chance"] == pytest.approx(1 / 3)
    assert results["protocol"]["label"] == "heads/v1"
    assert sum(fold["n_test"] for fold in results["protocol"]["folds"]) == 36
    assert "random weights" in results["backbones"][0]["label"]
    assert any("random weights" in sentence for sentence in results["verdict"])
    assert results["controls"]["blank_centre"]["blanked"]["n"] == 36
    page = (fitted.folder / "report.html").read_text()
    assert "random weights" in page
    table = pq.read_table(fitted.folder / "predictions.parquet").to_pylist()
    assert len(table) == 2 * 36
    right = np.mean([row["label"] == row["predicted"] for row in table if row["arm"] == results["best"]])
    assert right == pytest.approx(best["metrics"]["accuracy"]["value"])


def test_its_run_predicts_new_files(fitted: Fitted, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    for kind, name in enumerate(("across", "down", "disc")):
        Image.fromarray(draw(kind, 999)).save(new / f"{name}.png")
    (new / "broken.jpg").write_bytes(b"not a picture")
    result = predict(fitted.folder, [str(new)], out=tmp_path / "labels.csv", common=QUIET)
    rows = list(csv.DictReader((tmp_path / "labels.csv").open()))
    assert list(rows[0]) == ["path", "label", "p_across", "p_disc", "p_down", "error"]
    by_name = {Path(row["path"]).stem: row for row in rows}
    assert [by_name[name]["label"] for name in ("across", "down", "disc")] == ["across", "down", "disc"]
    total = sum(float(by_name["disc"][f"p_{name}"]) for name in ("across", "disc", "down"))
    assert total == pytest.approx(1)
    assert by_name["broken"]["label"] == by_name["broken"]["p_disc"] == ""
    assert by_name["broken"]["error"]
    assert result.exit_code == 3
    with pytest.raises(DataError, match="--strict"):
        predict(fitted.folder, [str(new)], strict=True, common=QUIET)


def test_predictions_come_as_json_and_parquet_and_agree(fitted: Fitted, folder: Path, tmp_path: Path) -> None:
    for ending in ("json", "parquet"):
        predict(fitted.folder, [str(folder)], out=tmp_path / f"labels.{ending}", common=QUIET)
    from_json = json.loads((tmp_path / "labels.json").read_text())
    assert from_json == pq.read_table(tmp_path / "labels.parquet").to_pylist()
    assert len(from_json) == 36
    with pytest.raises(UsageError, match="--format parquet needs --out"):
        predict(fitted.folder, [str(folder)], format="parquet", common=QUIET)
    with pytest.raises(UsageError, match="cannot tell the format"):
        predict(fitted.folder, [str(folder)], out=tmp_path / "labels.xls", common=QUIET)


def test_the_shipped_model_agrees_with_itself_after_loading(folder: Path, tmp_path: Path) -> None:
    """Given splits: the run's predictions of the test part are those that were measured."""
    root = tmp_path / "split"
    write_folder(root / "train", per_class=10)
    for kind, name in enumerate(("across", "down", "disc")):
        (root / "test" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(draw(kind, 500 + number)).save(root / "test" / name / f"{number}.png")
    run = fit(
        str(root), heads=["svm-rbf", "logistic", "mlp"], reproductive=True, code_dim=8, out=tmp_path / "run", **FAST
    )
    measured = {
        row["id"]: row
        for row in pq.read_table(run.folder / "predictions.parquet").to_pylist()
        if row["arm"] == run.results["best"]
    }
    assert len(measured) == 12
    assert run.results["data"]["splits"]["test"] == {"across": 4, "disc": 4, "down": 4}
    for row in predict(run.folder, [str(root / "test")], common=QUIET).table.to_pylist():
        twin = measured["test/" + "/".join(Path(row["path"]).parts[-2:])]
        assert row["p_disc"] == pytest.approx(twin["p_disc"], abs=1e-6)
        assert row["label"] == twin["predicted"]


def test_another_head_answers_from_the_cache(fitted: Fitted, folder: Path, tmp_path: Path) -> None:
    again = fit(str(folder), heads=["svm-linear"], out=tmp_path / "again", **FAST)
    assert again.results["cost"]["cached_share"] == 1.0
    assert fitted.results["cost"]["cached_share"] == 0.0


def test_equal_commands_give_equal_numbers(folder: Path, tmp_path: Path) -> None:
    runs = [
        fit(str(folder), heads=["mlp"], reproductive=True, code_dim=8, out=tmp_path / name, **FAST) for name in "ab"
    ]
    assert runs[0].results["arms"][0]["metrics"] == runs[1].results["arms"][0]["metrics"]
    assert (runs[0].folder / "predictions.parquet").read_bytes() == (
        runs[1].folder / "predictions.parquet"
    ).read_bytes()


def manifest(root: Path, n: int = 36, groups: int = 9) -> Path:
    write_folder(root / "images", per_class=n // 3)
    files = sorted((root / "images").rglob("*.*"))
    rows = [f"{f.relative_to(root)},{f.parent.name},{i % groups:03d}" for i, f in enumerate(files)]
    (root / "patients.csv").write_text("path,label,group\n" + "\n".join(rows) + "\n")
    return root / "patients.csv"


def test_patients_of_a_manifest_are_never_split(tmp_path: Path) -> None:
    run = fit(str(manifest(tmp_path)), heads=["logistic"], out=tmp_path / "run", **FAST)
    assert run.results["data"]["groups"] == 9
    rows = pq.read_table(run.folder / "predictions.parquet").to_pylist()
    folds_of: dict[str, set[int]] = {}
    for row in rows:
        folds_of.setdefault(row["group"], set()).add(row["fold"])
    assert set(folds_of) == {f"{i:03d}" for i in range(9)}  # an id 007 stays 007
    assert all(len(folds) == 1 for folds in folds_of.values())
    assert run.results["controls"]["source"]["column"] == "group"


def test_a_parquet_of_picture_bytes(tmp_path: Path) -> None:
    write_folder(tmp_path / "images")
    files = sorted((tmp_path / "images").rglob("*.*"))
    table = pa.table(
        {
            "image": pa.array([{"bytes": f.read_bytes(), "path": f.name} for f in files]),
            "label": [f.parent.name for f in files],
        }
    )
    pq.write_table(table, tmp_path / "pictures.parquet")
    run = fit(str(tmp_path / "pictures.parquet"), heads=["logistic"], out=tmp_path / "run", **FAST)
    assert run.results["data"]["n_used"] == 36
    assert run.results["arms"][0]["metrics"]["accuracy"]["value"] > 0.9


def test_digits_are_built_in(tmp_path: Path) -> None:
    run = fit("digits", heads=["ridge"], control="none", out=tmp_path / "run", **FAST)
    assert run.results["data"]["n"] == 1797
    assert run.results["controls"]["blank_centre"] is None
    assert run.results["arms"][0]["metrics"]["balanced_accuracy"]["low"] > 0.5


def test_a_shortcut_at_the_border_shouts(tmp_path: Path) -> None:
    """The class is written in the corner and nowhere else: blanking the centre must not cost the score."""
    for kind, name in enumerate(("ill", "well")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(30):
            picture = np.random.default_rng([kind, number]).integers(60, 200, (48, 48, 3)).astype(np.uint8)
            picture[:6, :6] = 255 * kind
            Image.fromarray(picture).save(tmp_path / "data" / name / f"{number}.png")
    run = fit(str(tmp_path / "data"), heads=["logistic"], out=tmp_path / "run", **FAST)
    control = run.results["controls"]["blank_centre"]
    assert run.results["arms"][0]["metrics"]["balanced_accuracy"]["value"] > 0.9
    assert control["level"] == "alarm"
    assert control["sentence"] in run.results["verdict"]
    assert "Alarm" in (run.folder / "report.html").read_text()


def test_bad_files_are_listed_counted_and_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "disc" / "empty.png").touch()
    (folder / "disc" / "text.jpg").write_text("hello")
    cut = (folder / "down" / "000.jpg").read_bytes()
    (folder / "down" / "cut.jpg").write_bytes(cut[:200])
    run = fit(str(folder), heads=["logistic"], out=tmp_path / "run", **FAST)
    assert run.results["data"]["n"] == 39
    assert run.results["data"]["n_used"] == 36
    assert {Path(bad["path"]).name for bad in run.results["data"]["bad_files"]} == {"empty.png", "text.jpg", "cut.jpg"}
    assert "3 of 39 pictures could not be read" in " ".join(run.results["verdict"])
    page = (run.folder / "report.html").read_text()
    assert all(name in page for name in ("empty.png", "text.jpg", "cut.jpg"))
    with pytest.raises(DataError, match="3 pictures cannot be read, and --strict"):
        fit(str(folder), heads=["logistic"], strict=True, out=tmp_path / "strict", **FAST)
    assert json.loads((tmp_path / "strict" / "run.json").read_text())["status"] == "failed"


def test_duplicates_across_splits_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_folder(root / "train", per_class=8)
    write_folder(root / "test", per_class=3)  # the same drawings: every test picture stands in train too
    run = fit(str(root), heads=["logistic"], out=tmp_path / "run", **FAST)
    assert len(run.results["data"]["duplicates"]) == 9
    assert "9 pictures stand in more than one split" in " ".join(run.results["verdict"])


def test_equal_pictures_stay_in_one_fold(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", per_class=10)
    for file in list((root / "disc").iterdir()):
        (root / "disc" / f"copy-{file.name}").write_bytes(file.read_bytes())
    run = fit(str(root), heads=["logistic"], out=tmp_path / "run", **FAST)
    fold = {row["id"]: row["fold"] for row in pq.read_table(run.folder / "predictions.parquet").to_pylist()}
    for name in fold:
        if "copy-" in name:
            assert fold[name] == fold[name.replace("copy-", "")]


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda r: [f.unlink() for f in sorted((r / "disc").iterdir())[1:]], "disc"),  # a class with one picture
        (lambda r: [[f.unlink() for f in (r / n).iterdir()] or (r / n).rmdir() for n in ("disc", "down")], "class"),
        (lambda r: [f.write_bytes(b"") for f in r.rglob("*.*")], "none of 36 pictures can be used"),
    ],
)
def test_data_that_cannot_be_measured_is_refused_with_its_reason(
    folder: Path, tmp_path: Path, arrange, message
) -> None:  # type: ignore[no-untyped-def]
    arrange(folder)
    with pytest.raises(DataError, match=message):
        fit(str(folder), heads=["logistic"], out=tmp_path / "run", **FAST)


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    path = manifest(tmp_path)
    lines = path.read_text().splitlines()
    lines[1] = lines[1].split(",")[0] + ",,000"
    path.write_text("\n".join(lines))
    run = fit(str(path), heads=["logistic"], out=tmp_path / "run", **FAST)
    assert run.results["data"]["unlabelled"] == 1
    assert run.results["data"]["n_used"] == 35
    assert "1 pictures have no label" in " ".join(run.results["verdict"])


def test_a_group_in_two_splits_is_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path)
    lines = path.read_text().splitlines()
    split = ["split", *["train" if i % 2 else "test" for i in range(len(lines) - 1)]]
    path.write_text("\n".join(f"{line},{s}" for line, s in zip(lines, split)))
    with pytest.raises(DataError, match="group"):
        fit(str(path), heads=["logistic"], out=tmp_path / "run", **FAST)
    assert fit(str(path), heads=["logistic"], folds=3, out=tmp_path / "cv", **FAST).results["data"]["groups"] == 9


def test_nan_features_name_picture_and_backbone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from offshelf.backbones.route import FastNetwork

    real = FastNetwork.features
    monkeypatch.setattr(
        FastNetwork, "features", lambda self, x, readout="pooled": real(self, x, readout) * float("nan")
    )
    with pytest.raises(DataError, match=r"test_resnet\.random gives features that are not numbers"):
        fit(str(folder), heads=["logistic"], out=tmp_path / "run", **FAST)


def test_a_tampered_run_is_refused(fitted: Fitted, folder: Path) -> None:
    head = fitted.folder / "model" / "head.skops"
    good = head.read_bytes()
    head.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(RunError, match=r"head\.skops: changed since the run was written"):
        predict(fitted.folder, [str(folder)], common=QUIET)
    head.write_bytes(good)
    (fitted.folder / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(RunError, match="has no place in a run"):
        predict(fitted.folder, [str(folder)], common=QUIET)


def test_other_weights_than_the_fitted_ones_are_refused(fitted: Fitted, folder: Path) -> None:
    from offshelf.backbones.export import save_backbone
    from offshelf.backbones.load import load_backbone
    from offshelf.engine.runs import Run

    save_backbone(load_backbone("test_resnet.random_1"), fitted.folder / "model" / "backbones" / "0")
    record = json.loads((fitted.folder / "run.json").read_text())
    Run(fitted.folder, record).finish()  # sealed again, so that only the weights' own hash can tell
    with pytest.raises(RunError, match="not the ones the run was fitted on"):
        predict(fitted.folder, [str(folder)], common=QUIET)


def test_names_that_do_not_exist_are_answered_with_near_ones(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="svm-rbf"):
        fit(str(folder), heads=["svm-rbg"], out=tmp_path / "run", **FAST)
    with pytest.raises(DataError, match="pictures"):
        fit(str(folder.parent / "picture"), out=tmp_path / "run", **FAST)
    with pytest.raises(BackboneError, match="test_resnet"):
        fit(str(folder), backbones=["test_resnt.random"], out=tmp_path / "run", common=QUIET)
    assert not (tmp_path / "run").exists()  # nothing is made before the command is understood


def test_without_backbones_the_choice_is_said_with_its_reason(folder: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    fit(str(folder), heads=["logistic"], input_size=32, out=tmp_path / "run", control="none")
    said = capsys.readouterr().err
    assert "Backbones: test_byobnet.offshelf_finetune_cifar10" in said


REFUSE = """
import socket, sys
calls = []
def refuse(*args, **kwargs):
    calls.append(args)
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from offshelf.cli import run
code = run(sys.argv[1:])
print("CALLS", calls)
sys.exit(code or bool(calls))
"""


@pytest.mark.slow
def test_nothing_calls_home(folder: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "DO_NOT_TRACK"))}
    run = tmp_path / "run"
    for arguments in (
        [
            "fit",
            str(folder),
            "--grid",
            "2x2",
            "--reproductive",
            "--code-dim",
            "8",
            "--input-size",
            "32",
            "--out",
            str(run),
        ],
        ["predict", str(run), str(folder), "--out", str(tmp_path / "labels.csv")],
        ["methods", "--search", "few labels"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", REFUSE, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert "CALLS []" in done.stdout, done.stdout + done.stderr
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_with_130_and_keeps_what_was_finished(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "many", per_class=250)
    command = [
        sys.executable,
        *("-X", "faulthandler", "-m", "offshelf.cli", "fit"),
        str(data),
        "--backbones",
        "test_resnet.random",
        "--out",
        str(tmp_path / "run"),
    ]
    heard = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it, and so would the child
    try:
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, heard)
    shards = Path(os.environ["OFFSHELF_CACHE"])
    deadline = time.monotonic() + 120
    while not list(shards.rglob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    try:
        said = child.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGABRT)  # faulthandler then says where every thread stands
        pytest.fail(f"still running a minute after Ctrl-C: {child.communicate()[1]}")
    assert child.returncode == 130
    assert "Traceback" not in said
    assert "offshelf: stopped" in said
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["reason"]) == ("failed", "stopped with Ctrl-C")
    assert list(shards.rglob("*.safetensors"))
    with pytest.raises(RunError, match="not complete"):
        predict(tmp_path / "run", [str(data)], common=QUIET)


def test_the_command_line_prints_json_and_leaves_with_meaningful_codes(folder: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    out = str(tmp_path / "run")
    code = cli.run(
        [
            "fit",
            str(folder),
            "--backbones",
            "test_resnet.random",
            "--input-size",
            "32",
            "--heads",
            "knn",
            "--out",
            out,
            "--json",
        ]
    )
    printed = capsys.readouterr()
    assert code == 0
    assert json.loads(printed.out)["best"] == "deep + knn"
    assert printed.err == ""
    assert cli.run(["predict", out, str(folder), "--quiet"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 37
    assert cli.run(["fit", str(folder), "--out", out]) == 2  # a complete run is not overwritten
    assert "holds a complete run" in capsys.readouterr().err
    assert cli.run(["fit", str(tmp_path / "absent")]) == 1
    assert cli.run(["fit", str(folder), "--grid", "2by2"]) == 2
    assert "expected ROWSxCOLUMNS" in capsys.readouterr().err
    assert cli.run(["fit", str(folder), "--gird", "2x2"]) == 2
    assert "--grid" in capsys.readouterr().err
    assert cli.run(["fit", str(folder), "--folds", "1"]) == 2


def test_progress_is_silent_where_nobody_watches(capsys) -> None:  # type: ignore[no-untyped-def]
    with Console().progress("x", 10) as advance:
        advance(5)
    assert capsys.readouterr() == ("", "")


def test_similar_pictures_are_named_nearest_first(folder: Path, tmp_path: Path) -> None:
    run = fit(str(folder), heads=["logistic"], similar=True, out=tmp_path / "run", **FAST)
    assert run.results["retrieval"]["hit_at_1"]["value"] > 0.8
    assert run.results["retrieval"]["protocol"] == "retrieval/v1"
    found = predict(run.folder, [str(folder)], similar=2, common=QUIET).table.to_pylist()
    for row in found:
        assert row["path"].endswith(row["similar_1"])  # an indexed picture is its own nearest
        assert row["distance_1"] == pytest.approx(0, abs=1e-3)
        assert row["similar_2"] != row["similar_1"]
        assert row["distance_2"] > 0.01
    same = [row["similar_2"].split("/")[0] == Path(row["path"]).parent.name for row in found]
    assert np.mean(same) > 0.75
    with pytest.raises(DataError, match="--similar 99: the run indexed 36 pictures only"):
        predict(run.folder, [str(folder)], similar=99, common=QUIET)


def test_a_run_without_an_index_says_so(fitted: Fitted, folder: Path) -> None:
    with pytest.raises(RunError, match="Fit again with --similar"):
        predict(fitted.folder, [str(folder)], similar=1, common=QUIET)


def test_copies_and_the_off_the_shelf_head_travel_into_the_run(folder: Path, tmp_path: Path) -> None:
    run = fit(str(folder), heads=["off-the-shelf", "logistic"], copies=2, out=tmp_path / "run", **FAST)
    names = [arm["name"] for arm in run.results["arms"]]
    assert names == ["deep + off-the-shelf", "deep + logistic"]
    assert all(arm["metrics"]["accuracy"]["value"] > 0.85 for arm in run.results["arms"])
    found = predict(run.folder, [str(folder)], common=QUIET).table.to_pylist()
    assert np.mean([row["label"] == Path(row["path"]).parent.name for row in found]) > 0.95
