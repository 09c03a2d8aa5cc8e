import numpy as np
import pytest

from offshelf.errors import DataError, UsageError
from offshelf.evaluate import retrieval
from offshelf.evaluate.retrieval import (
    average_precision_of_ranks,
    leave_one_out_retrieval,
    mean_average_precision,
    recall_at_k,
)


def test_average_precision_by_hand():
    assert average_precision_of_ranks(np.array([1, 0, 1, 0])) == pytest.approx(0.8333, abs=5e-5)
    table = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    values = average_precision_of_ranks(table)
    assert values[1] == 0.25
    assert np.isnan(values[2])
    assert mean_average_precision(table) == pytest.approx((5 / 6 + 0.25) / 2)
    assert average_precision_of_ranks(np.array([1, 0, 1, 0]), 4) == pytest.approx((1 + 2 / 3) / 4)


def test_recall_by_hand():
    table = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert recall_at_k(table, 1)[:2].tolist() == [0.5, 0]
    assert recall_at_k(table, 2)[:2].tolist() == [0.5, 1]
    assert np.isnan(recall_at_k(table, 2)[2])


def slow(x, y, groups, metric):
    values = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i and (groups is None or groups[j] != groups[i])]
        if metric == "cosine":
            distance = [1 - x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for j in others]
        else:
            distance = [np.linalg.norm(x[i] - x[j]) for j in others]
        ranked = [y[others[k]] == y[i] for k in np.argsort(distance)]
        hits = [sum(ranked[: r + 1]) / (r + 1) for r in range(len(ranked)) if ranked[r]]
        values.append(np.mean(hits) if hits else np.nan)
    return np.array(values)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("grouped", [False, True])
def test_agrees_with_a_slow_loop_in_small_chunks(metric, grouped, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK", 200)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 40)
    x = rng.normal(size=(40, 5)) + np.eye(3, 5)[y]
    groups = rng.integers(0, 15, 40).tolist() if grouped else None
    result = leave_one_out_retrieval(x, y, groups, metric=metric, n_boot=200)
    expected = slow(x, y, groups, metric)
    found = np.array([np.nan if v is None else v for v in result["average_precision"]])
    assert np.allclose(found, expected, equal_nan=True)
    cell = result["mean_average_precision"]
    assert cell["value"] == pytest.approx(np.nanmean(expected))
    assert cell["low"] < cell["value"] < cell["high"]


def test_on_unit_vectors_both_distances_rank_alike():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = rng.integers(0, 3, 30)
    both = [leave_one_out_retrieval(x, y, metric=m, n_boot=50)["average_precision"] for m in ("cosine", "l2")]
    assert np.allclose(both[0], both[1])


def test_constant_features_score_at_chance_whatever_the_order():
    y = np.sort(np.arange(40) % 4)
    result = leave_one_out_retrieval(np.ones((40, 3)), y, n_boot=100)
    assert result["mean_average_precision"]["value"] == pytest.approx(9 / 39)
    assert result["recall_at_5"]["value"] == pytest.approx(5 / 39)
    assert result["hit_at_1"]["value"] == pytest.approx(9 / 39)
    assert result["chance"] == pytest.approx(9 / 39)


def test_separate_classes_are_perfect_with_a_wilson_interval():
    y = np.arange(20) % 2
    x = np.stack([np.where(y, 1.0, -1.0), np.linspace(0, 0.1, 20)], axis=1)
    result = leave_one_out_retrieval(x, y, n_boot=100)
    for name in ("mean_average_precision", "hit_at_1"):
        assert result[name]["value"] == pytest.approx(1)
        assert result[name]["interval"] == "wilson"
    assert result["recall_at_1"]["value"] == pytest.approx(1 / 9)


def test_another_picture_of_the_same_patient_is_no_hit():
    # Pairs of one patient are identical; beyond the patient there is nothing to find.
    rng = np.random.default_rng(2)
    x = np.repeat(rng.normal(size=(30, 8)), 2, axis=0)
    y, groups = np.repeat(np.arange(30) % 2, 2), np.repeat(np.arange(30), 2)
    assert leave_one_out_retrieval(x, y, groups, exclude_same_group=False, n_boot=50)["hit_at_1"]["value"] == 1
    assert leave_one_out_retrieval(x, y, groups, n_boot=50)["hit_at_1"]["value"] < 0.8


def test_queries_without_a_relevant_row_are_counted_and_left_out():
    result = leave_one_out_retrieval(np.random.default_rng(0).normal(size=(7, 3)), [0, 0, 0, 1, 1, 1, 2], n_boot=50)
    assert (result["n_queries"], result["n_without_relevant"]) == (6, 1)
    assert result["average_precision"][6] is None


def test_wrong_input():
    with pytest.raises(DataError, match="row 1: not finite"):
        leave_one_out_retrieval(np.array([[1.0], [np.nan], [2.0]]), [0, 0, 1])
    with pytest.raises(UsageError, match="'cosine' or 'l2'"):
        leave_one_out_retrieval(np.ones((3, 1)), [0, 0, 1], metric="l1")
