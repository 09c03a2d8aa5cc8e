import numpy as np
import pytest
from scipy.stats import t

from offshelf.errors import UsageError
from offshelf.evaluate.battle.grid import Grid, Setting
from offshelf.evaluate.battle.pairs import (
    compare_in_setting,
    difference,
    enough_differ,
    examples_factor,
    few_units,
    interval,
    rank_bounds,
    tie_groups,
)
from offshelf.evaluate.battle.replicates import Drawn
from offshelf.evaluate.compare import compare_arms
from offshelf.evaluate.resampling import resampled_weights

N = 300
WEIGHTS = np.concatenate(list(resampled_weights(np.arange(N), 4000, 0)), axis=1)


def grid_of(correct, weights=WEIGHTS, units=N, lower=False):
    """One setting from which examples each backbone gets right (M, n)."""
    setting = Setting("s/linear", "s", "a", "linear/v1", "accuracy", None, 0.5, correct.shape[1], units, lower)
    drawn = (correct @ weights / correct.shape[1])[:, None]
    return Grid([f"b{m}" for m in range(len(correct))], [setting], correct.mean(axis=1)[:, None], drawn)


def two(only_a, only_b, both=150):
    correct = np.zeros((2, N))
    correct[:, :both] = 1
    correct[0, both : both + only_a] = 1
    correct[1, both + only_a : both + only_a + only_b] = 1
    return correct


def test_a_paired_difference_by_hand():
    (entry,), ties = compare_in_setting(grid_of(two(30, 18)), "s/linear")
    assert (entry["a"], entry["b"], entry["difference"]) == ("b0", "b1", pytest.approx(0.04))
    # Of 300 paired differences 30 are 1 and 18 are -1: variance 48 / 300 - 0.04^2 = 0.1584, standard error 0.02298.
    assert entry["high"] - entry["low"] == pytest.approx(2 * 1.96 * 0.02298, rel=0.05)
    assert entry["effect_size"] == pytest.approx(0.04 / np.sqrt(0.1584), rel=0.03)
    # statsmodels' NormalIndPower().solve_power(0.1005, alpha=0.05, power=0.8, ratio=0) asks for 777.0 pairs.
    assert entry["factor"] == pytest.approx(777.0 / 300, rel=0.06)
    assert entry["examples_needed"] == np.ceil(300 * entry["factor"])
    assert not entry["told_apart"] and ties == [["b0", "b1"]]


def test_the_factor_by_hand():
    assert examples_factor(0.04, np.sqrt(0.1584 / 300)) * 300 == pytest.approx(777.04, abs=0.05)
    assert examples_factor(-2.0, 2.0) == pytest.approx(7.849, abs=1e-3)  # (1.95996 + 0.84162)^2
    assert examples_factor(2.8015852, 1.0) == pytest.approx(1)


def test_it_agrees_with_the_house_comparison_of_arms():
    rng = np.random.default_rng(1)
    labels = np.zeros(N, dtype=int)
    correct = (rng.random((6, N)) < np.array([0.9, 0.88, 0.8, 0.78, 0.5, 0.9])[:, None]).astype(float)
    arms = {f"b{m}": (1 - row).astype(int) for m, row in enumerate(correct)}
    theirs, their_ties = compare_arms(labels, arms, 2, metric="accuracy", n_boot=4000)
    ours, our_ties = compare_in_setting(grid_of(correct), "s/linear")
    assert our_ties == their_ties
    assert 1 < len(our_ties) < 6
    for mine, house in zip(ours, theirs, strict=True):
        keys = ("a", "b", "told_apart")
        assert [mine[k] for k in keys] == [house[k] for k in keys]
        assert mine["difference"] == pytest.approx(house["difference"])
        assert [mine["low"], mine["high"]] == pytest.approx([house["low"], house["high"]], abs=1e-3)


@pytest.mark.parametrize(("only_a", "told_apart"), [(3, False), (5, False), (6, True), (7, True)])
def test_fewer_than_six_differing_groups_never_suffice(only_a, told_apart):
    (entry,), ties = compare_in_setting(grid_of(two(only_a, 0)), "s/linear")
    assert entry["low"] > 0 or only_a == 3  # the interval alone would tell them apart
    assert entry["told_apart"] is told_apart
    assert len(ties) == 1 + told_apart
    assert rank_bounds(Drawn(*_drawn(two(only_a, 0))), np.array([True, True]))[1].tolist() == [2 - told_apart, 2]


