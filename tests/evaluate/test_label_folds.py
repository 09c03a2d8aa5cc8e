from __future__ import annotations

import numpy as np
import pytest

from offshelf.errors import DataError, UsageError
from offshelf.evaluate.label_folds import label_folds


def test_every_row_is_tested_once_and_labels_are_spread() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((600, 4)) < [0.4, 0.2, 0.05, 0.02]).astype(float)
    folds = label_folds(labels, n_folds=5, seed=1)
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(600))
    for k in range(4):
        found = [labels[fold.test, k].sum() for fold in folds]
        assert max(found) - min(found) <= 2, (k, found)
    assert max(len(fold.test) for fold in folds) - min(len(fold.test) for fold in folds) <= 4
    assert [fold.name for fold in folds][:2] == ["fold 1 of 5", "fold 2 of 5"]
    again = label_folds(labels, n_folds=5, seed=1)
    assert all(np.array_equal(a.test, b.test) for a, b in zip(folds, again))


def test_groups_stay_whole_and_unknown_counts_as_no() -> None:
    random = np.random.default_rng(1)
    groups = random.integers(0, 60, 400)
    labels = np.where(random.random((400, 3)) < 0.1, np.nan, (random.random((400, 3)) < 0.15).astype(float))
    for fold in label_folds(labels, groups, n_folds=4):
        assert not set(groups[fold.train]) & set(groups[fold.test])
        assert 60 <= len(fold.test) <= 140


def test_given_splits_are_kept() -> None:
    labels = np.eye(6)[:, :2]
    (fold,) = label_folds(labels, splits=["train"] * 4 + ["test"] * 2)
    assert (fold.name, fold.test.tolist()) == ("test split", [4, 5])
    assert len(label_folds(labels, splits=["train"] * 6, n_folds=3)) == 3
    with pytest.raises(DataError, match=r"group p: in the training and in the test part"):
        label_folds(labels, ["p"] * 6, ["train"] * 4 + ["test"] * 2)


def test_few_groups_give_fewer_folds_with_a_note_and_one_is_refused() -> None:
    labels = np.eye(6)[:, :2]
    folds = label_folds(labels, [0, 0, 1, 1, 2, 2], n_folds=5)
    assert len(folds) == 3
    assert folds[0].note == "3 folds instead of 5: there are 3 groups"
    with pytest.raises(DataError, match="6 images in 1 groups: at least 2 groups"):
        label_folds(labels, ["p"] * 6)
    with pytest.raises(UsageError, match="at least 2 folds"):
        label_folds(labels, n_folds=1)
