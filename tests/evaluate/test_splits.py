import numpy as np
import pytest

from offshelf.errors import DataError, UsageError
from offshelf.evaluate.groups import group_codes
from offshelf.evaluate.splits import Fold, check_folds, inner_folds, outer_folds


def grouped_data(seed=0, n=120, n_groups=30):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, n_groups, n)
    labels = (groups + rng.integers(0, 2, n)) % 3
    return labels, [f"p{g}" if g > 3 else None for g in groups]


def test_every_row_is_tested_once_and_groups_stay_whole():
    labels, groups = grouped_data()
    folds = outer_folds(labels, groups)
    assert [f.name for f in folds] == [f"fold {k} of 5" for k in range(1, 6)]
    assert sorted(np.concatenate([f.test for f in folds])) == list(range(len(labels)))
    codes = group_codes(groups, len(labels))
    for fold in folds:
        assert not set(codes[fold.train]) & set(codes[fold.test])
        assert sorted([*fold.train, *fold.test]) == list(range(len(labels)))
        assert set(labels[fold.train]) == {0, 1, 2}


def test_class_shares_differ_by_at_most_one_image():
    labels = np.repeat([0, 1, 2], [125, 53, 11])
    for fold in outer_folds(labels, seed=3):
        counts = np.bincount(labels[fold.test], minlength=3)
        assert np.all(np.abs(counts - np.array([125, 53, 11]) / 5) < 1)


def test_the_seed_decides():
    labels, groups = grouped_data()
    first, same, other = (outer_folds(labels, groups, seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(a.test, b.test) for a, b in zip(first, same, strict=True))
    assert any(not np.array_equal(a.test, b.test) for a, b in zip(first, other, strict=True))


def test_fewer_folds_with_a_note_for_a_rare_class():
    folds = outer_folds([0] * 20 + [1] * 3, classes=["common", "rare"])
    assert len(folds) == 3
    assert folds[0].note == "3 folds instead of 5: class 'rare' has 3 images"
    groups = [None] * 20 + ["a", "a", "a", "b"]
    folds = outer_folds([0] * 20 + [1] * 4, groups)
    assert len(folds) == 2
    assert "class 1 has 4 images in 2 groups" in folds[0].note
    assert outer_folds([0, 1] * 10)[0].note == ""


def test_classes_that_cannot_be_divided_are_named():
    with pytest.raises(DataError, match=r"class 'lynx' has 1 image; .*Add images"):
        outer_folds([0, 0, 0, 1], classes=["cat", "lynx"])
    with pytest.raises(DataError, match="class 1: all 3 images are in one group"):
        outer_folds([0, 0, 0, 1, 1, 1], ["a", "b", "c", "d", "d", "d"])
    with pytest.raises(DataError, match="all 4 images of the data are of class 'cat'"):
        outer_folds([0, 0, 0, 0], classes=["cat", "lynx"])
    with pytest.raises(UsageError, match="n_folds=1"):
        outer_folds([0, 1, 0, 1], n_folds=1)


def test_given_splits_make_one_fold():
    labels = [0, 1, 0, 1, 0, 1]
    (fold,) = outer_folds(labels, splits=["train", "train", "validation", "test", "test", "train"])
    assert (fold.train.tolist(), fold.test.tolist(), fold.name) == ([0, 1, 2, 5], [3, 4], "test split")
    (fold,) = outer_folds(labels, splits=["train", "train", "train", "train", "validation", "validation"])
    assert (fold.test.tolist(), fold.name) == ([4, 5], "validation split, used as test part")
    assert len(outer_folds(labels, splits=["train"] * 6)) == 3


def test_given_splits_that_cannot_be_used():
    labels = [0, 1, 0, 1]
    with pytest.raises(DataError, match="group p7: in the training and in the test part"):
        outer_folds(labels, ["p7", None, None, "p7"], ["train", "train", "train", "test"])
    with pytest.raises(DataError, match="row 2: 'dev' is not one of"):
        outer_folds(labels, splits=["train", "train", "dev", "test"])
    with pytest.raises(DataError, match="mark some as train"):
        outer_folds(labels, splits=["test"] * 4)
    with pytest.raises(DataError, match="training part of the split column are of class 0"):
        outer_folds(labels, splits=["train", "test", "train", "test"])
    (fold,) = outer_folds([0, 1, 0, 2], splits=["train", "train", "test", "test"])
    assert fold.note.startswith("class 2 has test images but no training image")


def test_check_folds_sees_a_leak():
    codes = np.array([0, 0, 1, 2])
    with pytest.raises(DataError, match="1 groups lie in both parts"):
        check_folds([Fold(np.array([0, 2]), np.array([1, 3]), "x")], codes, whole=False)
    with pytest.raises(DataError, match="row 0 is in 0 test parts"):
        check_folds([Fold(np.array([0, 1]), np.array([2, 3]), "x")], codes, whole=True)


def test_inner_folds_keep_groups_and_never_test_a_single_class():
    labels = np.array([0] * 12 + [1] * 12 + [2])
    groups = np.array([f"g{i // 2}" for i in range(24)] + ["g0"])  # the one row of class 2 shares a group with class 0
    pairs = inner_folds(labels, groups)
    assert len(pairs) == 3
    for train, test in pairs:
        assert not set(groups[train]) & set(groups[test])
        assert sorted([*train, *test]) == list(range(25))
        assert {0, 1, 24} <= set(train.tolist())
    assert sorted(np.concatenate([test for _, test in pairs])) == list(range(2, 24))


def test_inner_folds_fall_with_the_rarest_class_and_end_empty():
    assert len(inner_folds([0] * 9 + [1] * 2)) == 2
    assert inner_folds([0] * 9 + [1]) == []
    assert inner_folds([0] * 9) == []


def test_few_large_groups_with_no_division():
    # Every class is in two groups, but whichever way the three groups are divided a training part lacks a class.
    labels, groups = [0, 1, 0, 2, 1, 2], ["a", "a", "b", "b", "c", "c"]
    with pytest.raises(DataError, match="groups: no division into two parts leaves every class in both"):
        outer_folds(labels, groups)
