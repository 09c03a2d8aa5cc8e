"""Few-shot episodes: how they are drawn, and the nearest mean against a slow loop."""

from __future__ import annotations

import numpy as np
import pytest

from offshelf.errors import NotApplicable
from offshelf.evaluate.battle.few_shot import _accuracies, draw_episodes


def test_episodes_hold_different_classes_and_different_rows() -> None:
    labels = np.repeat(np.arange(8), 12)
    rows = draw_episodes(labels, np.arange(96), ways=5, pictures=10, episodes=40, seed=0)
    assert rows.shape == (40, 5, 10)
    for episode in rows:
        classes = labels[episode]
        assert (classes == classes[:, :1]).all()
        assert len(set(classes[:, 0])) == 5
        assert len(np.unique(episode)) == 50
    assert np.unique(rows).size == 96  # over the episodes every row has its turn
    assert np.array_equal(rows, draw_episodes(labels, np.arange(96), ways=5, pictures=10, episodes=40, seed=0))
    assert not np.array_equal(rows, draw_episodes(labels, np.arange(96), ways=5, pictures=10, episodes=40, seed=1))


def test_two_pictures_of_a_patient_never_meet() -> None:
    labels, units = np.repeat([0, 1], 12), np.repeat(np.arange(12), 2)
    rows = draw_episodes(labels, units, ways=2, pictures=6, episodes=30, seed=3)
    for episode in rows.reshape(-1, 6):
        assert len(np.unique(units[episode])) == 6
    with pytest.raises(NotApplicable, match="0 of 2 classes have 7 independent pictures"):
        draw_episodes(labels, units, ways=2, pictures=7, episodes=1, seed=0)


def test_too_few_classes_are_named() -> None:
    with pytest.raises(NotApplicable, match=r"letters: 3 of 3 classes have 4 .* 5 are needed.*--ways"):
        draw_episodes(np.repeat(np.arange(3), 4), np.arange(12), ways=5, pictures=4, episodes=1, seed=0, name="letters")


def test_the_nearest_mean_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 4, 2 + 5, 8)) + 0.8 * rng.normal(size=(6, 4, 1, 8))
    slow = []
    for episode in x:
        means = [support[:2].mean(axis=0) for support in episode]
        right = [
            np.argmin([np.linalg.norm(query - mean) for mean in means]) == way
            for way, pictures in enumerate(episode)
            for query in pictures[2:]
        ]
        slow.append(np.mean(right))
    assert _accuracies(x, 2) == pytest.approx(slow)
    assert 0.25 < np.mean(slow) < 1.0


def test_far_classes_are_all_right_and_equal_ones_are_chance() -> None:
    far = np.eye(5)[None, :, None, :].repeat(3, axis=2)
    assert _accuracies(far, 1).tolist() == [1.0]
    same = np.ones((1, 5, 3, 5))
    assert _accuracies(same, 1).tolist() == [0.2]  # all ties go to the first class
