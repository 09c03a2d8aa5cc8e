import json

import numpy as np
import pytest

from offshelf.evaluate.battle.grid import Grid, Setting
from offshelf.evaluate.battle.replicates import defined_resamples, drawn_data_sets, score
from offshelf.evaluate.battle.standing import comparisons, sentence, standing
from offshelf.evaluate.battle_of_the_backbones import z_scores

TASKS = ["classification", "classification", "retrieval", "classification"]
DATA = ["flowers", "xray", "flowers", "digits"]
SETTINGS = [Setting(f"{d}/{t}", d, t, "p/v1", "m", None, 0.1, 200, 100) for d, t in zip(DATA, TASKS, strict=True)]
NAMES = ["a", "b", "c", "d"]
VALUES = np.array([[0.9, 0.8, 0.7, 0.6], [0.89, 0.81, 0.7, 0.59], [0.5, 0.55, 0.4, 0.4], [0.7, 0.6, 0.6, 0.2]])


def grid(values=VALUES, noise=0.01, n_boot=500, settings=SETTINGS):
    drawn = values[:, :, None] + noise * np.random.default_rng(0).normal(size=(*values.shape, n_boot))
    return Grid(NAMES[: len(values)], settings, values, drawn)


def test_scores_ranks_and_ties():
    result = standing(grid())
    json.dumps(result, allow_nan=False)
    z = z_scores(VALUES)
    expected = (z[:, [0, 1, 3]].mean(axis=1) + z[:, 2]) / 2
    by_name = {entry["backbone"]: entry for entry in result["overall"]}
    for m, name in enumerate(NAMES):
        entry = by_name[name]
        assert entry["score"] == pytest.approx(expected[m])
        assert entry["low"] < entry["score"] < entry["high"]
        assert entry["low_sets"] <= entry["low"] and entry["high_sets"] >= entry["high"]
        assert (entry["coverage"], entry["why"]) == (1, "")
    assert [(e["backbone"], e["rank"], e["rank_low"], e["rank_high"]) for e in result["overall"]] == [
        ("a", 1, 1, 2),
        ("b", 2, 1, 2),
        ("d", 3, 3, 3),
        ("c", 4, 4, 4),
    ]
    assert result["tie_groups"] == [["a", "b"], ["d"], ["c"]]
    assert result["sentence"] == "These two cannot be told apart on your data: a, b."
    retrieval = result["tasks"]["retrieval"]
    assert [(e["backbone"], e["rank"]) for e in retrieval] == [("a", 1), ("b", 1), ("d", 3), ("c", 4)]
    assert retrieval[0]["score"] == pytest.approx(z[0, 2]) and retrieval[0]["low"] < z[0, 2] < retrieval[0]["high"]
    assert standing(grid()) == result
    assert list(result["tasks"]) == ["classification", "retrieval"]


def test_a_resample_keeps_the_unit_and_measures_anew():
    g = grid(n_boot=3)
    drawn = score(g).overall.replicates
    for b in range(3):
        z = (g.drawn[:, :, b] - g.drawn[:, :, b].mean(axis=0)) / VALUES.std(axis=0)
        np.testing.assert_allclose(drawn[:, b], (z[:, [0, 1, 3]].mean(axis=1) + z[:, 2]) / 2)


def test_the_scale_of_a_setting_changes_nothing():
    g, factor = grid(), np.array([100.0, 1.0, 0.01, 5.0])
    scaled = Grid(NAMES, SETTINGS, g.values * factor, g.drawn * factor[:, None])
    for one, other in zip(standing(g)["overall"], standing(scaled)["overall"], strict=True):
        assert one == pytest.approx(other)


def test_lower_is_better_counts_once():
    g = grid()
    sign = np.array([1, -1, 1, 1])
    settings = [
        Setting(s.id, s.data, s.task, s.protocol, s.metric, None, 0.1, 200, 100, lower_is_better=k == -1)
        for s, k in zip(SETTINGS, sign, strict=True)
    ]
    flipped = Grid(NAMES, settings, g.values * sign, g.drawn * sign[:, None])
    assert standing(flipped) == standing(g)
    assert comparisons(flipped) == comparisons(g)


