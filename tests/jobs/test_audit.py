"""`offshelf audit` as a person runs it: good data, and data of every bad kind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offshelf import cli
from offshelf.engine.runs import Run
from offshelf.errors import DataError, RunError
from offshelf.jobs.audit import audit
from offshelf.report.build import build_report
from tests.conftest import write_folder
from tests.evaluate.audit.planted import scene, write

KEYS = (
    "files",
    "near_duplicates",
    "leaks",
    "balance",
    "fingerprints",
    "shortcuts",
    "origins",
    "label_errors",
    "more_labels",
)


def levels(results: dict) -> dict[str, str]:  # type: ignore[type-arg]
    assert [check["key"] for check in results["checks"]] == list(KEYS)
    return {check["key"]: check["level"] for check in results["checks"]}


def test_a_run_is_sealed_shown_and_the_same_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "pictures", 20)
    (root / "bars" / "b<i>.png").write_bytes(b"<html>")
    assert cli.run(["audit", str(root), "--out", str(tmp_path / "one"), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "ALARM       Files: 1 of 61 files cannot be read" in said and "To do first:\n1. " in said
    assert cli.run(["audit", str(root), "--out", str(tmp_path / "two"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["level"] == "alarm" and levels(told)["files"] == "alarm"
    assert "base64" not in json.dumps(told)
    run = Run.open(tmp_path / "one")
    assert run.record["verb"] == "audit" and set(run.record["files"]) == {"results.json", "report.html"}
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["checks"] == two["checks"] and one["data"] == two["data"]
    page = (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    assert len(page) < 2_000_000 and not re.search(r'(?:src|href)="https?:', page)
    assert "b<i>" not in page and "b&lt;i&gt;.png" in page
    for key in KEYS:
        assert f'<section id="{key}"' in page
    assert page.count("<svg class") + page.count('class="figure"') >= 4
    before = page.encode()
    build_report(tmp_path / "one")
    assert (tmp_path / "one" / "report.html").read_bytes() == before


def test_without_labels_what_needs_none_is_judged(tmp_path: Path) -> None:
    for number in range(30):
        Image.fromarray(scene(number % 3, number)).save(tmp_path / f"{number}.png")
    Image.fromarray(scene(0, 0)).resize((50, 50)).save(tmp_path / "again.png")
    results = audit(tmp_path, out=tmp_path / "run").results
    told = levels(results)
    assert told["files"] == "fine" and told["near_duplicates"] == "warning" and told["leaks"] == "fine"
    assert {key for key, level in told.items() if level == "not judged"} == set(KEYS[3:])
    prints = next(check for check in results["checks"] if check["key"] == "fingerprints")
    assert prints["ranges"]["commonest_sizes"] == {"64 × 64": 30, "50 × 50": 1}
    assert "What was not judged may be wrong" in results["verdict"][-1]


def test_several_labels_a_picture(tmp_path: Path) -> None:
    lines = ["path,A,B"]
    for number in range(24):
        Image.fromarray(scene(number % 3, number)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{int(number % 3 == 0)},{int(number % 4 == 0)}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    results = audit(tmp_path / "t.csv", label_column="A,B", out=tmp_path / "run").results
    told = levels(results)
    assert told["balance"] == "warning"  # 8 and 6 pictures
    assert {key for key, level in told.items() if level == "not judged"} == set(KEYS[4:])
    balance = next(check for check in results["checks"] if check["key"] == "balance")
    assert {row["class"]: row["n"] for row in balance["rows"]} == {"A": 8, "B": 6}
    shortcuts = next(check for check in results["checks"] if check["key"] == "shortcuts")
    assert "--label-column" in shortcuts["sentence"]


def test_one_class_is_an_alarm(tmp_path: Path) -> None:
    root = write(tmp_path / "pictures", 15, classes=("only",))
    told = audit(root, out=tmp_path / "run").results
    assert levels(told)["balance"] == "alarm" and "nothing to tell apart" in told["checks"][3]["sentence"]
    assert set(list(levels(told).values())[4:]) == {"not judged"}


def test_two_pictures(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for kind, name in enumerate(("a", "b")):
        (root / name).mkdir(parents=True)
        Image.fromarray(scene(kind, 0)).save(root / name / "x.png")
    told = levels(audit(root, out=tmp_path / "run").results)
    assert told["balance"] == "alarm"
    assert [key for key, level in told.items() if level == "fine"] == ["files", "near_duplicates", "leaks"]


def test_some_labels_missing(tmp_path: Path) -> None:
    root = write(tmp_path / "pictures", 12)
    lines = ["path,label"]
    for kind, name in enumerate(("bars", "disc", "rings")):
        lines += [f"{name}/{kind * 12 + n:04d}.png,{name if n else ''}" for n in range(12)]
    (root / "t.csv").write_text("\n".join(lines))
    results = audit(root / "t.csv", out=tmp_path / "run").results
    assert "3 pictures have no label" in results["checks"][3]["sentence"]
    assert next(check for check in results["checks"] if check["key"] == "label_errors")["n"] == 33


def test_no_pictures_or_none_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        audit(tmp_path / "empty", out=tmp_path / "run")
    (tmp_path / "broken" / "a").mkdir(parents=True)
    (tmp_path / "broken" / "a" / "x.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of 1 pictures can be read; the first: .*x.png"):
        audit(tmp_path / "broken", out=tmp_path / "run2")
    assert json.loads((tmp_path / "run2" / "run.json").read_text())["status"] == "failed"


def test_a_wrong_source_column_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pictures", 2)
    with pytest.raises(DataError, match=r"no column 'hospital' for the source.* It has: id, label"):
        audit(root, source_column="hospital", out=tmp_path / "run")


def test_a_dataset_may_be_given_from_python(tmp_path: Path) -> None:
    from offshelf.data.sources import open_dataset

    digits = open_dataset("digits").select(range(60))
    results = audit(digits, out=tmp_path / "run", name="digits").results
    assert results["data"]["source"] == "digits" and results["data"]["n_used"] == 60
    told = levels(results)
    assert told["near_duplicates"] == "not judged" and told["shortcuts"] == "not judged"  # eight pixels are too few


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"verb": "audit", "verdict": ["x"], "level": "fine", "data": {}}))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match="nothing under 'checks'"):
        build_report(tmp_path)


def test_pictures_are_cut_to_the_page() -> None:
    from offshelf.report.audit import PICTURE_BYTES, fit_pictures

    image = "data:image/jpeg;base64," + "A" * (PICTURE_BYTES // 3)
    shown = [[{"thumbnail": image} for _ in range(4)], [{"thumbnail": "javascript:alert(1)"}]]
    checks = {"near_duplicates": {"shown": shown}}
    assert fit_pictures(checks) == 2
    assert [one["thumbnail"] is not None for one in shown[0]] == [True, True, False, False]
    assert shown[1][0]["thumbnail"] is None


def test_sixteen_bit_and_palette_headers(tmp_path: Path) -> None:
    from offshelf.data.samples import as_samples
    from offshelf.evaluate.audit.looks import look_at

    Image.fromarray((np.arange(900).reshape(30, 30) * 70).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(scene(0, 0)).save(tmp_path / "a.jpg", quality=50)
    Image.fromarray(scene(0, 0)).convert("P").save(tmp_path / "p.gif")
    names = [str(tmp_path / name) for name in ("deep.png", "a.jpg", "p.gif")]
    looks, errors = look_at(as_samples(names))
    assert not errors
    headers = [header for header in looks.headers if header is not None]
    assert [(one.width, one.format, one.bit_depth) for one in headers] == [
        (30, "PNG", 16),
        (64, "JPEG", 8),
        (64, "GIF", 8),
    ]
    # The standard luminance table of the JPEG norm, which quality 50 means, has a mean of 57.625.
    assert headers[1].quantisation == pytest.approx(57.625)
    assert headers[0].quantisation == 0
    assert looks.colour[1].mean() == pytest.approx(scene(0, 0).mean(), abs=2)
