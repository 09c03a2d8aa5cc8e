from __future__ import annotations

import numpy as np
import pytest

from offshelf.errors import DataError
from offshelf.transfer.feature_matrix import class_codes, feature_matrix


def test_gives_contiguous_float32() -> None:
    rows = feature_matrix(np.arange(12.0).reshape(3, 4)[:, ::2])
    assert rows.dtype == np.float32 and rows.flags.c_contiguous and rows.tolist()[1] == [4.0, 6.0]


def test_large_finite_values_pass_and_bad_rows_are_named() -> None:
    assert feature_matrix(np.full((2, 3), 3e38)).shape == (2, 3)
    X = np.zeros((20, 2))
    X[2:14, 1] = np.nan
    with pytest.raises(DataError, match=r"12 of 20 rows: 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 \.\.\."):
        feature_matrix(X)
    X = np.zeros((3, 2))
    X[0, 0], X[1, 0] = np.inf, -np.inf
    with pytest.raises(DataError, match="rows: 0, 1;"):
        feature_matrix(X)
    for shape in ((3,), (0, 4), (4, 0)):
        with pytest.raises(DataError, match="shape"):
            feature_matrix(np.zeros(shape))


def test_labels_become_codes() -> None:
    classes, codes = class_codes(np.array([9, 2, 9, 5]), 4)
    assert classes.tolist() == [2, 5, 9] and codes.tolist() == [2, 0, 2, 1]
    with pytest.raises(DataError, match="2 rows have no label: 1, 3"):
        class_codes(["a", None, "b", None], 4)
    with pytest.raises(DataError, match="no labels were given"):
        class_codes(None, 4)
    with pytest.raises(DataError, match=r"expected \(4,\)"):
        class_codes([1, 2], 4)
