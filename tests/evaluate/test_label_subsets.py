from __future__ import annotations

import numpy as np
import pytest

from offshelf.errors import UsageError
from offshelf.evaluate.label_subsets import LabelBudget, in_order, labelled_rows, parse_budgets

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("text", "n", "count"),
    [("10%", 705, 70), ("0.5%", 705, 4), ("0.01%", 100, 1), ("100%", 705, 705), ("50", 705, 50), (" 5 % ", 100, 5)],
)
def test_shares_and_counts_are_read(text: str, n: int, count: int) -> None:
    assert LabelBudget.parse(text).of(n) == count


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "nothing can be learnt from 0 pictures; expected a share"),
        ("0%", "A share lies above 0% and is at most 100%"),
        ("101%", "A share lies above 0% and is at most 100%"),
        ("0.1", "Did you mean 10%?"),
        ("1.0", "Did you mean 100%?"),
        ("-5", "expected a share of the training pictures such as 10%, or a whole number of them such as 50"),
        ("ten", "--labels ten: expected a share"),
        ("", "expected a share"),
    ],
)
def test_what_cannot_be_read_says_what_is_expected(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        LabelBudget.parse(text)
    assert said in str(error.value)


def test_more_than_there_are_and_equal_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="--labels 90: there are 80 labelled pictures to train on; expected at most"):
        in_order(parse_budgets(["90", "10%"]), 80)
    with pytest.raises(UsageError, match="--labels 8 10%: both are 8 of 80 pictures"):
        in_order(parse_budgets(["8", "10%"]), 80)
    with pytest.raises(UsageError, match="10% stands twice"):
        parse_budgets(["10%", "5", "10.0%"])
    assert [one.text for one in in_order(parse_budgets(["100%", "5", "50%"]), 80)] == ["5", "50%", "100%"]


def test_subsets_are_nested_stratified_and_exact() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    before: set[int] = set()
    for share, counts in (("5%", [30, 15, 5]), ("10%", [60, 30, 10]), ("50%", [300, 150, 50])):
        rows = labelled_rows(labels, None, LabelBudget.parse(share), seed=1)
        assert np.abs(np.bincount(labels[rows]) - counts).max() <= 1
        assert len(rows) == sum(counts)
        assert before < set(rows.tolist())
        before = set(rows.tolist())
    assert labelled_rows(labels, None, LabelBudget.parse("100%"), 1).tolist() == list(range(1000))
    other = labelled_rows(labels, None, LabelBudget.parse("5%"), seed=2)
    assert set(other.tolist()) != set(labelled_rows(labels, None, LabelBudget.parse("5%"), seed=1).tolist())


def test_groups_are_taken_whole_and_every_class_is_there() -> None:
    groups = RANDOM.integers(0, 80, 400)
    labels = np.where(groups < 3, 2, groups % 2)  # the rarest class lies in three groups
    sizes = np.bincount(groups)
    before: set[int] = set()
    for count in (20, 60, 200):
        rows = labelled_rows(labels, groups, LabelBudget("n", count=count), seed=0)
        taken = np.unique(groups[rows])
        assert len(rows) == sizes[taken].sum()  # no group is divided
        assert abs(len(rows) - count) <= sizes.max() / 2 + 1
        assert set(labels[rows]) == {0, 1, 2}
        assert before <= set(rows.tolist())
        before = set(rows.tolist())


def test_too_few_for_every_class_is_refused() -> None:
    labels = np.arange(30) % 10
    with pytest.raises(UsageError, match=r"--labels 9: 9 of 30 .* every class; expected 10 or more"):
        labelled_rows(labels, None, LabelBudget.parse("9"), 0)
    assert sorted(labels[labelled_rows(labels, None, LabelBudget.parse("10"), 0)]) == list(range(10))
    groups = np.repeat(np.arange(10), 3)
    with pytest.raises(UsageError, match=r"groups taken whole; expected 12 or more"):
        labelled_rows(np.repeat([0, 1, 2, 3, 3, 3, 3, 3, 3, 3], 3), groups, LabelBudget.parse("5"), 0)


def test_several_labels_a_picture_each_occur() -> None:
    table = (RANDOM.random((500, 4)) < [0.3, 0.2, 0.1, 0.01]).astype(float)
    table[::7, 2] = np.nan
    rows = labelled_rows(table, None, LabelBudget.parse("10%"), 0)
    assert len(rows) == 50
    assert (np.nan_to_num(table[rows]).sum(axis=0) >= 1).all()
