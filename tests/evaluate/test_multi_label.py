from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from offshelf.errors import DataError
from offshelf.evaluate.multi_label import LabelScores, evaluate_labels, label_baselines, measurable
from offshelf.evaluate.splits import Fold

RANDOM = np.random.default_rng(3)
N = 240
LABELS = (RANDOM.random((N, 3)) < [0.4, 0.2, 0.1]).astype(float)
SCORES = np.clip(0.3 * LABELS + 0.6 * RANDOM.random((N, 3)), 0, 1)
LABELS[RANDOM.random((N, 3)) < 0.15] = np.nan
NAMES = ["a", "b", "c"]
GROUPS = RANDOM.integers(0, 60, N)
ALL = np.ones(3, bool)


def test_the_numbers_are_those_of_scikit_learn_on_the_known_rows() -> None:
    found = evaluate_labels(LABELS, SCORES, NAMES, ALL, n_boot=200)
    areas, precisions = [], []
    for k, name in enumerate(NAMES):
        known = ~np.isnan(LABELS[:, k])
        y, p = LABELS[known, k], SCORES[known, k]
        areas.append(roc_auc_score(y, p))
        precisions.append(average_precision_score(y, p))
        row = found["per_class"][name]
        assert row["auroc"]["value"] == pytest.approx(areas[-1], abs=1e-12)
        assert row["average_precision"]["value"] == pytest.approx(precisions[-1], abs=1e-12)
        assert row["brier"]["value"] == pytest.approx(((y - p) ** 2).mean())
        assert row["sensitivity"]["value"] == pytest.approx((p[y == 1] >= 0.5).mean())
        assert row["specificity"]["value"] == pytest.approx((p[y == 0] < 0.5).mean())
        assert (row["n"], row["known"], row["auroc"]["n"]) == (y.sum(), known.sum(), known.sum())
        assert row["sensitivity"]["n"] == y.sum()
    assert found["metrics"]["macro_auroc"]["value"] == pytest.approx(np.mean(areas))
    assert found["metrics"]["macro_average_precision"]["value"] == pytest.approx(np.mean(precisions))
    assert found["confusion"] == [] and found["calibration"] == []
    assert found["roc"]["a"]["tpr"][-1] == 1.0


def test_weights_are_repeated_rows() -> None:
    times = RANDOM.integers(0, 3, N)
    repeated = np.repeat(np.arange(N), times)
    weighted = LabelScores(LABELS, SCORES, ALL).sample(times[:, None].astype(float))
    point = LabelScores(LABELS[repeated], SCORES[repeated], ALL).point()
    for name, values in point.per_label.items():
        assert weighted.per_label[name] == pytest.approx(values, abs=1e-12), name
    for name, mean in point.overall.items():
        assert weighted.overall[name] == pytest.approx(mean, abs=1e-12), name


def test_the_interval_draws_groups_whole() -> None:
    alone = evaluate_labels(LABELS, SCORES, NAMES, ALL, n_boot=400)["metrics"]["macro_auroc"]
    twice = np.concatenate([np.arange(N)] * 2)
    pairs = evaluate_labels(LABELS[twice], SCORES[twice], NAMES, ALL, groups=twice, n_boot=400)
    naive = evaluate_labels(LABELS[twice], SCORES[twice], NAMES, ALL, n_boot=400)["metrics"]["macro_auroc"]
    found = pairs["metrics"]["macro_auroc"]
    width = alone["high"] - alone["low"]
    assert found["value"] == pytest.approx(alone["value"])
    assert found["high"] - found["low"] == pytest.approx(width, rel=0.1)
    assert naive["high"] - naive["low"] < 0.8 * width  # what a bootstrap of rows would have claimed
    assert alone["low"] < alone["value"] < alone["high"]


def test_the_mean_leaves_out_what_is_not_measured() -> None:
    some = np.array([True, False, True])
    found = evaluate_labels(LABELS, SCORES, NAMES, some, n_boot=50)
    each = [found["per_class"][name]["auroc"]["value"] for name in "ac"]
    assert found["metrics"]["macro_auroc"]["value"] == pytest.approx(np.mean(each))
    assert [row["measured"] for row in found["per_class"].values()] == [True, False, True]
    nothing = evaluate_labels(LABELS, SCORES, NAMES, np.zeros(3, bool), n_boot=50)
    assert nothing["metrics"]["macro_auroc"]["value"] is None


def test_labels_that_cannot_be_measured_are_named_with_the_reason() -> None:
    labels = np.zeros((20, 5))
    labels[::2, 0] = 1  # can be measured
    labels[[0, 10, 12], 1] = 1  # two tested pictures with it
    labels[10:, 2] = 1  # never in the training part
    labels[:, 3] = np.nan  # known nowhere
    labels[[0, 11, 13, 15], 4] = 1  # three tested pictures of two patients
    fold = Fold(np.arange(10), np.arange(10, 20), "test split")
    patients = np.arange(20)
    patients[13] = patients[11]
    found = measurable(labels, [fold], list("abcde"), patients)
    assert found.measured.tolist() == [True, False, False, False, False]
    assert found.left_out == {
        "b": "tested groups with it: 2, without it: 7; 3 of each are needed",
        "c": "the training part of test split holds only pictures without it",
        "d": "the training part of test split holds no known answer",
        "e": "tested groups with it: 2, without it: 7; 3 of each are needed",
    }
    assert measurable(labels, [fold], list("abcde")).measured.tolist() == [True, False, False, False, True]


def test_baselines_are_the_shares_of_the_known_answers() -> None:
    labels = np.array([[1, 0], [0, np.nan], [np.nan, 1], [0, 0]])
    found = label_baselines(labels, np.arange(4), np.array([True, True]))
    assert found["prevalence"] == pytest.approx(1 / 3)
    assert found["chance"] == 0.5


def test_a_perfect_ranking_has_wilsons_interval() -> None:
    labels = np.repeat([[1.0], [0.0]], 10, axis=0)
    cell = evaluate_labels(labels, labels, ["a"], np.ones(1, bool), n_boot=100)["metrics"]["macro_auroc"]
    assert cell["value"] == 1.0
    assert cell["interval"] == "wilson"
    assert 0.6 < cell["low"] < 0.8 and cell["high"] == 1.0


def test_answers_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match=r"probabilities, row 1, label 0: 1.2; expected 0 to 1"):
        LabelScores(np.zeros((2, 1)), np.array([[0.0], [1.2]]), np.ones(1, bool))
    with pytest.raises(DataError, match=r"labels, row 0, label 0: 2.0; expected 0, 1 or NaN"):
        LabelScores(np.array([[2.0]]), np.zeros((1, 1)), np.ones(1, bool))
    with pytest.raises(DataError, match="expected the same"):
        LabelScores(np.zeros((2, 2)), np.zeros((2, 1)), np.ones(2, bool))
