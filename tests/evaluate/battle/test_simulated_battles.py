"""Battles with a known truth: do the intervals, the ranks and the advice about more examples hold what they say?"""

import numpy as np
import pytest
from scipy.stats import norm

from offshelf.evaluate.battle.grid import Grid, Setting
from offshelf.evaluate.battle.pairs import compare_in_setting, difference
from offshelf.evaluate.battle.replicates import score
from offshelf.evaluate.battle.standing import standing
from offshelf.evaluate.battle_of_the_backbones import overall, rank, task_scores, z_scores
from offshelf.evaluate.resampling import replicate, resampled_weights
from offshelf.evaluate.scores import Scores

SHARED = 0.6  # share of the difficulty of an example that all backbones feel


def settings(n, units, tasks=("a",), data=None):
    names = data or [f"d{s}" for s in range(len(tasks))]
    return [Setting(f"s{s}", names[s], t, "p/v1", "accuracy", None, 0.5, n, units) for s, t in enumerate(tasks)]


def right(rng, skills, n):
    """(M, n): which examples each backbone gets right, with probability ``skills`` (M,); hard ones are hard for all."""
    difficulty = np.sqrt(SHARED) * rng.normal(size=n) + np.sqrt(1 - SHARED) * rng.normal(size=(len(skills), n))
    return (difficulty < norm.ppf(skills)[:, None]).astype(float)


def battle(rng, skills, n, tasks, n_boot, seed):
    """A grid of accuracies over ``n`` examples a setting; ``skills`` (M, S) are the true ones."""
    values, drawn = np.empty(skills.shape), np.empty((*skills.shape, n_boot), dtype=np.float32)
    for s in range(skills.shape[1]):
        hits = right(rng, skills[:, s], n)
        values[:, s] = hits.mean(axis=1)
        drawn[:, s] = hits @ np.concatenate(list(resampled_weights(np.arange(n), n_boot, 1000 * seed + s)), axis=1) / n
    return Grid([f"b{m}" for m in range(len(skills))], settings(n, n, tasks), values, drawn)


def true_overall(skills, tasks):
    return overall(task_scores(z_scores(skills), tasks)[0])


@pytest.mark.slow
def test_interval_of_a_paired_difference_of_accuracies():
    rng, skills, held = np.random.default_rng(0), np.array([[0.8], [0.75]]), []
    for draw in range(1000):
        (entry,), _ = compare_in_setting(battle(rng, skills, 300, ["a"], 400, draw), "s0")
        truth = 0.05 if entry["a"] == "b0" else -0.05
        held.append(entry["low"] <= truth <= entry["high"])
    assert 0.93 <= np.mean(held) <= 0.97


@pytest.mark.slow
def test_interval_of_a_paired_difference_of_balanced_accuracies_over_groups():
    rng, held, sizes = np.random.default_rng(1), [], np.tile([1, 2, 3, 4, 5, 6], 15)  # 90 patients, 315 pictures
    codes = np.repeat(np.arange(90), sizes)
    skills = np.array([[0.9, 0.7, 0.6], [0.85, 0.7, 0.5]])  # by class
    truth = float(np.mean(skills[0] - skills[1]))
    for draw in range(1000):
        labels = rng.choice(3, p=[0.5, 0.3, 0.2], size=90)[codes]
        common = np.sqrt(0.5) * rng.normal(size=90)[codes] + np.sqrt(0.2) * rng.normal(size=315)
        arms = []
        for own in skills:
            correct = common + np.sqrt(0.3) * rng.normal(size=315) < norm.ppf(own)[labels]
            scores = Scores(labels, None, np.where(correct, labels, (labels + 1) % 3), 3, ranking=False)
            drawn = replicate(scores, codes, 400, draw).overall["balanced_accuracy"]
            arms.append((float(scores.point().overall["balanced_accuracy"][0]), drawn))
        values, replicates = np.array([[a[0]] for a in arms]), np.stack([a[1] for a in arms])[:, None]
        (entry,), _ = compare_in_setting(Grid(["b0", "b1"], settings(315, 90), values, replicates), "s0")
        held.append(entry["low"] <= (truth if entry["a"] == "b0" else -truth) <= entry["high"])
    assert 0.93 <= np.mean(held) <= 0.97


