import csv
import re

import numpy as np
import pytest
from scipy.stats import spearmanr

from offshelf.errors import DataError, UsageError
from offshelf.evaluate.battle_of_the_backbones import (
    apples_to_apples,
    correlate,
    coverage,
    may_be_ranked,
    mean_reciprocal_rank,
    overall,
    pareto_front,
    rank,
    scaling,
    size_tier,
    task_scores,
    trapezoid_average_precision,
    without,
    z_scores,
)

NAN = np.nan


def ranks_of(values, tasks):
    return rank(overall(task_scores(z_scores(values), tasks)[0]))


def test_the_worked_example():
    scores = np.array([[90.0, 50.0], [80.0, 70.0], [70.0, 60.0]])
    z = z_scores(scores)
    np.testing.assert_allclose(z, [[1.2247, -1.2247], [0, 1.2247], [-1.2247, 0]], atol=5e-5)
    table, names = task_scores(z, ["a", "b"])
    assert names == ["a", "b"]
    np.testing.assert_allclose(overall(table), [0, 0.6124, -0.6124], atol=5e-5)
    assert rank(overall(table)).tolist() == [2, 1, 3]


def test_columns_have_mean_0_and_deviation_1_over_those_present():
    rng = np.random.default_rng(0)
    x = rng.normal(5, 3, (7, 4, 5))
    x[2, 1] = NAN
    z = z_scores(x)
    assert (np.isnan(z) == np.isnan(x)).all()
    np.testing.assert_allclose(np.nanmean(z, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.nanstd(z, axis=0), 1)
    np.testing.assert_allclose(z[:, :, 3], z_scores(x[:, :, 3]))
    slow = [(x[m, 1, 0] - np.nanmean(x[:, 1, 0])) / np.nanstd(x[:, 1, 0]) for m in range(7)]
    np.testing.assert_allclose(z[:, 1, 0], slow)
    np.testing.assert_allclose(z_scores(x, np.arange(4.0))[:, 2], (x[:, 2] - x[:, 2].mean(axis=0)) / 2)
    assert (z_scores(x, np.zeros(4))[0] == 0).all()


@pytest.mark.parametrize("number", [0.1, 0.7, 1 / 3, 0.0, 98.6, 1e-9])
def test_a_constant_column_is_all_zeros(number):
    column = np.array([[number], [number], [NAN], [number], [number], [number], [number]])
    np.testing.assert_array_equal(z_scores(column)[:, 0], [0, 0, NAN, 0, 0, 0, 0])


def test_ranks_do_not_hang_on_the_scale_of_a_setting():
    rng = np.random.default_rng(1)
    x, tasks = rng.random((9, 5)), ["a", "a", "b", "c", "c"]
    percent = x * [100, 1, 100, 3, 0.5] + [0, 7, 0, -2, 0]
    np.testing.assert_allclose(z_scores(percent), z_scores(x))
    np.testing.assert_array_equal(ranks_of(percent, tasks), ranks_of(x, tasks))


def test_a_copied_data_set_gives_its_task_no_more_weight():
    rng = np.random.default_rng(2)
    x = rng.random((6, 2))
    once = overall(task_scores(z_scores(x), ["a", "b"])[0])
    copied = overall(task_scores(z_scores(x[:, [0, 0, 0, 1]]), ["a", "a", "a", "b"])[0])
    np.testing.assert_allclose(copied, once)
    plain = z_scores(x[:, [0, 0, 0, 1]]).mean(axis=1)
    assert np.abs(plain - once).max() > 0.05


def test_weights_count_settings_and_drop_tasks_without_any():
    z = np.array([[1.0, 2.0, 5.0], [NAN, 3.0, 4.0]])
    table, _ = task_scores(z, ["a", "a", "b"], np.array([3, 1, 0]))
    np.testing.assert_array_equal(table, [[5 / 4, NAN], [3, NAN]])
    np.testing.assert_array_equal(overall(table), [5 / 4, 3])
    drawn, _ = task_scores(np.repeat(z[:, :, None], 2, axis=2), ["a", "a", "b"], np.array([[3, 1], [1, 1], [0, 2]]))
    np.testing.assert_array_equal(drawn[..., 0], table)
    np.testing.assert_array_equal(drawn[..., 1], [[1.5, 5], [3, 4]])
    with pytest.raises(DataError, match="2 tasks for 3 settings"):
        task_scores(z, ["a", "b"])


def test_missing_cells_are_never_zeros_and_cost_the_rank():
    x = np.array([[3.0, 1.0, NAN], [2.0, NAN, NAN], [1.0, 0.0, NAN], [NAN, NAN, NAN]])
    np.testing.assert_array_equal(coverage(x), [1, 0.5, 1, 0])  # nobody has the third setting
    assert may_be_ranked(x).tolist() == [True, False, True, False]
    assert may_be_ranked(x, allow_missing=True).tolist() == [True, True, True, False]
    scores = overall(task_scores(z_scores(x), ["a", "b", "b"])[0])
    np.testing.assert_allclose(scores, [(1.2247 + 1) / 2, 0, (-1.2247 - 1) / 2, NAN], atol=1e-4)
    assert coverage(np.full((2, 1), NAN)).tolist() == [0, 0]


def test_equals_share_the_better_rank():
    np.testing.assert_array_equal(rank(np.array([0.5, NAN, 0.9, 0.5, -1])), [2, NAN, 1, 2, 4])
    np.testing.assert_array_equal(rank(np.array([[1.0, 2.0], [3.0, 0.0]])), [[2, 1], [1, 2]])


def test_average_precision_of_the_retrieval_script():
    assert trapezoid_average_precision([0, 2], 2) == pytest.approx(0.7917, abs=5e-5)
    assert trapezoid_average_precision([2, 0], 2) == pytest.approx(0.7917, abs=5e-5)
    assert trapezoid_average_precision(range(5), 5) == 1
    assert trapezoid_average_precision([1], 1) == pytest.approx((0 + 1 / 2) / 2)
    assert trapezoid_average_precision([0], 2) == 0.5  # the other was never found
    assert trapezoid_average_precision([], 3) == 0
    assert np.isnan(trapezoid_average_precision([], 0))
    for ranks, n in (([0, 1], 1), ([1, 1], 2), ([-1], 1)):
        with pytest.raises(UsageError, match="different ranks from 0"):
            trapezoid_average_precision(ranks, n)


def test_mean_reciprocal_rank_leaves_out_queries_without_positives():
    assert mean_reciprocal_rank([[2, 7]]) == pytest.approx(1 / 3)
    assert mean_reciprocal_rank([[2], [], [5, 0]]) == pytest.approx((1 / 3 + 1) / 2)
    assert np.isnan(mean_reciprocal_rank([[]]))


def test_size_tiers_and_like_with_like():
    sizes = [999_999, 1_000_000, 29_999_999, 30_000_000, 86_000_000, 150_000_000]
    found = [size_tier(size).split()[0] for size in sizes]
    assert found == ["tiny", "small", "small", "base", "base", "large"]
    assert apples_to_apples(["r", "v", "r", "c", "v", "r"]) == {"r": [0, 2, 5], "v": [1, 4]}
    assert without(["a", "b", "c"], {"b"}).tolist() == [True, False, True]


def test_the_pareto_front_against_a_slow_search():
    scores = np.array([3.0, 2.0, 2.0, 1.0, 2.5, NAN, 9.0])
    costs = np.array([10.0, 5.0, 5.0, 7.0, 10.0, 1.0, NAN])
    assert pareto_front(scores, costs).tolist() == [True, True, True, False, False, False, False]
    rng = np.random.default_rng(3)
    s, c = rng.integers(0, 6, 40).astype(float), rng.integers(0, 6, 40).astype(float)
    slow = [
        not any(s[j] >= s[i] and c[j] <= c[i] and (s[j] > s[i] or c[j] < c[i]) for j in range(40)) for i in range(40)
    ]
    assert pareto_front(s, c).tolist() == slow


# Beginnings of names; the counts of rows are those of the published tables at hand.
VIT = "vit|deit|beit|eva|cait|xcit|swin"
CNN = "resnet|resnext|seresnet|convnext|efficientnet|regnet|mobilenet|densenet|vgg"


def test_published_tables_of_fifteen_hundred_networks(real_data):
    folder = real_data / "timm-results"
    if not folder.is_dir():
        pytest.skip("the published tables of timm are not at hand")
    sets = ["imagenet", "imagenet-real", "imagenetv2-matched-frequency", "sketch", "imagenet-r", "imagenet-a"]
    tables = []
    for name in sets:
        with (folder / f"results-{name}.csv").open(encoding="utf-8") as file:
            tables.append({(row["model"], row["img_size"]): row for row in csv.DictReader(file)})
    keys = [key for key in tables[0] if all(key in table for table in tables)]
    assert len(keys) == 1555
    top1 = np.array([[float(table[key]["top1"]) for table in tables] for key in keys])
    z = z_scores(top1)
    found = correlate(z, n_boot=100)
    assert found["n"] == 1555
    np.testing.assert_allclose(found["spearman"], spearmanr(top1)[0], atol=1e-12)
    np.testing.assert_allclose(found["spearman"][0], [1, 0.99, 0.995, 0.95, 0.94, 0.98], atol=0.005)
    assert 0 < found["high"] - found["low"] < 0.02 and found["low"] < found["mean_spearman"] < found["high"]

    size = np.log([float(tables[0][key]["param_count"].replace(",", "")) for key in keys])
    families = ["ViT" if re.match(VIT, m) else "CNN" if re.match(CNN, m) else "other" for m, _ in keys]
    by_family = scaling(overall(task_scores(z, sets)[0]), size, families, n_boot=100)
    assert by_family["ViT"]["spearman"] == pytest.approx(0.78, abs=0.01) and by_family["ViT"]["n"] == 239
    assert by_family["CNN"]["spearman"] == pytest.approx(0.67, abs=0.01) and by_family["CNN"]["n"] == 511
