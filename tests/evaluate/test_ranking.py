import numpy as np
import pytest
from sklearn import metrics as reference

from offshelf.evaluate.ranking import Ranking, auroc, average_precision, roc_points


@pytest.mark.parametrize("digits", [16, 1])  # with one digit most scores are tied
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_scikit_learn(digits, weighted):
    rng = np.random.default_rng(0)
    for _ in range(10):
        y = rng.random(80) < 0.3
        s = np.round(rng.random(80) + 0.3 * y, digits)
        w = rng.integers(0, 3, 80).astype(float) if weighted else None
        assert auroc(y, s, w)[0] == pytest.approx(reference.roc_auc_score(y, s, sample_weight=w))
        assert average_precision(y, s, w)[0] == pytest.approx(reference.average_precision_score(y, s, sample_weight=w))


def test_many_columns_equal_one_at_a_time():
    rng = np.random.default_rng(1)
    y, s, w = rng.random(60) < 0.4, np.round(rng.random(60), 1), rng.integers(0, 3, (60, 9))
    ranking = Ranking(y, s)
    areas, precisions = ranking.auroc_and_average_precision(w)
    for b in range(9):
        assert areas[b] == pytest.approx(reference.roc_auc_score(y, s, sample_weight=w[:, b]))
        assert precisions[b] == pytest.approx(reference.average_precision_score(y, s, sample_weight=w[:, b]))


def test_by_hand_and_undefined():
    # Positives at 0.9 and 0.4, negatives at 0.4 and 0.1: 3.5 of 4 pairs in order.
    y, s = np.array([1, 1, 0, 0], dtype=bool), np.array([0.9, 0.4, 0.4, 0.1])
    assert auroc(y, s)[0] == 3.5 / 4
    assert average_precision(y, s)[0] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert np.isnan(auroc(np.zeros(4, bool), s)[0])
    assert np.isnan(average_precision(np.zeros(4, bool), s)[0])
    assert np.isnan(auroc(np.ones(4, bool), s)[0])
    assert average_precision(np.ones(4, bool), s)[0] == 1


def test_roc_points_are_thinned_and_keep_the_area():
    rng = np.random.default_rng(2)
    y = rng.random(5000) < 0.5
    s = rng.normal(size=5000) + y
    fpr, tpr = roc_points(y, s)
    assert 150 < len(fpr) <= 200
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.all(np.diff(fpr) >= 0)
    assert np.all(np.diff(tpr) >= 0)
    assert np.trapezoid(tpr, fpr) == pytest.approx(auroc(y, s)[0], abs=2e-3)
    few = roc_points(np.array([1, 1, 0, 0], dtype=bool), np.array([0.9, 0.8, 0.3, 0.2]))
    assert (few[0].tolist(), few[1].tolist()) == ([0, 0, 1], [0, 1, 1])
    assert roc_points(np.ones(3, bool), np.arange(3))[0].size == 0
