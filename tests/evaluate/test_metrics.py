import numpy as np
import pytest
from sklearn import metrics as reference

from offshelf.evaluate.metrics import class_counts, confusion_matrix, counts_of_matrix

WORKED = np.array([[8, 2, 0], [1, 9, 0], [0, 1, 4]])


def rows_of(matrix):
    truth, predicted = np.nonzero(matrix)
    times = matrix[truth, predicted]
    return np.repeat(truth, times), np.repeat(predicted, times)


def test_worked_matrix():
    y, p = rows_of(WORKED)
    assert np.array_equal(confusion_matrix(y, p, 3), WORKED)
    counts = class_counts(y, p, 3)
    assert counts.accuracy[0] == pytest.approx(0.84)
    assert counts.weighted(counts.precision)[0] == pytest.approx(0.855556, abs=5e-7)
    assert counts.weighted(counts.sensitivity)[0] == pytest.approx(0.84)
    assert counts.weighted(counts.specificity)[0] == pytest.approx(0.893333, abs=5e-7)
    assert counts.weighted(counts.f1)[0] == pytest.approx(0.841893, abs=5e-7)
    assert counts.balanced_accuracy[0] == pytest.approx((0.8 + 0.9 + 0.8) / 3)
    same = counts_of_matrix(WORKED)
    assert np.array_equal(same.hits, counts.hits)
    assert np.array_equal(same.predicted, counts.predicted)


def test_weighted_sensitivity_is_the_accuracy_of_every_matrix():
    rng = np.random.default_rng(0)
    for _ in range(50):
        k = rng.integers(2, 8)
        counts = counts_of_matrix(rng.integers(0, 5, (k, k)) + np.eye(k, dtype=int))
        assert counts.weighted(counts.sensitivity)[0] == pytest.approx(counts.accuracy[0])


@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_scikit_learn(weighted):
    rng = np.random.default_rng(1)
    y, p = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    w = rng.integers(0, 4, 200).astype(float) if weighted else None
    counts = class_counts(y, p, 5, w)
    precision, recall, f1, _ = reference.precision_recall_fscore_support(y, p, sample_weight=w)
    assert np.allclose(counts.precision[:, 0], precision)
    assert np.allclose(counts.sensitivity[:, 0], recall)
    assert np.allclose(counts.f1[:, 0], f1)
    assert counts.accuracy[0] == pytest.approx(reference.accuracy_score(y, p, sample_weight=w))
    assert counts.balanced_accuracy[0] == pytest.approx(reference.balanced_accuracy_score(y, p, sample_weight=w))
    assert counts.macro(counts.f1)[0] == pytest.approx(reference.f1_score(y, p, average="macro", sample_weight=w))
    specificity = [reference.recall_score(y != c, p != c, sample_weight=w) for c in range(5)]
    assert np.allclose(counts.specificity[:, 0], specificity)
    assert np.allclose(confusion_matrix(y, p, 5, w), reference.confusion_matrix(y, p, sample_weight=w))


def test_many_columns_equal_one_at_a_time():
    rng = np.random.default_rng(2)
    y, p, w = rng.integers(0, 3, 40), rng.integers(0, 3, 40), rng.integers(0, 3, (40, 7))
    many = class_counts(y, p, 3, w)
    for b in range(7):
        one = class_counts(y, p, 3, w[:, b])
        assert np.allclose(many.f1[:, b], one.f1[:, 0])
        assert many.accuracy[b] == one.accuracy[0]


def test_what_is_undefined_is_nan_unless_told_otherwise():
    y, p = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 0])
    counts = class_counts(y, p, 3)
    assert np.isnan(counts.precision[1, 0])
    assert np.isnan(counts.sensitivity[2, 0])
    assert counts.f1[1, 0] == 0
    assert counts.balanced_accuracy[0] == 0.5  # the class without rows is not in the mean
    assert np.isnan(counts.weighted(counts.precision)[0])
    zero = class_counts(y, p, 3, zero_division=0.0)
    assert zero.precision[1, 0] == 0
    assert zero.weighted(zero.precision)[0] == 0.25


def test_perfect_predictions_are_one_everywhere():
    y = np.array([0, 1, 2, 2])
    counts = class_counts(y, y, 3)
    for values in (counts.sensitivity, counts.specificity, counts.precision, counts.f1):
        assert np.all(values == 1)
