"""The metrics, schemes and pooled predictions of arXiv 2003.13145, with the worked matrix [[8,2,0],[1,9,0],[0,1,4]]."""

from __future__ import annotations

import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.data.sources import open_dataset
from offshelf.errors import DataError, UsageError
from offshelf.evaluate.metrics import confusion_matrix
from offshelf.evaluate.rows import Rows
from offshelf.evaluate.screening import (
    normal_interval,
    out_of_fold,
    restricted,
    screening_table,
    weighted_cells,
    weighted_rates,
)
from offshelf.evaluate.splits import outer_folds
from offshelf.transfer.covid_screening import CovidScreening
from offshelf.transfer.pipelines import Arm

WORKED = np.array([[8, 2, 0], [1, 9, 0], [0, 1, 4]])


def answers(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions that give a matrix."""
    truth, said = np.indices(matrix.shape)
    return np.repeat(truth.ravel(), matrix.ravel()), np.repeat(said.ravel(), matrix.ravel())


def test_the_worked_matrix() -> None:
    found = weighted_rates(WORKED)
    expected = {
        "accuracy": 0.84,
        "precision": 0.855556,
        "sensitivity": 0.84,
        "specificity": 0.893333,
        "f1": 0.841893,
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=5e-7), name
    per_class = [(25 - WORKED[k].sum() - WORKED[:, k].sum() + 2 * WORKED[k, k]) / 25 for k in range(3)]
    # the weighted one-against-the-rest accuracy, which is not the accuracy to report
    assert np.average(per_class, weights=WORKED.sum(axis=1)) == pytest.approx(0.88)


def test_weighted_sensitivity_is_the_accuracy_and_the_rest_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    for classes in (2, 3, 5):
        matrix = random.integers(1, 30, (classes, classes))
        found = weighted_rates(matrix)
        assert found["sensitivity"] == pytest.approx(found["accuracy"], abs=1e-12)
        labels, predicted = answers(matrix)
        precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="weighted")
        assert (found["precision"], found["sensitivity"], found["f1"]) == pytest.approx((precision, recall, f1))


def test_perfect_and_silent_classes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(weighted_rates(np.diag([5, 3, 2])).values()) == {1.0}
    with pytest.warns(UserWarning, match=r"class \[1\] was never predicted"):
        found = weighted_rates(np.array([[6, 0], [4, 0]]))
    # class 0: precision 0.6 of weight 0.6; class 1: 0. Specificity: 0 of weight 0.6, 1 of weight 0.4.
    assert (found["precision"], found["specificity"]) == pytest.approx((0.36, 0.4))
    for wrong in (np.zeros((2, 2)), np.ones((2, 3)), np.ones(4)):
        with pytest.raises(DataError, match="expected counts"):
            weighted_rates(wrong)


def test_both_intervals() -> None:
    assert normal_interval(0.84, 25) == pytest.approx((0.84 - 0.143707, 0.84 + 0.143707), abs=1e-5)
    assert normal_interval(1.0, 25) == (1.0, 1.0)  # of no width; Wilson's has one
    table = screening_table(np.diag([20, 5]))
    assert table["accuracy"]["normal"] == (1.0, 1.0)
    low, high = table["accuracy"]["wilson"]
    assert (low, high) == pytest.approx((25 / (25 + 1.959964**2), 1.0), abs=1e-6)
    assert table["accuracy"]["n"] == 25


def test_cells_agree_with_the_matrix_and_widen_with_groups() -> None:
    labels, predicted = answers(WORKED * 4)
    alone = weighted_cells(labels, predicted, 3, None, seed=0, n_boot=400)
    paired = weighted_cells(labels, predicted, 3, np.arange(100) // 4, seed=0, n_boot=400)
    for name in ("precision", "specificity", "f1"):
        cell, wide = alone[f"weighted_{name}"], paired[f"weighted_{name}"]
        assert cell["value"] == pytest.approx(weighted_rates(WORKED)[name])
        assert cell["low"] < cell["value"] < cell["high"]
        assert wide["high"] - wide["low"] > 1.3 * (cell["high"] - cell["low"])  # four copies of a picture are one
    perfect = weighted_cells(np.array([0, 1] * 10), np.array([0, 1] * 10), 2, None, seed=0, n_boot=50)
    assert perfect["weighted_f1"]["interval"] == "wilson" and perfect["weighted_f1"]["low"] < 1


def rows_of(labels: np.ndarray, groups: np.ndarray | None = None) -> Rows:
    pictures = [np.full((8, 8, 3), 10 * k, np.uint8) for k in labels]
    return Rows(
        samples=as_samples(np.stack(pictures)),
        labels=labels,
        classes=["normal", "viral", "covid"],
        groups=groups,
        splits=None,
        sources=None,
        positions=np.arange(len(labels)) + 100,
        together=groups,
        data={"n_used": len(labels), "notes": []},
    )


def test_shared_pictures_lie_in_the_same_fold_in_both_schemes() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [23, 31, 12]))
    rows = rows_of(labels)
    folds = outer_folds(labels, None, None, 5, seed=3)
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested) == list(range(66))  # every picture is predicted once
    for fold in folds:
        for k in range(3):
            assert abs((labels[fold.test] == k).sum() - (labels == k).sum() / 5) < 1
    two, fewer, kept = restricted(rows, folds, ["normal", "covid"])
    assert two.classes == ["normal", "covid"] and len(two.labels) == 35
    np.testing.assert_array_equal(two.labels, np.where(labels[kept] == 2, 1, 0))
    np.testing.assert_array_equal(two.positions, kept + 100)
    assert two.data["class_counts"] == {"normal": 23, "covid": 12} and "31 pictures" in two.data["notes"][-1]
    for whole, part in zip(folds, fewer, strict=True):
        assert set(kept[part.test]) == {row for row in whole.test if labels[row] != 1}
        assert set(kept[part.train]) == {row for row in whole.train if labels[row] != 1}
    same, all_folds, everywhere = restricted(rows, folds, None)
    assert same is rows and all_folds == folds and len(everywhere) == 66


def test_wrong_schemes_are_refused() -> None:
    rows, folds = rows_of(np.arange(9) % 3), outer_folds(np.arange(9) % 3, None, None, 3)
    with pytest.raises(UsageError, match="'covd': not in the data; did you mean 'covid'"):
        restricted(rows, folds, ["normal", "covd"])
    with pytest.raises(UsageError, match="at least two different"):
        restricted(rows, folds, ["covid", "covid"])


def material(folder: Path) -> tuple[np.ndarray, np.ndarray, datasets.Dataset]:
    dataset = open_dataset(folder)
    pixels, _ = load_pixels(as_samples(dataset), 32)
    return pixels, np.array(dataset["label"][:]), dataset


def test_pooled_predictions_come_from_networks_that_have_not_seen_the_picture(folder: Path) -> None:
    pixels, labels, _ = material(folder)
    folds = outer_folds(labels, None, None, 3)
    recipe = CovidScreening("test_resnet.random", image_size=32, epochs=4, batch_size=12, learning_rate=1e-3)
    seen: list[tuple[int, int]] = []
    found = out_of_fold(
        Arm("net", "head"), recipe, pixels, labels, 3, folds, after_fold=lambda k, e: seen.append((k, e.epochs))
    )
    assert seen == [(0, 4), (1, 4), (2, 4)]
    assert (found.fold >= 0).all() and not hasattr(recipe, "finetuner_")
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found.predicted, found.probabilities.argmax(axis=1))
    matrix = confusion_matrix(labels, found.predicted, 3)
    # equal seeds and folds give the equal matrix, whatever was drawn in between
    np.random.default_rng().normal()
    again = out_of_fold(Arm("net", "head"), recipe, pixels, labels, 3, folds)
    np.testing.assert_array_equal(confusion_matrix(labels, again.predicted, 3), matrix)
    np.testing.assert_array_equal(again.probabilities, found.probabilities)
    # other test pictures change no answer on the rest: nothing of them reaches the training
    changed = pixels.copy()
    changed[folds[0].test[:1]] = 255
    other = out_of_fold(Arm("net", "head"), recipe, changed, labels, 3, folds[:1])
    np.testing.assert_array_equal(other.probabilities[folds[0].test[1:]], found.probabilities[folds[0].test[1:]])
