"""The page of an evaluation, from results as strange as they may be. `tests/jobs/test_evaluate.py` has real ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offshelf.errors import RunError
from offshelf.evaluate.bootstrap import evaluate
from offshelf.evaluate.drop_decomposition import drop_decomposition, drops
from offshelf.evaluate.multilabel_imagenet import MultiLabelReport
from offshelf.report.build import build_report

CLASSES = ["a <b>cat</b>", "dog", "fish"]
HOSTILE = "ward/<img src=x onerror=alert(1)>.csv"


def reports(label: bool = True) -> list[MultiLabelReport]:
    random = np.random.default_rng(0)
    found = []
    for several in (10, 40):
        sets = [[number % 3] for number in range(50)] + [[number % 3, (number + 1) % 3] for number in range(several)]
        scores = random.normal(size=(len(sets), 3))
        for row, one in enumerate(sets):
            scores[row, one] += 1.5
        labels = [one[0] for one in sets] if label else None
        found.append(MultiLabelReport(scores, sets, labels, n_boot=100))
    return found


def common() -> dict[str, Any]:
    return {
        "title": HOSTILE,
        "verb": "evaluate",
        "classes": CLASSES,
        "verdict": ["It is <i>good</i>.", "And more."],
        "data": {"source": HOSTILE, "n": 30, "n_used": 29, "bad_files": [{"path": HOSTILE, "error": "cut off"}]},
        "evaluated": {"run": "runs/x", "arm": "deep + logistic", "source": "old/"},
        "protocol": {"label": "evaluation/v1", "metrics": {"accuracy": "share"}},
        "cost": {"total_seconds": 3.0, "images_per_second": 20.0},
    }


def one_label() -> dict[str, Any]:
    random = np.random.default_rng(0)
    spread = random.dirichlet(np.ones(3), 30)
    found = evaluate(np.arange(30) % 2, spread, CLASSES, n_boot=50)  # no fish
    return common() | found | {"baselines": {"chance": 0.5, "majority": 0.5, "majority_class": CLASSES[0]}}


def label_sets(label: bool = True) -> dict[str, Any]:
    p, q = reports(label)
    metrics = ("top_1", "real") if label else ("real",)
    against = {
        "data": common()["data"] | {"source": "other.csv"},
        "multilabel": q.to_dict(),
        "drops": drops(p, q),
        "decomposition": {metric: drop_decomposition(p, q, metric) for metric in metrics},
    }
    return common() | {"multilabel": p.to_dict(), "against": against}


def page(folder: Path, results: dict[str, Any]) -> str:
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "run.json").write_text(json.dumps({"command": "offshelf evaluate runs/x new/", "seed": 0}))
    return build_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("results", [one_label(), label_sets(), label_sets(label=False)], ids=["one", "sets", "no one"])
def test_names_are_escaped_and_nothing_is_fetched(tmp_path: Path, results: dict[str, Any]) -> None:
    text = page(tmp_path, results)
    assert "<img src=x" not in text and "<b>cat" not in text and "<i>good" not in text
    assert not re.search(r'(?:src|href)="https?:', text)
    assert "offshelf evaluate runs/x new/" in text and "cut off" in text
    assert len(re.findall(r'id="([^"]+)"', text)) == len(set(re.findall(r'id="([^"]+)"', text)))
    assert text == page(tmp_path, results)  # equal results give equal bytes
    assert not re.search(r">\s*(?:nan|None)\s*<", text)


def test_one_label_a_picture(tmp_path: Path) -> None:
    results = one_label()
    text = page(tmp_path, results)
    accuracy = results["metrics"]["accuracy"]
    assert f"{accuracy['value']:.3f}" in text and f"[{accuracy['low']:.3f}, {accuracy['high']:.3f}]" in text
    assert "commonest class 0.500" in text and "chance 0.500" in text
    assert "not defined" in text  # the sensitivity of a class without pictures
    assert "What the drop is made of" not in text


def test_sets_of_valid_labels_and_the_drop(tmp_path: Path) -> None:
    results = label_sets()
    text = page(tmp_path, results)
    split = results["against"]["decomposition"]["top_1"]
    assert f"{split['composition']['value']:+.3f}".replace("-", "\N{MINUS SIGN}") in text
    assert "50 of 60" not in text and "10 of 60 pictures have several valid labels" in text
    assert "40 of 90 pictures have several valid labels" in text
    assert "2 valid labels, n = 10" in text and "of the subgroups of equally many valid labels with intervals" in text
    without = page(tmp_path, label_sets(label=False))
    assert "Top-1" not in without and "ReaL, subgroup by subgroup" in without


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    for key in ("classes", "data", "evaluated", "verdict"):
        results = one_label()
        del results[key]
        with pytest.raises(RunError, match=f"nothing under '{key}'; expected the results of an evaluate run"):
            page(tmp_path, results)
    with pytest.raises(RunError, match="neither 'metrics' nor 'multilabel'"):
        page(tmp_path, common())
