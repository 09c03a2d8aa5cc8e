"""`offshelf inspect` where the networks are transformers: legal with gates, or with pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offshelf import cli


def test_a_convit_needs_no_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert cli.run(["inspect", "convit_mini.random", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Locality of attention" in said and "0.731 to 0.731" in said
    results: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["locality"]["convit_mini.random"]["layers"][0]["gate"] == pytest.approx(0.7310586)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "A look into convit_mini.random" in text and "told from the weights" in text


def test_a_vision_transformer_needs_pictures(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "test_vit.random"
    assert cli.run(["inspect", name, "--out", str(tmp_path / "none")]) == 1
    assert "With --data PICTURES its attention is looked at." in capsys.readouterr().err
    assert cli.run(["inspect", name, "--data", str(folder), "--out", str(tmp_path / "run"), "--json"]) == 0
    study = json.loads(capsys.readouterr().out)["locality"][name]
    assert study["pictures"] == 32 and len(study["layers"]) == 6
