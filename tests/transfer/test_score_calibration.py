from __future__ import annotations

import numpy as np
import pytest

from offshelf.transfer.score_calibration import by_logistic, by_temperature, log_loss, temperature
from offshelf.transfer.voting import summed_margins, vote_scores, votes


def overconfident(n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the softmax of logits, and those logits five times too large."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(n, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    codes = (random.random((n, 1)) > p.cumsum(axis=1)).sum(axis=1)
    return 5 * logits, codes


def test_temperature_finds_the_factor() -> None:
    assert temperature(*overconfident()) == pytest.approx(5.0, rel=0.1)


def test_logistic_matches_the_best_temperature_or_betters_it() -> None:
    scores, codes = overconfident()
    loss = -np.log(by_logistic(scores, codes, 3).probabilities(scores)[np.arange(len(codes)), codes]).mean()
    assert loss <= log_loss(scores / 5, codes) + 1e-3


def test_two_classes_and_missing_classes() -> None:
    random = np.random.default_rng(1)
    codes = random.integers(0, 2, 200)
    margin = random.normal(size=200) + 2 * codes - 1
    scores = np.stack([-margin, margin], axis=1)
    p = by_logistic(scores, codes, 2).probabilities(scores)
    assert np.corrcoef(p[:, 1], margin)[0, 1] > 0.9
    wide = np.hstack([scores, np.full((200, 1), -9.0)])
    calibration = by_logistic(wide, codes, 3)
    assert calibration.kind == "temperature"
    np.testing.assert_allclose(calibration.probabilities(wide).sum(axis=1), 1.0)
    assert by_temperature(np.empty((0, 3)), np.empty(0, int), 3).kind == "none"


def test_votes_by_hand() -> None:
    pairwise = np.array([[1.0, -2.0, 0.5]])  # pairs (0,1), (0,2), (1,2)
    assert votes(pairwise, 3).tolist() == [[1.0, 1.0, 1.0]]
    assert summed_margins(pairwise, 3).tolist() == [[-1.0, -0.5, 1.5]]
    np.testing.assert_allclose(vote_scores(pairwise, 3), [[1 - 1 / 6, 1 - 0.5 / 4.5, 1 + 1.5 / 7.5]])
