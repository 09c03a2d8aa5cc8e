"""The numbers that say whether two tables of features are alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.agreement import agreement
from offshelf.backbones import route


def test_a_case_worked_by_hand() -> None:
    a, b = np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([[2.0, 0.0], [0.0, -2.0]])
    # centred: (1, -1), (-1, 1) against (1, 1), (-1, -1): at right angles; as they are: cosines 1 and -1
    found = agreement(a, b)
    assert found["centred_median"] == found["centred_min"] == pytest.approx(0.0, abs=1e-15)
    assert (found["plain_median"], found["plain_min"]) == pytest.approx((0.0, -1.0))
    assert found["largest_difference"] == 4.0
    assert found["typical_size"] == pytest.approx(2**0.5)


def test_a_common_shift_is_no_disagreement_of_centred_features() -> None:
    a = np.random.default_rng(0).normal(size=(20, 5))
    found = agreement(a, a + 3.0)
    assert found["centred_min"] == pytest.approx(1.0)
    assert found["plain_min"] < 0.9
    assert found["largest_difference"] == pytest.approx(3.0)


def test_it_is_what_the_guard_of_the_fast_route_computes() -> None:
    random = np.random.default_rng(1)
    a = random.normal(size=(16, 7)) + 2.0
    b = a + 0.3 * random.normal(size=a.shape)
    cosines, how = route.agreement(torch.from_numpy(a), torch.from_numpy(b))
    found = agreement(a, b)
    assert how == "centred"
    assert found["centred_min"] == pytest.approx(float(cosines.min()))
    assert found["centred_median"] == pytest.approx(float(np.median(cosines.numpy())))


def test_rows_without_a_direction_and_tables_of_other_shapes_are_told() -> None:
    a = np.array([[1.0, 2.0], [3.0, 1.0], [0.0, 0.0]])
    assert np.isnan(agreement(a, a)["plain_min"])
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(2, 3\)"):
        agreement(a, a.T)