@pytest.mark.slow
def test_intervals_of_overall_scores_and_of_their_differences():
    # Spread and noise as in a small battle: 3 points among backbones, 2 points of standard error.
    rng, tasks = np.random.default_rng(2), ["a", "a", "b"]
    skills = np.array([0.6, 0.7, 0.8]) + 0.03 * rng.normal(size=(6, 1)) + 0.01 * rng.normal(size=(6, 3))
    truth, of_scores, of_pairs = true_overall(skills, tasks), [], []
    for draw in range(300):
        grid = battle(rng, skills, 300, tasks, 400, draw)
        drawn = score(grid).overall
        for a in range(6):
            for b in range(a):
                entry = difference(grid, drawn, a, b)
                of_pairs.append(entry["low"] <= truth[a] - truth[b] <= entry["high"])
        for entry in standing(grid)["overall"]:
            of_scores.append(entry["low"] <= truth[grid.index(entry["backbone"])] <= entry["high"])
    assert 0.93 <= np.mean(of_pairs) <= 0.97
    assert 0.93 <= np.mean(of_scores) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.08, 0.003])
def test_bounds_of_ranks_hold_the_true_rank_of_everyone(spread):
    rng, tasks = np.random.default_rng(3), ["a", "b"]
    skills = np.array([0.45, 0.5]) + spread * rng.normal(size=(8, 1)) + 0.3 * spread * rng.normal(size=(8, 2))
    assert skills.min() > 0.1 and skills.max() < 0.9
    truth, held, wide = rank(true_overall(skills, tasks)), [], []
    for draw in range(300):
        grid = battle(rng, skills, 200, tasks, 300, draw)
        by_name = {entry["backbone"]: entry for entry in standing(grid)["overall"]}
        bounds = [(by_name[name]["rank_low"], by_name[name]["rank_high"]) for name in grid.backbones]
        held.append([low <= true <= high for (low, high), true in zip(bounds, truth, strict=True)])
        wide.append(np.mean([high - low for low, high in bounds]))
    assert np.mean(held, axis=0).min() >= 0.93
    assert np.mean(wide) < 3 if spread == 0.08 else np.mean(wide) > 5  # they say something where there is something


@pytest.mark.slow
def test_so_many_examples_tell_two_backbones_apart_four_times_in_five():
    rng, tasks = np.random.default_rng(4), ["a", "a", "b"]
    skills = np.array([[0.68, 0.7, 0.8], [0.6, 0.66, 0.76], [0.4, 0.5, 0.6], [0.5, 0.62, 0.7]])
    # The factor of a battle whose values are the true ones: from the standard error in one large sample, scaled down.
    large = battle(rng, skills, 20_000, tasks, 1000, 0)
    small = skills[:, :, None] + (large.drawn - large.values[:, :, None]) * np.sqrt(20_000 / 100)
    now = Grid(large.backbones, settings(100, 100, tasks), skills, small)
    entry = difference(now, score(now).overall, 0, 1)
    assert entry["factor"] > 1.5
    assert entry["examples_needed"] == np.ceil(entry["factor"] * 300)
    n, told = round(100 * entry["factor"]), []
    for draw in range(800):
        grid = battle(rng, skills, n, tasks, 300, draw)
        found = difference(grid, score(grid).overall, 0, 1)
        told.append(found["told_apart"] and found["difference"] > 0)
    assert abs(np.mean(told) - 0.8) <= 0.04


def test_intervals_over_data_sets_hold_where_those_over_examples_do_not():
    # Five backbones equally good on average, each with its likes and dislikes among six data sets: true scores are 0.
    rng, wide, narrow = np.random.default_rng(5), [], []
    for draw in range(300):
        true = 0.7 + 0.05 * rng.normal(size=(5, 6))
        values = true + 0.015 * rng.normal(size=true.shape)
        drawn = values[:, :, None] + 0.015 * rng.normal(size=(5, 6, 300))
        grid = Grid([f"b{m}" for m in range(5)], settings(500, 500, ["a"] * 6), values, drawn)
        for entry in standing(grid, seed=draw)["overall"]:
            wide.append(entry["low_sets"] <= 0 <= entry["high_sets"])
            narrow.append(entry["low"] <= 0 <= entry["high"])
    assert 0.92 <= np.mean(wide) <= 0.98
    assert np.mean(narrow) < 0.7