def _drawn(correct):
    grid = grid_of(correct)
    return grid.values[:, 0], grid.drawn[:, 0], N


def test_five_groups_or_fewer_can_never_differ_enough():
    assert not enough_differ(np.ones((3, 50)), 5).any()
    assert enough_differ(np.ones((3, 50)), 6).all()


def test_equal_backbones_tie_and_have_no_factor():
    correct = two(0, 0)
    (entry,), ties = compare_in_setting(grid_of(correct), "s/linear")
    assert (entry["difference"], entry["low"], entry["high"]) == (0, 0, 0)
    assert entry["told_apart"] is False and ties == [["b0", "b1"]]
    assert entry["factor"] is entry["effect_size"] is entry["examples_needed"] is None


def test_lower_is_better_comes_in_the_units_of_its_metric():
    errors = 1 - two(40, 5)
    (entry,), ties = compare_in_setting(grid_of(errors, lower=True), "s/linear")
    assert (entry["a"], entry["difference"]) == ("b0", pytest.approx(-35 / 300))
    assert entry["low"] < entry["difference"] < entry["high"] < 0
    assert entry["told_apart"] and entry["effect_size"] < 0 and ties == [["b0"], ["b1"]]


def test_resamples_undefined_too_often_leave_no_interval():
    grid = grid_of(two(40, 5))
    grid.drawn[1, 0, :200] = np.nan  # 5 % of 4000
    (entry,), _ = compare_in_setting(grid, "s/linear")
    assert entry["told_apart"] and entry["low"] == pytest.approx(0.07, abs=0.01)
    grid.drawn[1, 0, 200] = np.nan
    (entry,), ties = compare_in_setting(grid, "s/linear")
    assert entry["difference"] == pytest.approx(35 / 300) and entry["low"] is entry["factor"] is None
    assert not entry["told_apart"] and ties == [["b0", "b1"]]
    with pytest.raises(UsageError, match="setting 's/linea' is not in this battle; did you mean 's/linear'"):
        compare_in_setting(grid, "s/linea")


def test_a_backbone_without_a_value_is_not_compared():
    correct = np.vstack([two(40, 5), two(0, 0)[:1]])
    grid = grid_of(correct)
    grid.values[1], grid.drawn[1] = np.nan, np.nan
    entries, ties = compare_in_setting(grid, "s/linear")
    assert [(e["a"], e["b"]) for e in entries] == [("b0", "b2")]
    assert ties == [["b0"], ["b2"]]
    entry = difference(grid, Drawn(grid.values[:, 0], grid.drawn[:, 0], N), 0, 1)
    assert entry["difference"] is None and entry["low"] is None and entry["told_apart"] is False


def test_intervals_over_few_units_are_wider():
    drawn = np.random.default_rng(2).normal(0, 1, (1, 20_000))
    low, high = interval(np.zeros(1), drawn, 10)
    assert high[0] == pytest.approx(np.sqrt(10 / 9) * t.ppf(0.975, 9), rel=0.02) and low[0] == pytest.approx(
        -high[0], rel=0.04
    )
    assert few_units(10**6) == pytest.approx(1, abs=1e-5) and np.isnan(few_units(1))


def test_rank_bounds_count_those_surely_above_and_below():
    noise = np.random.default_rng(3).normal(0, 1, (5, 4000))
    values = np.array([0.0, 10.0, 10.5, 30.0, np.nan])
    drawn = Drawn(values, values[:, None] + noise, 10_000)
    low, high = rank_bounds(drawn, np.isfinite(values))
    np.testing.assert_array_equal(low, [4, 2, 2, 1, np.nan])
    np.testing.assert_array_equal(high, [4, 3, 3, 1, np.nan])
    assert tie_groups(drawn) == [[3], [2, 1], [0]]
    # 3.2 apart: a single comparison at 95 % needs 2.77 (1.96 x root 2), with three more at once 3.4 or so.
    close = np.array([0.0, 3.0, 3.0, 3.0, 3.0])
    low, _ = rank_bounds(Drawn(close, close[:, None] + noise, 10_000), np.full(5, True))
    assert low[0] == 1
    low, _ = rank_bounds(Drawn(close[:2], close[:2, None] + noise[:2], 10_000), np.full(2, True))
    assert low[0] == 2
    low, high = rank_bounds(Drawn(close, None, 100), np.full(5, True))
    assert np.isnan(low).all() and np.isnan(high).all()
