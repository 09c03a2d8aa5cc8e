from dataclasses import replace

import numpy as np
import pytest

from offshelf.errors import DataError, UsageError
from offshelf.evaluate.battle.grid import Grid, Setting

A = Setting("flowers/linear", "flowers", "classification", "linear/v1", "accuracy", "100%", 0.2, 100, 60)
B = Setting(
    "flowers/loss", "flowers", "calibration", "linear/v1", "log_loss", "100%", 1.6, 90, 70, lower_is_better=True
)
C = Setting("xray/knn", "xray", "classification", "knn/v1", "accuracy", None, 0.3, 50, 50)
VALUES = np.array([[0.8, 0.5, 0.6], [0.7, 0.9, np.nan]])
DRAWN = np.repeat(VALUES[:, :, None], 4, axis=2)
GRID = Grid(["r", "v"], [A, B, C], VALUES, DRAWN)


def test_what_it_tells():
    assert GRID.tasks == ["classification", "calibration", "classification"]
    assert GRID.data_sets == ["flowers", "xray"]
    assert (GRID.examples, GRID.units) == (150, 120)  # a data set counts once, with its largest setting
    assert (GRID.index("v"), GRID.setting_index("xray/knn")) == (1, 2)
    rest = GRID.without({"r"})
    assert rest.backbones == ["v"] and rest.values.shape == (1, 3) and rest.drawn.shape == (1, 3, 4)


def test_lower_is_better_is_flipped_once():
    flipped = GRID.higher_is_better()
    np.testing.assert_array_equal(flipped.values, [[0.8, -0.5, 0.6], [0.7, -0.9, np.nan]])
    np.testing.assert_array_equal(flipped.drawn[:, 1], -DRAWN[:, 1])
    np.testing.assert_array_equal(flipped.higher_is_better().values, flipped.values)
    assert GRID.values[0, 1] == 0.5


def test_what_does_not_fit():
    with pytest.raises(DataError, match=r"values of shape \(2, 2\); expected \(2, 3\)"):
        Grid(["r", "v"], [A, B, C], VALUES[:, :2], DRAWN)
    with pytest.raises(DataError, match=r"resamples of shape \(2, 3\); expected \(2, 3, 'B'\)"):
        Grid(["r", "v"], [A, B, C], VALUES, VALUES)
    with pytest.raises(DataError, match="B at least 1"):
        Grid(["r", "v"], [A, B, C], VALUES, DRAWN[:, :, :0])
    with pytest.raises(DataError, match="backbone 'r' occurs twice"):
        Grid(["r", "r"], [A, B, C], VALUES, DRAWN)
    with pytest.raises(DataError, match="setting 'xray/knn' occurs twice"):
        Grid(["r", "v"], [A, C, replace(C)], VALUES, DRAWN)
    with pytest.raises(DataError, match="'r' has an infinite number in 'flowers/loss'"):
        Grid(["r", "v"], [A, B, C], np.where(VALUES == 0.5, np.inf, VALUES), DRAWN)
    with pytest.raises(DataError, match="0 backbones and 3 settings"):
        Grid([], [A, B, C], VALUES[:0], DRAWN[:0])
    with pytest.raises(UsageError, match="did you mean 'xray/knn'"):
        GRID.setting_index("xray/nn")
    with pytest.raises(UsageError, match="backbone 'w' is not in this battle"):
        GRID.index("w")
