from __future__ import annotations

import numpy as np
import pytest

from offshelf.errors import UsageError
from offshelf.transfer.inner_folds import balanced_accuracy, inner_folds


def test_folds_are_stratified_disjoint_and_cover_all_rows() -> None:
    codes = np.repeat([0, 1, 2], 12)
    folds = inner_folds(codes, None, 0)
    assert len(folds.pairs) == 3 and not folds.notes
    assert sorted(np.concatenate([test for _, test in folds.pairs])) == list(range(36))
    for train, test in folds.pairs:
        assert np.bincount(codes[test]).tolist() == [4, 4, 4]
        assert not set(train) & set(test)


def test_small_classes_lower_the_number_and_single_rows_stay_in_training() -> None:
    codes = np.array([0] * 10 + [1] * 2 + [2])
    folds = inner_folds(codes, 5, 0)
    assert folds.recorded()["inner_folds"] == 2
    assert all(12 in train and 12 not in test for train, test in folds.pairs)
    assert len(folds.notes) == 2


def test_given_pairs_keep_groups_whole_and_leave_out_what_cannot_be_judged() -> None:
    codes = np.array([0, 0, 1, 1, 2, 2])
    pairs = [([0, 2, 3], [1, 4]), ([4, 5], [0, 1])]
    folds = inner_folds(codes, pairs, None)
    assert len(folds.pairs) == 1  # the second has one class in training
    assert folds.pairs[0][1].tolist() == [1]  # row 4 is of a class that this training part lacks
    assert len(folds.notes) == 2


def test_wrong_pairs_are_refused() -> None:
    codes = np.array([0, 1, 0, 1])
    with pytest.raises(UsageError, match="names row 9"):
        inner_folds(codes, [([0, 1], [9])], None)
    with pytest.raises(UsageError, match="both parts"):
        inner_folds(codes, [([0, 1], [1, 2])], None)
    with pytest.raises(UsageError, match="at least 2"):
        inner_folds(codes, 1, None)


def test_balanced_accuracy_by_hand() -> None:
    assert balanced_accuracy(np.array([0, 0, 0, 2]), np.array([0, 0, 1, 2])) == pytest.approx((2 / 3 + 1) / 2)
