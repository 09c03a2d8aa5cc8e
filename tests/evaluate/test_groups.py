import numpy as np
import pytest

from offshelf.errors import DataError
from offshelf.evaluate.groups import count_groups, group_codes


def test_missing_groups_stand_alone_and_others_are_shared():
    codes = group_codes(["a", None, "b", "a", "", float("nan"), None], 7)
    assert codes.tolist() == [0, 1, 2, 0, 3, 4, 5]
    assert count_groups(codes) == 6
    assert count_groups(codes, np.array([True, False, False, True, False, False, True])) == 2


def test_no_column_makes_every_row_its_own_group():
    assert group_codes(None, 3).tolist() == [0, 1, 2]


def test_wrong_length_is_refused():
    with pytest.raises(DataError, match="2 values for 3 rows"):
        group_codes(["a", "b"], 3)
