import numpy as np
import pytest

from offshelf.evaluate.intervals import f1_wilson, mean_of_intervals, metric_cell, wilson_interval


def test_wilson_by_hand():
    # 8 of 10: centre (0.8 + 3.8415 / 20) / 1.38415; the textbook gives 0.4902 to 0.9433.
    assert wilson_interval(0.8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-4)
    assert wilson_interval(1.0, 10) == pytest.approx((1 / (1 + 3.8414588 / 10), 1.0))
    assert wilson_interval(0.0, 10)[0] == 0
    assert np.isnan(wilson_interval(0.5, 0)[0])


def test_f1_interval_follows_the_jaccard_share():
    low, high = f1_wilson(2 / 3, 20)  # F1 2/3 is a Jaccard share of 1/2
    below, above = wilson_interval(0.5, 20)
    assert (low, high) == pytest.approx((2 * below / (1 + below), 2 * above / (1 + above)))


def test_mean_of_intervals():
    low, high = mean_of_intervals([1.0, 1.0], [(0.7, 1.0), (0.6, 1.0)])
    assert (low, high) == pytest.approx((1 - 0.5 / 2, 1.0))


def test_cell_kinds():
    replicates = np.linspace(0, 1, 1001)
    cell = metric_cell(0.5, replicates, 9)
    assert cell == {
        "value": 0.5,
        "low": pytest.approx(0.025),
        "high": pytest.approx(0.975),
        "n": 9,
        "interval": "bootstrap",
    }
    flat = metric_cell(1.0, np.ones(100), 9, fallback=lambda: (0.7, 1.0))
    assert (flat["low"], flat["high"], flat["interval"]) == (0.7, 1.0, "wilson")
    assert metric_cell(1.0, np.ones(100), 9)["interval"] == "none"
    assert metric_cell(float("nan"), np.ones(100), 9)["value"] is None


def test_more_than_five_percent_undefined_leaves_no_interval():
    replicates = np.linspace(0, 1, 100)
    replicates[:5] = np.nan
    assert metric_cell(0.5, replicates, 9)["interval"] == "bootstrap"
    replicates[5] = np.nan
    assert metric_cell(0.5, replicates, 9) == {"value": 0.5, "low": None, "high": None, "n": 9, "interval": "none"}


def test_reflected_interval():
    cell = metric_cell(0.03, np.linspace(0.03, 0.07, 1001), 9, reflect=True)
    assert (cell["low"], cell["high"]) == pytest.approx((0.0, 0.029))
