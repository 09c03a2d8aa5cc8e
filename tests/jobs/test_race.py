"""`offshelf race` as a person runs it: on a folder, and with what does not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from offshelf import cli
from offshelf.engine.runs import Run
from offshelf.errors import BackboneError, DataError, RunError, UsageError
from offshelf.jobs.race import race
from offshelf.report.build import build_report
from tests.conftest import draw, write_folder

QUICK: dict[str, Any] = {"image_size": 16, "batch_size": 8, "steps": 3, "seeds": 2, "smoothing": 2}
PAIR = ["inception_mini.random", "inception_resnet_mini.random"]


def test_a_race_is_sealed_shown_and_its_page_made_again(folder: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["race", str(folder), "--backbones", *PAIR, "--residual-scales", "1", "0.1", "--thresholds", "9", "0.01"]
    words += ["--image-size", "16", "--batch-size", "8", "--steps", "3", "--seeds", "2", "--smoothing", "2", "--quiet"]
    assert cli.run([*words, "--out", str(tmp_path / "one")]) == 0
    said = capsys.readouterr().out
    names = [PAIR[0], f"{PAIR[1]}, s = 1", f"{PAIR[1]}, s = 0.1"]
    assert all(name in said for name in names) and "0 of 2 seeds" in said
    assert f"{names[0]}, {names[1]} and {names[2]} are first below a training loss of 9 together, after 2 steps" in said
    run = Run.open(tmp_path / "one")
    assert set(run.record["files"]) == {"results.json", "report.html", "metrics.jsonl"}
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert [arm["name"] for arm in results["arms"]] == names and results["seeds"] == [0, 1]
    assert [one["by_seed"] for one in results["arms"][0]["reached"]] == [[2, 2], [None, None]]
    assert results["notes"] == [f"{PAIR[0]} has no residual blocks and races as it is."]
    streams = [arm["stream"] for arm in results["arms"]]
    assert streams[0] is None and streams[1]["start"][-1] > streams[2]["start"][-1]
    assert streams[1]["start"][0] == pytest.approx(streams[2]["start"][0])  # the same weights before the first block
    lines = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * 2 * 3 and lines[0]["network"] == names[0] and lines[-1]["step"] == 3
    page = (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    assert len(page) < 2_000_000 and not re.search(r'(?:src|href)="https?:', page)
    assert all(f'<section id="{key}"' in page for key in ("curves", "steps", "accuracy", "stream", "settings", "again"))
    before = page.encode()
    build_report(tmp_path / "one")
    assert (tmp_path / "one" / "report.html").read_bytes() == before


def test_an_equal_command_gives_equal_numbers(folder: Path, tmp_path: Path) -> None:
    about: dict[str, Any] = QUICK | {"seeds": 1, "backbones": ["test_resnet.random", "test_vit.random"]}
    one, two = (race(folder, out=tmp_path / name, **about).results for name in ("one", "two"))
    assert [arm["curve"] for arm in one["arms"]] == [arm["curve"] for arm in two["arms"]]
    assert all(arm["stream"] is not None for arm in one["arms"])
    assert "One seed does not say" in one["verdict"][-1]


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"backbones": ["resnet18.random", "resnett18.random"]}, BackboneError, "did you mean"),
        ({"backbones": ["test_resnet.random"]}, UsageError, "one network in a race; expected two or more"),
        ({"backbones": PAIR, "image_size": 4}, UsageError, "expected at least 8 x 8"),
        (
            {"backbones": [PAIR[0], "test_efficientnet.random"], "residual_scales": [1.0, 0.1]},
            UsageError,
            "has no residual blocks to scale; expected at least one network",
        ),
        ({"backbones": PAIR, "residual_scales": [-1.0]}, UsageError, "--residual-scales -1: expected 0 or more"),
        ({"backbones": PAIR, "thresholds": [0.0]}, UsageError, "--thresholds 0: expected a loss above 0"),
        ({"backbones": PAIR, "epochs": 1.0}, UsageError, "--epochs and --steps say the same thing twice"),
        ({"backbones": PAIR, "learning_rate": 0.0}, UsageError, "--learning-rate 0.0: expected a number above 0"),
        ({"backbones": PAIR, "seeds": 0}, UsageError, "--seeds 0: expected 1 or more"),
        ({"backbones": PAIR, "shift": 1.0}, UsageError, "--shift 1.0: expected from 0 to below 1"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path, settings: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        race(folder, out=tmp_path / "run", **(QUICK | settings))


def test_without_labels_or_with_one_class_there_is_no_race(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(4):
        Image.fromarray(draw(0, number)).save(flat / f"{number}.png")
    with pytest.raises(DataError, match="no labels"):
        race(flat, backbones=PAIR, out=tmp_path / "run", **QUICK)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    with pytest.raises(DataError, match="class"):
        race(write_folder(tmp_path / "one", 4, ("only",)), backbones=PAIR, out=tmp_path / "run2", **QUICK)


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"verb": "race", "verdict": ["x"], "pairs": []}))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match="nothing under 'arms'"):
        build_report(tmp_path)