def test_data_sets_are_drawn_with_all_their_settings():
    g = grid()
    weights = drawn_data_sets(g, 300, seed=1)
    assert weights.shape == (4, 300)
    np.testing.assert_array_equal(weights[0], weights[2])  # both of the flowers
    np.testing.assert_array_equal(weights[[0, 1, 3]].sum(axis=0), 3)
    drawn = score(g, seed=1).over_sets.replicates
    weights, z = drawn_data_sets(g, 500, seed=1), z_scores(VALUES)
    for b in range(100):
        w = weights[:, b]
        tasks = [z[:, [0, 1, 3]] @ w[[0, 1, 3]] / w[[0, 1, 3]].sum()] if w[[0, 1, 3]].any() else []
        tasks += [z[:, 2]] if w[2] else []  # without the flowers there is no retrieval in this draw
        np.testing.assert_allclose(drawn[:, b], np.mean(tasks, axis=0))
    assert (weights[2] == 0).any() and (weights[2] > 1).any()


def test_two_data_sets_say_nothing_about_data_sets():
    few = [SETTINGS[0], SETTINGS[1], SETTINGS[2]]
    entry = standing(grid(VALUES[:, :3], settings=few))["overall"][0]
    assert entry["low_sets"] is entry["high_sets"] is entry["rank_low_sets"] is entry["rank_high_sets"] is None
    assert entry["low"] is not None and entry["rank_low"] == 1


def test_no_overall_rank_below_full_coverage_unless_asked():
    holes = VALUES.copy()
    holes[1, 2] = np.nan
    result = standing(grid(holes))
    json.dumps(result, allow_nan=False)
    last = result["overall"][-1]
    assert (last["backbone"], last["rank"], last["score"], last["low"], last["coverage"]) == (
        "b",
        None,
        None,
        None,
        0.75,
    )
    assert last["why"] == "it has a value in 3 of 4 settings; missing: flowers/retrieval"
    assert [e["rank"] for e in result["overall"]] == [1, 2, 3, None]
    assert result["tie_groups"] == [["a"], ["d"], ["c"]]
    assert result["sentence"] == "a is ahead of all others on your data."
    assert {e["backbone"]: e["score"] for e in result["tasks"]["retrieval"]}["b"] is None
    assert not any("b" in (e["a"], e["b"]) for e in comparisons(grid(holes)))
    asked = {e["backbone"]: e for e in standing(grid(holes), allow_missing=True)["overall"]}
    assert asked["b"]["score"] == pytest.approx(z_scores(holes)[1, [0, 1, 3]].mean())
    assert asked["b"]["rank"] in (1, 2) and asked["b"]["low"] < asked["b"]["score"]


def test_undefined_resamples_are_replaced_or_leave_no_interval():
    g = grid()
    g.drawn[1, 3, [4, 7]] = np.nan
    drawn = defined_resamples(g)
    for m in range(4):  # in that setting, and for all backbones alike
        assert drawn[m, 3, 4] == g.drawn[m, 3, 0] and drawn[m, 3, 7] == g.drawn[m, 3, 1]
    np.testing.assert_array_equal(drawn[:, :3], g.drawn[:, :3])
    g.drawn[1, 3, :26] = np.nan
    assert defined_resamples(g) is None
    result = standing(g)
    json.dumps(result, allow_nan=False)
    assert result["overall"][0]["rank"] == 1 and result["overall"][0]["low"] is None
    assert "too many resamples" in result["sentence"]
    assert comparisons(g)[0]["told_apart"] is False


def test_comparisons_of_the_first_and_of_leaders():
    pairs = [(e["a"], e["b"]) for e in comparisons(grid(), first=None)]
    assert pairs == [("a", "b"), ("a", "d"), ("a", "c"), ("b", "d"), ("b", "c"), ("d", "c")]
    assert [(e["a"], e["b"]) for e in comparisons(grid(), first=2)] == [("a", "b"), ("a", "d"), ("a", "c"), ("d", "c")]
    first, second = comparisons(grid())[:2]
    assert not first["told_apart"] and second["told_apart"]
    assert first["factor"] > 1 > second["factor"]
    # 600 examples and 300 groups in three data sets, each counted once.
    assert first["examples_needed"] == np.ceil(first["factor"] * 600)
    scores = score(grid()).overall
    drawn = scores.replicates[0] - scores.replicates[1]
    expected = first["difference"] / (drawn.std(ddof=1) * np.sqrt(300 / 299) * np.sqrt(300))
    assert first["effect_size"] == pytest.approx(expected)


def test_sentences():
    assert sentence([["x"]]) == "x is the only backbone with an overall rank."
    assert sentence([]).startswith("No backbone has a value in every setting")
    assert sentence([["x", "y", "z"], ["w"]]) == "These three cannot be told apart on your data: x, y, z."
    assert sentence([[str(i) for i in range(12)]]).startswith("These 12 cannot")
