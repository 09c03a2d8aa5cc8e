"""`offshelf design` as a person runs it: every study on a small folder, and everything that is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from offshelf import cli
from offshelf.backbones.load import load_backbone
from offshelf.engine.runs import Run
from offshelf.errors import DataError, OffshelfError, RunError, UsageError
from offshelf.jobs.design import design
from offshelf.report.build import build_report
from tests.conftest import write_folder

QUICK = ["--epochs", "2", "--seeds", "2", "--image-size", "16", "--batch-size", "12", "--patches", "300"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "pictures", 20)


def test_a_study_from_the_command_line_to_finetune(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "disc" / "broken.png").write_bytes(b"nothing")
    out = tmp_path / "run"
    command = ["design", str(folder), "--study", "initialisation", "--rules", "he", "pca", "zero", "--freeze"]
    assert cli.run([*command, "--out", str(out), *QUICK]) == 0
    said, progress = capsys.readouterr()
    assert "minus baseline" in said and "Best on the validation part:" in said and "offshelf finetune DATA" in said
    assert "pca, seed 1: test accuracy" in progress and "broken.png" in progress
    (folder / "disc" / "broken.png").unlink()
    run = Run.open(out)
    assert run.record["verb"] == "design" and {"results.json", "report.html", "metrics.jsonl"} <= set(
        run.record["files"]
    )
    results = json.loads((out / "results.json").read_text())
    arms = {arm["name"]: arm for arm in results["arms"]}
    assert (
        results["baseline"] == "he"
        and list(arms) == ["he", "pca", "zero"]
        and results["chance"] == pytest.approx(1 / 3)
    )
    assert results["parts"] == {"train": 39, "validation": 9, "test": 12}
    for arm in arms.values():
        assert arm["layers"][0]["travelled"] in (0, None)  # frozen; of zeros it is not defined
        assert len(arm["curve"]["value"]) == 2 and len(arm["by_seed"]) == 2
        assert arm["area"]["value"] == pytest.approx(sum(arm["curve"]["value"]) / 2)
        assert arm["last"]["value"] == pytest.approx(sum(arm["by_seed"]) / 2)
    assert arms["zero"]["last"]["value"] == pytest.approx(1 / 3) and arms["zero"]["layers"][0]["dead"] == [1, 1]
    assert "Dead filters at the end: zero (100 %)" in " ".join(results["verdict"])
    assert arms["pca"]["layers"][0]["begun"]["patches"] == 300
    assert arms["pca"]["difference"]["value"] == pytest.approx(
        arms["pca"]["last"]["value"] - arms["he"]["last"]["value"]
    )
    best = max(arms.values(), key=lambda arm: arm["validation"]["value"])
    assert results["best"] == best["name"]
    assert sum(len(group) for group in results["tie_groups"]) == 3
    model = load_backbone(str(out))
    assert model.card.weights == "run" and results["best"] in model.card.note and model.card.input_size == (16, 16)
    tune = ["finetune", str(folder), "--backbone", str(out), "--epochs", "1", "--image-size", "16", "--quiet"]
    assert cli.run([*tune, "--out", str(tmp_path / "tuned")]) == 0


def test_the_page_holds_all_and_is_the_same_again(folder: Path, tmp_path: Path) -> None:
    told = design(
        str(folder),
        study="size",
        sizes=[3, 5],
        epochs=1,
        seeds=1,
        image_size=16,
        out=tmp_path / "run",
        name="<b>size</b>",
    )
    page = told.report.read_text(encoding="utf-8")
    assert len(page) < 2_000_000 and not re.search(r'(?:src|href)="https?:', page)
    assert "<b>size" not in page and "&lt;b&gt;size" in page
    for part in ("arms", "curves", "filters", "layers", "use", "data", "again"):
        assert f'<section id="{part}"' in page
    assert page.count("data:image/png;base64,") == 4  # two arms, before and after
    assert "one seed, so that the intervals hold pictures alone" in " ".join(told.results["verdict"])
    small, large = told.results["arms"]
    assert large["parameters"] == pytest.approx(small["parameters"], rel=0.02)
    assert (small["receptive_field"], large["receptive_field"]) == (38, 68)
    before = page.encode()
    build_report(tmp_path / "run")
    assert told.report.read_bytes() == before
    assert "pictures" not in json.dumps(told.summary()["arms"])
    network = load_backbone(str(tmp_path / "run"), num_classes=None)
    assert network.num_classes == 3 and network._model_args["size"] in (3, 5)


def test_a_given_backbone_with_named_layers(folder: Path, tmp_path: Path) -> None:
    told = design(
        str(folder),
        study="initialisation",
        rules=["unchanged", "dct"],
        backbone="test_resnet.random",
        layers=["layer1.*.conv2"],
        freeze_epochs=1,
        epochs=2,
        seeds=1,
        image_size=32,
        labels="24",
        out=tmp_path / "run",
    ).results
    unchanged, dct = told["arms"]
    names = [layer["name"] for layer in dct["layers"]]
    assert names and all(name.startswith("layer1.") for name in names)
    assert all(layer["travelled"] > 0 for arm in (unchanged, dct) for layer in arm["layers"])
    assert told["settings"]["labelled"] == 24 and unchanged["rule"] is None
    assert load_backbone(str(tmp_path / "run")).card.architecture == "test_resnet"


@pytest.mark.parametrize(
    ("study", "values"), [("shape", {"shapes": ["square", "ring"], "size": 3}), ("number", {"numbers": [8, 4]})]
)
def test_the_other_studies(folder: Path, tmp_path: Path, study: Any, values: dict[str, Any]) -> None:
    told = design(
        str(folder), study=study, epochs=1, seeds=1, image_size=16, norm="none", out=tmp_path / "run", **values
    )
    one, two = told.results["arms"]
    assert two["parameters"] == pytest.approx(one["parameters"], rel=0.02)
    assert one["last"]["n"] == 12


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ({"rules": ["he", "gabr"]}, UsageError, "did you mean 'gabor'"),
        ({"rules": ["he"]}, UsageError, "expected two or more, each once"),
        ({"rules": ["he", "he"]}, UsageError, "expected two or more, each once"),
        ({"sizes": [3, 5]}, UsageError, "--sizes belongs to --study size"),
        ({"layers": ["stem.9"]}, UsageError, "no convolution of this name"),
        ({"backbone": "mixer_s32_224.random", "layers": ["x"]}, UsageError, "no convolution of this name"),
        ({"backbone": "resnet1.random"}, OffshelfError, "no timm network"),
        ({"study": "size", "backbone": "test_resnet.random"}, UsageError, "kernels cannot be chosen"),
        ({"study": "size", "layers": ["stem.0"]}, UsageError, "all layers get the same kernel"),
        ({"study": "size", "sizes": [3, 4]}, UsageError, "expected an odd number"),
        ({"study": "number", "numbers": [48, 8000]}, UsageError, "the comparison is not fair"),
        ({"study": "number", "numbers": [48, 0]}, UsageError, "--numbers 0"),
        ({"study": "shape", "shapes": ["square", "star"]}, UsageError, "kernel shape 'star' is unknown"),
        ({"study": "depth"}, UsageError, "expected one of initialisation, size, shape, number"),
        ({"freeze": True, "freeze_epochs": 2}, UsageError, "contradict each other"),
        ({"epochs": 0}, UsageError, "--epochs 0: expected 1 or more"),
        ({"learning_rate": 0.0}, UsageError, "--learning-rate 0.0"),
        ({"labels": "2"}, UsageError, "too few for one picture of every class"),
        ({"labels": "many"}, UsageError, "--labels many"),
        ({"image_size": 4}, OffshelfError, "expected at least 8 x 8"),
        ({"rules": ["he", "pca"], "patches": 20}, DataError, "20 patches are too few for 47 filters"),
    ],
)
def test_what_is_refused(folder: Path, tmp_path: Path, how: dict[str, Any], kind: type[Exception], said: str) -> None:
    quick = {"study": "initialisation", "epochs": 1, "seeds": 1, "image_size": 16, "out": tmp_path / "run"}
    with pytest.raises(kind, match=said):
        design(str(folder), **(quick | how))


def test_pictures_without_labels_or_too_few(tmp_path: Path) -> None:
    flat = write_folder(tmp_path / "one", 4, names=("only",)) / "only"
    with pytest.raises(DataError, match="no labels"):
        design(str(flat), study="initialisation", out=tmp_path / "a")
    few = write_folder(tmp_path / "few", 4)
    with pytest.raises(DataError, match="to choose the best arm on; expected 2 or more"):
        design(str(few), study="initialisation", image_size=16, out=tmp_path / "b")


def test_a_network_without_convolutions(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch import nn

    from offshelf.evaluate import filter_arms

    monkeypatch.setattr(filter_arms, "network", lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(768, 2)))
    with pytest.raises(UsageError, match="has no convolutions"):
        design(str(folder), study="initialisation", image_size=16, out=tmp_path / "run")


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(
        json.dumps({"verb": "design", "study": "size", "verdict": ["x"], "data": {}})
    )
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match="nothing under 'arms'"):
        build_report(tmp_path)


def test_drawings_are_cut_to_the_page() -> None:
    from offshelf.report.design import PICTURE_BYTES, fit_drawings

    image = "data:image/png;base64," + "A" * (PICTURE_BYTES // 4)
    arms = [{"layers": [{"pictures": {"before": image, "after": image}}]} for _ in range(2)]
    arms[1]["layers"][0]["pictures"]["before"] = "javascript:alert(1)"
    assert fit_drawings(arms) == 0
    assert arms[1]["layers"][0]["pictures"] == {"before": None, "after": image}
    arms += [{"layers": [{"pictures": {"before": image, "after": image}}]}]
    assert fit_drawings(arms) == 2


def test_a_grey_picture_is_taken_like_any_other(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pictures", 14)
    for file in root.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    told = design(
        str(root), study="initialisation", rules=["he", "dct"], epochs=1, seeds=1, image_size=16, out=tmp_path / "run"
    )
    assert told.results["data"]["n_used"] == 42
