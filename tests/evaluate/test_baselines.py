import numpy as np
import pytest

from offshelf.evaluate.baselines import baselines
from offshelf.evaluate.splits import Fold, outer_folds


def test_levels():
    labels = np.array([0] * 30 + [1] * 20 + [2] * 10)
    levels = baselines(labels, outer_folds(labels), ["a", "b", "c"])
    assert levels == {"chance": pytest.approx(1 / 3), "majority": 0.5, "majority_class": "a"}


def test_the_training_rows_decide_the_answer():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    fold = Fold(np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7]), "test split")
    assert baselines(labels, [fold], ["a", "b"]) == {"chance": 0.5, "majority": 0.25, "majority_class": "a"}


def test_chance_counts_the_classes_that_are_tested():
    labels = np.array([0, 1, 2, 0, 1])
    fold = Fold(np.array([0, 1, 2]), np.array([3, 4]), "test split")
    assert baselines(labels, [fold], ["a", "b", "c"])["chance"] == 0.5
