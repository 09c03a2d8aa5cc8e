"""The page of results holds what the result files hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.keeping import RESULTS
from benchmarks.tables import BLOCK, README, block, circumstances, filled, number, refresh, tables_of


def test_the_page_is_as_the_results_are() -> None:
    text = README.read_text(encoding="utf-8")
    assert filled(text) == text, "run python -m benchmarks tables"
    named = [found["name"] for found in BLOCK.finditer(text)]
    assert len(named) == len(set(named)) >= 5
    kept = {path.stem for path in RESULTS.glob("*.json")}
    assert kept <= set(named), f"results that the page does not show: {kept - set(named)}"
    for name in named:
        assert f"benchmarks/results/{name}.json" in text, f"no command on the page makes {name}.json"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_kept_result_is_complete(path: Path) -> None:
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert f"benchmarks/results/{path.name}" in kept["command"]
    assert {"date", "machine", "versions", "commit", "load_before", "others_share", "settings"} <= set(kept)
    assert all(table.rows for table in tables_of(kept))


def test_the_command_keeps_a_result_that_can_be_shown_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], in_this_process: list[str]
) -> None:
    path = tmp_path / "probes-toy.json"
    arguments = ["probes", "--size", "toy", "--heads", "svm", "--rounds", "1", "--json", str(path)]
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    assert main(arguments) == 0
    assert "scikit-learn, 1 thread" in capsys.readouterr().out
    kept = json.loads(path.read_text())
    assert kept["command"] == f"python -m benchmarks {' '.join(arguments)}"
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- result: probes-toy -->\nold\n<!-- end -->\nafter\n")
    assert refresh(page, tmp_path) is True
    text = page.read_text()
    assert text.startswith("before\n<!-- result: probes-toy -->\n**svm: 120 x 24, 3 classes, 3 penalties, 3 folds**\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert f"| offshelf, 1 thread | {number(kept['heads'][0]['contestants'][1]['seconds'])} |" in text
    assert refresh(page, tmp_path) is False
    assert block("never-measured", tmp_path) == "No result is kept yet.\n"


def test_a_wrong_size_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probes", "--size", "huge"]) == 2
    assert "expected one of toy, small, paper" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (None, "-"), (float("nan"), "-"), (1234.5, "1,234"), (12.345, "12.3"), (0.00123, "0.00123")],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_busy_machine_is_named() -> None:
    kept = {
        "command": "c",
        "date": "2026-01-01",
        "machine": {"cores": 2, "cpu": "some"},
        "versions": {"torch": "2", "scikit-learn": "1"},
        "commit": "abc",
        "load_before": 2.5,
        "others_share": 0.04,
    }
    assert "the machine was busy" in circumstances(kept)
    assert "busy" not in circumstances({**kept, "load_before": 0.4})
    assert "4 % of the processors went to others" in circumstances(kept)
    assert "the machine was busy" in circumstances({**kept, "load_before": 0.4, "others_share": 0.3})
    assert "busy" not in circumstances({**kept, "load_before": 0.4, "others_share": None})
