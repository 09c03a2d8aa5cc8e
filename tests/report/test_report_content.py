from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import f1_score, log_loss

from offshelf.errors import RunError
from offshelf.report import content

FOLDER = Path("runs/one")


def test_arms_are_ranked_with_undefined_last_and_the_best_first_among_equals(results: dict[str, Any]) -> None:
    value = results["arms"][1]["metrics"]["balanced_accuracy"]
    results["arms"][0]["metrics"]["balanced_accuracy"] = dict(value)
    results["arms"][2]["metrics"]["balanced_accuracy"] = content.EMPTY_CELL
    results["best"] = results["arms"][1]["name"]
    page = content.prepare(results, {}, FOLDER)
    assert [arm["name"] for arm in page["arms"]] == ["deep + logistic", "deep + svm-rbf", "reproductive + svm-linear"]
    assert page["best"]["name"] == "deep + logistic"


def test_what_guessing_reaches(results: dict[str, Any]) -> None:
    lines = {metric.key: metric.line for metric in content.prepare(results, {}, FOLDER)["metrics"]}
    assert lines["balanced_accuracy"] == pytest.approx(1 / 3)
    assert lines["accuracy"] == 0.412
    assert lines["macro_auroc"] == 0.5
    assert lines["macro_average_precision"] == pytest.approx(1 / 3)
    uniform = log_loss([0, 1, 2], [[1 / 3] * 3] * 3)
    assert lines["log_loss"] == pytest.approx(uniform)
    assert lines["brier"] == pytest.approx((1 / 3 - 1) ** 2 + 2 / 9)
    assert lines["calibration_error"] is None
    counts = [sum(row) for row in results["arms"][0]["confusion"]]
    truth = [index for index, number in enumerate(counts) for _ in range(number)]
    always = f1_score(truth, [2] * len(truth), average="macro", zero_division=0)  # COVID-19, the majority class
    assert lines["macro_f1"] == pytest.approx(always)


def test_the_two_class_brier_score_is_halved(results_of: Any) -> None:
    results = results_of(classes=["a", "b"])
    line = next(metric.line for metric in content.prepare(results, {}, FOLDER)["metrics"] if metric.key == "brier")
    assert line == 0.25


def test_a_metric_unknown_to_the_report_is_shown_under_its_own_name(results: dict[str, Any]) -> None:
    results["arms"][0]["metrics"]["weighted_f1"] = results["arms"][0]["metrics"]["macro_f1"]
    page = content.prepare(results, {}, FOLDER)
    assert page["metrics"][-1].label == "Weighted f1"
    assert page["arms"][-1]["metrics"]["weighted_f1"] == content.EMPTY_CELL


@pytest.mark.parametrize("key", ["classes", "data", "arms", "best", "baselines"])
def test_a_missing_part_is_named(results: dict[str, Any], key: str) -> None:
    del results[key]
    with pytest.raises(RunError, match=rf"results\.json: nothing under '{key}'.*Run it again"):
        content.prepare(results, {}, FOLDER)


def test_a_best_arm_that_is_none_of_the_arms_is_refused(results: dict[str, Any]) -> None:
    results["best"] = "another"
    with pytest.raises(RunError, match="'another' is not among the arms"):
        content.prepare(results, {}, FOLDER)


def test_nan_counts_as_undefined(results: dict[str, Any]) -> None:
    results["arms"][0]["metrics"]["macro_auroc"]["value"] = math.nan
    page = content.prepare(results, {}, FOLDER)
    arm = next(arm for arm in page["arms"] if arm["name"] == "deep + svm-rbf")
    assert arm["metrics"]["macro_auroc"]["value"] is None


def test_characters_that_a_page_cannot_carry_become_visible() -> None:
    assert content.printable({"a\x00": ["b\udc80c", "tab\tstays", 3]}) == {"a\ufffd": ["b\ufffdc", "tab\tstays", 3]}


def test_a_raised_control_is_not_said_twice_and_alarms_come_first(results: dict[str, Any]) -> None:
    controls = results["controls"]
    controls["source"]["level"] = "alarm"
    controls["blank_centre"]["level"] = "warning"
    results["verdict"].append(controls["source"]["sentence"])
    page = content.prepare(results, {}, FOLDER)
    assert [control["level"] for control in page["raised"]] == ["alarm", "warning"]
    assert controls["source"]["sentence"] not in page["verdict"]
    assert len(page["verdict"]) == 3


def test_thumbnails_stop_at_their_budget_and_must_be_pictures(
    results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistakes = results["mistakes"]
    mistakes[1]["thumbnail"] = "data:text/html;base64,PGI+"
    mistakes[2]["thumbnail"] = None
    monkeypatch.setattr(content, "THUMBNAIL_BYTES", len(mistakes[0]["thumbnail"]) + len(mistakes[3]["thumbnail"]))
    shown = content.with_thumbnails(copy.deepcopy(mistakes))
    assert [one["thumbnail"] is not None for one in shown[:5]] == [True, False, False, True, False]
    assert len(shown) == 30


def test_the_curves_of_the_lowest_auroc_are_kept(results_of: Any) -> None:
    results = results_of(classes=[f"class {i}" for i in range(14)], arms=[("one", 1.0)])
    page = content.prepare(results, {}, FOLDER)
    chosen = content.curves(page["best"])
    every = sorted(row["auroc"]["value"] for row in page["best"]["per_class"].values())
    assert [curve["auroc"]["value"] for curve in chosen] == every[:10]


def test_confusions_are_the_largest_cells_beside_the_diagonal() -> None:
    arm = {"confusion": [[5, 2, 0], [7, 1, 1], [0, 0, 9]]}
    assert content.confusions(arm, ["a", "b", "c"], most=2) == [
        {"truth": "b", "predicted": "a", "count": 7, "n": 9},
        {"truth": "a", "predicted": "b", "count": 2, "n": 7},
    ]


def test_the_score_corrected_for_the_choice_needs_a_choice() -> None:
    cell = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 50, "interval": "bootstrap"}
    assert content.corrected(cell | {"arms": 1}) is None
    assert content.corrected(cell | {"arms": 4, "value": None}) is None
    assert content.corrected(cell | {"arms": 4})["value"] == 0.9  # type: ignore[index]
    assert content.corrected(None) is None


def test_of_very_many_classes_and_comparisons_the_telling_ones_are_kept() -> None:
    rows = {f"class {i}": {"f1": {"value": None if i == 5 else (i % 251) / 251}} for i in range(250)}
    kept = content.class_rows({"per_class": rows})
    assert len(kept) == 200 and "class 5" not in kept and "class 0" in kept and "class 249" not in kept
    pairs = [{"a": f"arm {i}", "b": f"arm {j}"} for i in range(30) for j in range(i)]
    shown = content.foremost(pairs, "arm 7")
    assert len(shown) == 200
    assert all("arm 7" in one.values() for one in shown[:29]) and "arm 7" not in shown[29].values()
    assert content.foremost(pairs[:200], "arm 7") == pairs[:200]
