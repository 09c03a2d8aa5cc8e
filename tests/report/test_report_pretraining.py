"""The page of a pretrain run, from results as plain as they come and as strange as they may be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from offshelf.backbones.card import BackboneCard
from offshelf.errors import RunError
from offshelf.report.build import build_report
from offshelf.report.pretraining import cells, headline, shown_pictures, where

CARD = BackboneCard(
    name="test_resnet.random",
    architecture="test_resnet",
    weights="run",
    weights_hash="0" * 64,
    parameters=1000,
    width=96,
    input_size=(64, 64),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    crop_pct=1.0,
    interpolation="bicubic",
    licence="unknown",
)
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def results(**changes: Any) -> dict[str, Any]:
    probe = {"feature_rank": 5.0, "feature_std": 0.4, "n": 100, "chance": 0.25, "linear_accuracy": 0.5}
    return {
        "title": "photos: spark",
        "verb": "pretrain",
        "status": "complete",
        "method": {"slug": "spark", "title": "Sparse <b>modelling</b>", "paper": "arXiv 2301.03580"},
        "settings": {"mask_ratio": 0.6},
        "data": {
            "source": "my photos",
            "fingerprint": "abc",
            "n": 40,
            "n_used": 39,
            "bad_files": [{"path": "a<i>.png", "error": "cut off"}],
        },
        "backbone": CARD.to_dict(),
        "training": {"steps": 10, "of_steps": 10, "batch_size": 8, "epochs": 2.0, "seed": 0},
        "history": [
            {"step": step, "epoch": step / 5, "loss": 2 / step, "learning_rate": 2e-4} for step in range(1, 11)
        ],
        "probes": [probe | {"step": 0, "linear_accuracy": 0.3}, probe | {"step": 10}],
        "pictures": [{"name": "picture", "images": [PIXEL] * 3}, {"name": "painted", "images": [PIXEL] * 2}],
        "verdict": ["The features became more useful.", "No collapse."],
        "notes": ["2 parameters are not reached"],
        "cost": {"train_seconds": 12.0, "peak_memory_bytes": 2**30},
    } | changes


def page(folder: Path, **changes: Any) -> str:
    (folder / "results.json").write_text(json.dumps(results(**changes)))
    command = "offshelf pretrain 'my photos' --method spark --out 'runs/first one'"
    (folder / "run.json").write_text(json.dumps({"command": command, "seed": 0}))
    return build_report(folder).read_text(encoding="utf-8")


def test_the_page_says_what_was_done_and_how_to_use_it(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "The features became more useful." in text and "2 parameters are not reached" in text
    assert "offshelf finetune &#39;my photos&#39; --backbone &#39;runs/first one&#39;" in text
    assert "local-dir:runs/first one/model" in text
    assert "Loss over steps: loss from 2 at step 1 to 0.2 at step 10." in text
    assert "from 0.3 at step 0 to 0.5 at step 10" in text
    assert text.count(PIXEL) == 4  # two whole columns
    assert "<b>modelling" not in text and "a<i>" not in text
    assert not re.search(r'(?:src|href)="https?:', text)


@pytest.mark.parametrize(
    ("status", "said"), [("stopped", "Stopped before its end"), ("collapsed", "The features collapsed"),
                         ("diverged", "The training diverged")],
)  # fmt: skip
def test_an_end_before_the_end_is_raised(tmp_path: Path, status: str, said: str) -> None:
    assert said in page(tmp_path, status=status)
    assert said not in page(tmp_path)


def test_without_labels_probes_and_pictures_the_page_still_stands(tmp_path: Path) -> None:
    text = page(tmp_path, probes=[], pictures=[], history=[{"step": 1, "loss": None}], settings={}, cost={})
    assert "<svg" not in text.split("<main>")[1]
    assert "No cost was recorded" in text


@pytest.mark.parametrize("missing", ["method", "history", "verdict"])
def test_a_missing_part_is_named(tmp_path: Path, missing: str) -> None:
    with pytest.raises(RunError, match=rf"results\.json: nothing under '{missing}'"):
        page(tmp_path, **{missing: None})


def test_intervals_rest_on_independent_groups() -> None:
    alone = cells({"step": 1, "linear_accuracy": 0.5, "n": 100})["linear_accuracy"]
    grouped = cells({"step": 1, "linear_accuracy": 0.5, "n": 100, "n_groups": 25})["linear_accuracy"]
    assert (round(alone["low"], 3), round(alone["high"], 3)) == (0.404, 0.596)
    assert (round(grouped["low"], 3), round(grouped["high"], 3)) == (0.318, 0.682)


def test_the_headline_compares_the_first_and_the_last() -> None:
    told = results()
    numbers = {one["what"]: one for one in headline(told["history"], told["probes"])}
    assert numbers["Linear, accuracy"]["value"] == "0.500"
    assert numbers["Linear, accuracy"]["line"].startswith("0.300 at step 0; n = 100")
    assert numbers["Effective rank"]["value"] == "5.0"


def test_rows_of_pictures_are_cut_to_whole_columns_that_fit() -> None:
    large = "data:image/png;base64," + "A" * 300_000
    shown, left_out = shown_pictures([{"name": "a", "images": [large] * 4}, {"name": "b", "images": [PIXEL] * 4}])
    assert [len(row["images"]) for row in shown] == [3, 3] and left_out == 1
    assert shown_pictures([{"name": "x", "images": ["javascript:alert(1)"]}]) == ([], 0)


def test_the_folder_is_called_as_the_command_called_it(tmp_path: Path) -> None:
    assert where("offshelf pretrain d --out=a/b", tmp_path) == "a/b"
    assert where("offshelf pretrain d", tmp_path / "x") == "runs/x"
    assert where("python script.py", tmp_path / "x") == "x"
