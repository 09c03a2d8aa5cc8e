"""The verb explain, predict --explain, and the maps in the reports of fit and finetune."""

from __future__ import annotations

import csv
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from offshelf.cli import run as command
from offshelf.data.samples import as_samples
from offshelf.data.sources import open_dataset
from offshelf.engine.console import Console
from offshelf.errors import BackboneError, DataError, RunError, UsageError
from offshelf.interpret.explainable import explainable
from offshelf.interpret.explanations import explain as explained
from offshelf.interpret.map_pictures import enlarged, two_coloured
from offshelf.jobs.explain import Explained, explain
from offshelf.jobs.finetune import finetune
from offshelf.jobs.fit import fit
from offshelf.jobs.predict import predict
from offshelf.report.build import build_report
from offshelf.transfer.classifier import load_classifier
from tests.conftest import write_folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of four classes, and runs: a fine-tuned network, a B-cos one, linear and nearest-neighbour heads."""
    root = tmp_path_factory.mktemp("explain")
    patch = pytest.MonkeyPatch()
    patch.setenv("OFFSHELF_CACHE", str(root / "cache"))
    write_folder(root / "photos", 6, names=("across", "down", "disc", "other"))
    data, quiet = str(root / "photos"), {"epochs": 1, "image_size": 64, "batch_size": 8}
    finetune(data, backbone="test_resnet.random", out=root / "plain", **quiet)
    finetune(data, backbone="test_resnet.random", b_cos=2, out=root / "bcos", **quiet)
    frozen: dict[str, Any] = {"backbones": ["test_vit2.random"], "input_size": 64, "control": "none"}
    fit(data, heads=["logistic"], out=root / "linear", **frozen)
    fit(data, heads=["knn"], out=root / "knn", **frozen)
    patch.undo()
    return root


@pytest.fixture
def new(place: Path, tmp_path: Path) -> Path:
    """Three pictures in two folders and a file that is none."""
    folder = write_folder(tmp_path / "new", 2, names=("across", "unheard of"))
    (folder / "across" / "001.png").write_bytes(b"no picture")
    return folder


def table(run: Explained) -> list[dict[str, Any]]:
    return pq.read_table(run.folder / "maps.parquet").to_pylist()


def test_maps_numbers_and_page_of_a_fine_tuned_network(place: Path, new: Path, tmp_path: Path) -> None:
    run = explain(place / "plain", [str(new)], out=tmp_path / "out")
    assert run.exit_code == 3 and run.report.is_file() and run.report.stat().st_size < 2_000_000
    found = run.results
    assert [one["name"] for one in found["methods"]] == ["grad-cam", "input-x-gradient"]
    assert set(found["refused"]) == {"contributions", "attention-rollout"}
    assert [one["path"] for one in found["data"]["bad_files"]] == [str(new / "across" / "001.png")] or (
        found["data"]["bad_files"][0]["path"].endswith("001.png")
    )
    # The same by hand, for one picture.
    classifier = load_classifier(place / "plain" / "model")
    subject = explainable(classifier)
    dataset = open_dataset(str(new))
    samples = as_samples(dataset.select([0, 2, 3]))
    pixels, _ = subject.pixels(samples, lambda n: None)
    logits = subject.logits(pixels)
    answers = logits.argmax(dim=1)
    maps = explained(subject.model, subject.inputs(pixels), answers)
    rows = table(run)
    assert [(row["path"], row["method"]) for row in rows] == [
        (samples.name(k), name) for k in range(3) for name in ("grad-cam", "input-x-gradient")
    ]
    for number, row in enumerate(rows):
        k = number // 2
        assert row["explained"] == row["predicted"] == classifier.classes[answers[k]]
        assert row["truth"] == ("across" if k == 0 else None)  # a class that the run does not know is no truth
        assert row["logit"] == pytest.approx(float(logits[k, answers[k]]), abs=1e-5)
        assert row["confidence"] == row["probability"] == pytest.approx(float(logits[k].softmax(0).max()), abs=1e-6)
        assert row["sum"] == pytest.approx(float(maps[row["method"]][k].sum()), rel=1e-4, abs=1e-4)
        assert row["positive"] + row["negative"] == pytest.approx(row["sum"], rel=1e-4, abs=1e-4)
        assert row["offset"] is None and row["deletion"] is None
        image = np.asarray(Image.open(run.folder / row["file"]))
        assert image.shape == (256, 256, 3)
        if row["method"] == "input-x-gradient":
            expected = enlarged(two_coloured(maps["input-x-gradient"][k].numpy()))
            assert np.abs(image - np.moveaxis(expected, 0, -1).astype(int)).max() <= 1
    page = run.report.read_text(encoding="utf-8")
    assert page.count('<article class="explained">') == 3 and "Not measured in this run" in page
    before = run.report.read_bytes()
    assert build_report(run.folder).read_bytes() == before
    again = explain(place / "plain", [str(new)], out=tmp_path / "out", overwrite=True)
    assert again.results["pictures"] == found["pictures"]
    json.dumps(run.summary())


def test_contributions_of_a_b_cos_network_sum_to_its_logit(place: Path, new: Path, tmp_path: Path) -> None:
    run = explain(place / "bcos", str(new / "across" / "000.jpg"), label="down", out=tmp_path / "out")
    assert run.exit_code == 0
    rows = {row["method"]: row for row in table(run)}
    one = rows["contributions"]
    assert one["explained"] == "down" and one["sum"] + one["offset"] == pytest.approx(one["logit"], abs=1e-4)
    assert one["offset"] == pytest.approx(-np.log(3))
    assert run.results["sums"]["holds"] and run.results["sums"]["n"] == 1
    page = run.report.read_text(encoding="utf-8")
    assert "they sum to" in page and "contributions, for and against" in page and "Explained is" in page
    assert {path.name for path in (run.folder / "maps").iterdir()} == {
        f"000-{view}.png" for view in ("contributions", "contributions-signed", "grad-cam", "input-x-gradient")
    }


def test_a_linear_head_on_frozen_features(place: Path, new: Path, tmp_path: Path) -> None:
    run = explain(place / "linear", [str(new / "across" / "000.jpg"), str(new)], out=tmp_path / "out")
    assert [one["name"] for one in run.results["methods"]] == ["grad-cam", "attention-rollout", "input-x-gradient"]
    assert run.results["title"] == f"{new / 'across' / '000.jpg'}, {new}: linear explained"
    assert {path.name for path in (run.folder / "maps").glob("*rollout.png")} == {
        f"{stem}-attention-rollout.png"
        for stem in ("000", "new-across-000", "new-unheard-of-000", "new-unheard-of-001")
    }
    answers = {row["path"]: row["label"] for row in predict(place / "linear", [str(new)]).table.to_pylist()}
    for row in table(run)[3:]:
        assert answers[str(new.parent / row["path"])] == row["predicted"]


def test_scores_with_intervals_and_a_control(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("MOSAICS", 4), ("STEPS", 4), ("SQUARES", 4), ("SURE", 0.0)):
        monkeypatch.setattr(import_module("offshelf.evaluate.explanation_scoring"), name, value)
    monkeypatch.setattr(import_module("offshelf.evaluate.explanation_study"), "SCORED", 5)
    photos = str(place / "photos")
    run = explain(place / "plain", [photos], methods=["input-x-gradient"], scores=True, out=tmp_path / "out")
    scores = run.results["scores"]
    own = scores["methods"]["input-x-gradient"]
    assert scores["n"] == own["deletion"]["n"] == 5 and own["shuffled"][-1]["layers"] == own["shuffled"][-1]["of"] > 10
    rows = [row for row in table(run) if row["deletion"] is not None]
    assert len(rows) == 5
    for key in ("deletion", "insertion"):
        assert own[key]["value"] == pytest.approx(np.mean([row[key] for row in rows]))
        assert own[key]["low"] < own[key]["value"] < own[key]["high"]
    gain = np.mean([row["random_deletion"] - row["deletion"] for row in rows])
    assert own["deletion_gain"]["value"] == pytest.approx(gain)
    assert scores["random"]["insertion"]["value"] == pytest.approx(np.mean([row["random_insertion"] for row in rows]))
    if scores["grid"]["why_not"] is None:
        assert own["grid"]["n"] == 16 and 0 <= own["grid"]["value"] <= 1
    else:  # an untrained network may be right about pictures of three classes only
        assert "4 are needed" in scores["grid"]["why_not"] and own["grid"] is None
    page = run.report.read_text(encoding="utf-8")
    assert "squares at random" in page and f"all {own['shuffled'][-1]['of']} layers" in page
    run.show(Console())
    assert "without a map" in capsys.readouterr().out


def test_bad_input_is_answered_before_a_folder_is_claimed(
    place: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = [str(new)]
    with pytest.raises(UsageError, match=r"deep \+ knn.*cannot be explained.*offshelf fit DATA --heads logistic"):
        explain(place / "knn", pictures)
    with pytest.raises(BackboneError, match="attention cannot be rolled out"):
        explain(place / "plain", pictures, methods=["attention-rollout"])
    with pytest.raises(BackboneError, match="contributions are exact in B-cos networks only.*--b-cos 2"):
        explain(place / "plain", pictures, methods=["contributions"])
    with pytest.raises(UsageError, match="'grad-cm' is not known; did you mean 'grad-cam'"):
        explain(place / "plain", pictures, methods=["grad-cm"])
    with pytest.raises(UsageError, match="--label dics: no such class; did you mean 'disc'"):
        explain(place / "plain", pictures, label="dics")
    with pytest.raises(DataError, match="there is no such file or folder"):
        explain(place / "plain", ["absent/"])
    with pytest.raises(UsageError, match="nothing to explain"):
        explain(place / "plain", [])
    finished = explain(place / "plain", pictures, methods=["input-x-gradient"], out=tmp_path / "done")
    with pytest.raises(RunError, match="a run of `offshelf explain` has no classifier to explain"):
        explain(finished.folder, pictures)
    with pytest.raises(RunError, match="not a run folder"):
        explain(tmp_path, pictures)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of 1 pictures can be read"):
        explain(place / "plain", [str(tmp_path / "bad.png")])


def test_pictures_missing_from_a_manifest_are_told(place: Path, new: Path, tmp_path: Path) -> None:
    manifest = new / "list.csv"
    manifest.write_text("path\nacross/000.jpg\nacross/gone.jpg\n")
    code = command(["explain", str(place / "plain"), str(manifest), "--out", str(tmp_path / "out"), "--quiet"])
    assert code == 3
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["data"]["n_used"] == 1 and "gone.jpg" in found["data"]["bad_files"][0]["path"]


def test_predict_writes_maps_beside_its_table(place: Path, new: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    assert command(["predict", str(place / "bcos"), str(new), "--out", str(out), "--quiet", "--explain"]) == 3
    with out.open(newline="") as handle:
        header, *lines = csv.reader(handle)
    assert header[-2:] == ["map_contributions", "error"] and len(lines) == 4
    files = [line[-2] for line in lines]
    assert [bool(file) for file in files] == [True, False, True, True]
    assert all(Path(file).parent == tmp_path / "labels-maps" and Path(file).is_file() for file in files if file)
    # The same map as explain draws of the answer given.
    run = explain(place / "bcos", [str(new)], methods=["contributions"], out=tmp_path / "out")
    first = table(run)[0]
    assert Path(files[0]).read_bytes() == (run.folder / first["file"]).read_bytes()
    named = predict(place / "plain", [str(new)], explain=["grad-cam", "input-x-gradient"], out=tmp_path / "two.json")
    assert {"map_grad-cam", "map_input-x-gradient"} <= set(named.table.column_names)
    with pytest.raises(UsageError, match="--explain: the maps need a place; add --out FILE"):
        predict(place / "plain", [str(new)], explain=[])
    with pytest.raises(UsageError, match="cannot be explained"):
        predict(place / "knn", [str(new)], explain=[], out=out)


def test_reports_of_fit_and_finetune_show_where_it_looked(place: Path) -> None:
    methods = {"plain": "grad-cam", "bcos": "contributions", "linear": "grad-cam"}
    for name, method in methods.items():
        found = json.loads((place / name / "results.json").read_text())
        assert found["looked"]["method"] == method
        pictures = found["saliency"]
        fold = pq.read_table(place / name / "predictions.parquet").to_pylist()
        tested = {row["id"] for row in fold if row["fold"] == 0}
        assert 2 <= len(pictures) <= 8 and {one["path"] for one in pictures} <= tested
        assert all(len(one["images"]) == 2 and one["truth"] == one["path"].split("/")[0] for one in pictures)
        page = (place / name / "report.html").read_text(encoding="utf-8")
        assert 'id="saliency"' in page and f"by {method}:" in page and len(page) < 2_000_000
    found = json.loads((place / "knn" / "results.json").read_text())
    assert found["saliency"] == [] and "deep + knn" in found["looked"]["reason"]
    assert "There is no map: the head of" in (place / "knn" / "report.html").read_text(encoding="utf-8")


def test_the_answers_shown_are_those_of_a_network_that_did_not_see_the_pictures(place: Path) -> None:
    """A linear head is fitted anew on the first fold's training part: its answers are the cross-validated ones."""
    found = json.loads((place / "linear" / "results.json").read_text())
    predicted = {row["id"]: row for row in pq.read_table(place / "linear" / "predictions.parquet").to_pylist()}
    for one in found["saliency"]:
        row = predicted[one["path"]]
        assert one["predicted"] == row["predicted"]
        assert one["confidence"] == pytest.approx(row[f"p_{row['predicted']}"], abs=2e-3)


def test_several_labels(place: Path, tmp_path: Path) -> None:
    rows = ["path,round,wide"]
    for path in sorted((place / "photos").rglob("*.*")):
        kind = path.parent.name
        rows.append(f"{path.relative_to(place / 'photos')},{int(kind == 'disc')},{int(kind in ('across', 'other'))}")
    manifest = place / "photos" / "several.csv"
    manifest.write_text("\n".join(rows))
    settings: dict[str, Any] = {"epochs": 1, "image_size": 64, "batch_size": 8, "label_columns": ["round", "wide"]}
    run = finetune(str(manifest), backbone="test_resnet.random", out=tmp_path / "several", **settings)
    manifest.unlink()
    assert {one["truth"] for one in run.results["saliency"]} <= {"round", "wide", "none of them"}
    found = explain(run.folder, [str(place / "photos" / "disc")], methods=["grad-cam"], out=tmp_path / "out")
    first = table(found)[0]
    model = explainable(load_classifier(run.folder / "model"))
    assert model.multi_label and first["probability"] == pytest.approx(
        float(torch.tensor(first["logit"]).sigmoid()), abs=1e-5
    )
