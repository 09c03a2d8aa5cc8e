"""Outcomes: the metric against scikit-learn, its resamples against a slow loop, and that they are paired."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from offshelf.errors import DataError
from offshelf.evaluate.battle.outcome import of_rows, replicates_of
from offshelf.evaluate.resampling import resampled_weights


def answers(seed: int, n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=(0.6, 0.3, 0.1))
    return labels, np.where(rng.random(n) < 0.7, labels, rng.integers(0, 3, n))


def test_right_answers_by_class_are_balanced_accuracy_in_every_resample() -> None:
    labels, predicted = answers(0)
    units = np.arange(len(labels)) // 2  # pairs of rows are drawn whole
    found = of_rows(
        (labels == predicted).astype(float), units, metric="balanced_accuracy", chance=1 / 3, strata=labels, n_boot=50
    )
    assert found.value == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert (found.n, found.units) == (120, 60)
    weights = np.concatenate(list(resampled_weights(units, 50, 0)), axis=1)
    for column, value in zip(weights.T, found.replicates):
        expected = balanced_accuracy_score(labels, predicted, sample_weight=column)
        assert value == pytest.approx(expected, abs=1e-12)


def test_two_backbones_are_paired() -> None:
    labels, first = answers(1)
    second = first.copy()
    second[:3] = labels[:3]  # three more rows right, at most
    told = {"metric": "accuracy", "chance": 0.5}
    a = of_rows((first == labels).astype(float), np.arange(120), **told)
    b = of_rows((second == labels).astype(float), np.arange(120), **told)
    assert (b.replicates >= a.replicates).all()
    assert np.std(b.replicates - a.replicates) < 0.5 * np.std(a.replicates)


def test_a_stored_outcome_comes_back() -> None:
    labels, predicted = answers(2)
    outcome = of_rows(
        (labels == predicted).astype(float), np.arange(120), metric="accuracy", chance=0.4, about={"k": 3}
    )
    value, blob = outcome.pack()
    assert value["value"] == outcome.value
    assert value["low"] < value["value"] < value["high"]
    assert (value["metric"], value["chance"], value["units"], value["about"]) == ("accuracy", 0.4, 120, {"k": 3})
    assert np.allclose(replicates_of(blob), outcome.replicates, atol=1e-7)


@pytest.mark.parametrize(("scores", "said"), [(np.empty(0), "no row"), (np.array([1.0, np.nan]), "row 1")])
def test_nothing_to_measure_is_said(scores: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        of_rows(scores, np.arange(len(scores)), metric="accuracy", chance=0.5)
