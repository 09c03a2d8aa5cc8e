import numpy as np
import pytest
from sklearn import metrics as reference

from offshelf.evaluate.reliability import Reliability, bin_of, brier_rows, log_loss_rows, weighted_mean


@pytest.mark.parametrize("k", [2, 4])
def test_log_loss_and_brier_agree_with_scikit_learn(k):
    rng = np.random.default_rng(k)
    y, p, w = rng.integers(0, k, 100), rng.dirichlet(np.ones(k), 100), rng.integers(0, 3, 100)
    assert weighted_mean(log_loss_rows(y, p), w)[0] == pytest.approx(reference.log_loss(y, p, sample_weight=w))
    brier = weighted_mean(brier_rows(y, p))[0]
    assert brier == pytest.approx(reference.brier_score_loss(y, p[:, 1] if k == 2 else p, labels=list(range(k))))


def test_brier_by_hand():
    p = np.array([[0.7, 0.2, 0.1]])
    assert brier_rows(np.array([0]), p)[0] == pytest.approx(0.09 + 0.04 + 0.01)
    assert brier_rows(np.array([0]), np.array([[0.7, 0.3]]))[0] == pytest.approx(0.09)


def test_zero_probability_is_finite():
    assert log_loss_rows(np.array([0]), np.array([[0.0, 1.0]]))[0] == pytest.approx(36.0437, abs=1e-3)


def test_calibration_error_by_hand():
    # Bin 0.9 to 1: 4 rows at 0.95, 3 right: gap 0.2. Bin 0.5 to 0.6: 6 rows at 0.55, 3 right: gap 0.05.
    confidence = np.array([0.95] * 4 + [0.55] * 6)
    correct = np.array([1, 1, 1, 0] + [1, 1, 1, 0, 0, 0], dtype=bool)
    reliability = Reliability(correct, confidence)
    assert reliability.error()[0] == pytest.approx(0.4 * 0.2 + 0.6 * 0.05)
    accuracy = reliability.bin_accuracy()[:, 0]
    assert (accuracy[9], accuracy[5]) == (0.75, 0.5)
    assert np.isnan(accuracy[[0, 1, 2, 3, 4, 6, 7, 8]]).all()
    only_sure = np.array([1.0] * 4 + [0.0] * 6)
    assert reliability.error(only_sure)[0] == pytest.approx(0.2)


def test_bin_edges():
    assert bin_of(np.array([0.0, 0.1, 0.5, 0.99, 1.0])).tolist() == [0, 1, 5, 9, 9]
