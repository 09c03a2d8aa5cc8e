import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from offshelf.errors import DataError
from offshelf.evaluate.battle.account import (
    apples_result,
    correlation_result,
    pareto_result,
    scaling_result,
    tiers_result,
)
from offshelf.evaluate.battle.grid import Grid, Setting
from offshelf.evaluate.battle.standing import comparisons, standing
from offshelf.evaluate.battle_of_the_backbones import task_scores, z_scores

TASKS = ["classification", "classification", "retrieval", "shift"]
SETTINGS = [Setting(f"s{s}", f"d{s}", task, "p/v1", "m", None, 0.1, 200, 200) for s, task in enumerate(TASKS)]
M = 12
RNG = np.random.default_rng(0)
VALUES = 0.6 + 0.1 * RNG.normal(size=(M, 1)) + 0.05 * RNG.normal(size=(M, 4))
GRID = Grid([f"b{m}" for m in range(M)], SETTINGS, VALUES, VALUES[:, :, None] + 0.01 * RNG.normal(size=(M, 4, 400)))
BACKBONES = [
    {
        "name": f"b{m}",
        "architecture": f"net{m // 3}",
        "family": "hybrid" if m == 11 else ("CNN", "ViT")[m // 3 % 2],
        "tier": "",
        "parameters": [400_000, 5_000_000, 86_000_000, 900_000][m // 3],
        "pretraining": ["random", "supervised, CIFAR-10", "MAE, CIFAR-10"][m % 3],
        "pretraining_kind": ["random", "supervised", "self-supervised"][m % 3],
        "pretraining_images": [None, 50_000, 1_000_000][m % 3],
        "images_per_second": None if m == 0 else 10.0 * m,
        "memory_mb": None,
    }
    for m in range(M)
][::-1]  # in no particular order
SCORES = {e["backbone"]: e for e in standing(GRID)["overall"]}
VALUE = np.array([SCORES[name]["score"] for name in GRID.backbones])


def test_correlation_with_and_without_random_backbones():
    result = correlation_result(GRID, BACKBONES)
    json.dumps(result, allow_nan=False)
    assert set(result) == {"tasks", "spearman", "pearson", "mean_spearman", "without_random", "n"}
    assert (result["tasks"], result["n"]) == (["classification", "retrieval", "shift"], 12)
    table = task_scores(z_scores(VALUES), TASKS)[0]
    np.testing.assert_allclose(result["spearman"], spearmanr(table)[0])
    np.testing.assert_allclose(result["pearson"], np.corrcoef(table.T))
    mean = result["mean_spearman"]
    assert mean["low"] < mean["value"] < mean["high"] and mean["n"] == 12
    named = [m for m in range(M) if m % 3]
    rest = result["without_random"]
    assert set(rest) == {"spearman", "mean_spearman"} and rest["mean_spearman"]["n"] == 8
    anew = spearmanr(task_scores(z_scores(VALUES[named]), TASKS)[0])[0]
    np.testing.assert_allclose(rest["spearman"], anew)
    assert rest["mean_spearman"]["value"] == pytest.approx(anew[np.triu_indices(3, 1)].mean())
    trained = [{**b, "pretraining_kind": "supervised"} for b in BACKBONES]
    assert correlation_result(GRID, trained)["without_random"] is None


def test_one_task_has_no_correlation_but_null():
    one = Grid(GRID.backbones, SETTINGS[:2], GRID.values[:, :2], GRID.drawn[:, :2])
    result = correlation_result(one, BACKBONES)
    json.dumps(result, allow_nan=False)
    assert result["mean_spearman"]["value"] is None and result["spearman"] == [[pytest.approx(1)]]


def test_scaling():
    result = scaling_result(GRID, BACKBONES)
    json.dumps(result, allow_nan=False)
    assert [(e["against"], e["family"]) for e in result] == [
        (against, family) for against in ("parameters", "pretraining_images") for family in ("CNN", "ViT", "all")
    ]
    sizes = np.repeat([4e5, 5e6, 86e6, 9e5], 3)
    assert result[2]["spearman"] == pytest.approx(spearmanr(VALUE, sizes)[0]) and result[2]["n"] == 12
    cnn = [0, 1, 2, 6, 7, 8]
    assert result[0]["spearman"] == pytest.approx(spearmanr(VALUE[cnn], sizes[cnn])[0]) and result[0]["n"] == 6
    known = [m for m in range(M) if m % 3]
    images = [[None, 5e4, 1e6][m % 3] for m in known]
    assert result[5]["spearman"] == pytest.approx(spearmanr(VALUE[known], images)[0]) and result[5]["n"] == 8
    assert result[3]["n"] == 4 and result[3]["spearman"] is not None and result[3]["low"] is None


def test_like_with_like():
    result = apples_result(GRID, [b if b["name"] != "b11" else {**b, "architecture": "lone"} for b in BACKBONES])
    json.dumps(result, allow_nan=False)
    assert [(g["group"], len(g["members"]), len(g["differences"])) for g in result] == [
        ("net0", 3, 3),
        ("net1", 3, 3),
        ("net2", 3, 3),
        ("net3", 2, 1),
    ]
    pairs = {(e["a"], e["b"]): e for e in comparisons(GRID, first=None)}
    for group in result:
        scores = [member["score"] for member in group["members"]]
        assert scores == sorted(scores, reverse=True)
        for member in group["members"]:
            mine = SCORES[member["backbone"]]
            assert {k: member[k] for k in ("score", "low", "high")} == {k: mine[k] for k in ("score", "low", "high")}
            assert member["pretraining"].startswith(("random", "super", "MAE")[int(member["backbone"][1:]) % 3])
        for entry in group["differences"]:
            same = pairs[entry["a"], entry["b"]]
            assert entry == {k: same[k] for k in ("a", "b", "difference", "low", "high", "told_apart")}


def test_tiers_rank_within():
    result = tiers_result(GRID, BACKBONES)
    json.dumps(result, allow_nan=False)
    assert [tier["tier"] for tier in result] == ["tiny (< 1M)", "small (< 30M)", "base (30-150M)"]
    assert [len(tier["order"]) for tier in result] == [6, 3, 3]
    for tier in result:
        assert [e["rank"] for e in tier["order"]] == list(range(1, len(tier["order"]) + 1))
        assert all(e["score"] == SCORES[e["backbone"]]["score"] for e in tier["order"])
        assert [e["score"] for e in tier["order"]] == sorted((e["score"] for e in tier["order"]), reverse=True)


def test_the_fronts():
    result = pareto_result(GRID, BACKBONES)
    json.dumps(result, allow_nan=False)
    assert list(result) == ["parameters", "images_per_second", "memory_mb"] and result["memory_mb"] == []
    best = int(VALUE.argmax())
    assert result["parameters"][0] == f"b{best}" and "b0" not in result["images_per_second"]
    assert result["images_per_second"][-1] == "b11"  # the fastest
    speed = {m: 10.0 * m for m in range(1, M)}
    front = [m for m in speed if not any(VALUE[o] > VALUE[m] and speed[o] >= speed[m] for o in speed)]
    assert result["images_per_second"] == [f"b{m}" for m in sorted(front, key=lambda m: -VALUE[m])]


def test_the_unranked_come_last_and_take_no_part():
    holes = VALUES.copy()
    holes[1, 0] = np.nan
    grid = Grid(GRID.backbones, SETTINGS, holes, GRID.drawn)
    first = apples_result(grid, BACKBONES)[0]
    assert first["members"][-1] == {**first["members"][-1], "backbone": "b1", "score": None, "low": None}
    assert len(first["differences"]) == 1
    assert tiers_result(grid, BACKBONES)[0]["order"][-1] == {"backbone": "b1", "score": None, "rank": None}
    assert scaling_result(grid, BACKBONES)[2]["n"] == 11
    assert "b1" not in [name for front in pareto_result(grid, BACKBONES).values() for name in front]
    assert correlation_result(grid, BACKBONES)["n"] == 12  # it has a score in every task
    json.dumps([apples_result(grid, BACKBONES), scaling_result(grid, BACKBONES)], allow_nan=False)


def test_a_backbone_without_a_description():
    with pytest.raises(DataError, match="backbone 'b0' has results but no description; describe all 12"):
        tiers_result(GRID, BACKBONES[:-1])
