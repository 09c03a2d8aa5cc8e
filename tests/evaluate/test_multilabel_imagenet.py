"""The numbered properties are those that a faithful implementation must have."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from offshelf.errors import DataError
from offshelf.evaluate.multilabel_imagenet import MultiLabelReport

A, B, C, D = range(4)
LOGITS = np.array([[3.0, 2.0, 4.0, 1.0]])  # the order is c, a, b, d


def made(n: int = 400, n_classes: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores that lean to the valid labels, sets of one to three (some empty), and one label of each set."""
    random = np.random.default_rng(seed)
    sizes = random.choice(4, n, p=[0.1, 0.5, 0.25, 0.15])
    order = random.permuted(np.tile(np.arange(n_classes), (n, 1)), axis=1)
    table = np.zeros((n, n_classes), dtype=bool)
    np.put_along_axis(table, order, np.arange(n_classes) < sizes[:, None], axis=1)
    return random.normal(size=table.shape) + 1.5 * table, table, np.where(sizes > 0, order[:, 0], -1)


def slowly(logits: np.ndarray, table: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The definitions, one picture after the other."""
    top_1, real, variable, strict = [], [], [], []
    groups: dict[int, list[float]] = {}
    for scores, valid, label in zip(logits, table, labels):
        members = set(np.flatnonzero(valid).tolist())
        if not members:
            continue
        ranking = sorted(range(len(scores)), key=lambda k: (-scores[k], k))
        answers = set(ranking[: len(members)])
        if label >= 0:
            top_1.append(ranking[0] == label)
        real.append(ranking[0] in members)
        variable.append(len(answers & members) / len(members))
        strict.append(answers == members)
        groups.setdefault(len(members), []).append(variable[-1])
    asma = np.mean([np.mean(values) for values in groups.values() if len(values) >= 30])
    return {
        "top_1": np.mean(top_1),
        "real": np.mean(real),
        "variable_top_k": np.mean(variable),
        "strict": np.mean(strict),
        "asma": asma,
    } | {f"A_{k}": np.mean(values) for k, values in groups.items()}


def value(report: MultiLabelReport, metric: str, k: int | None = None) -> float:
    return report.cell(metric, k)["value"]


def test_every_number_agrees_with_its_definition() -> None:
    logits, table, labels = made()
    labels[:40] = np.where(table.any(axis=1), -1, labels)[:40]  # some have no one label
    report, slow = MultiLabelReport(logits, table, labels, n_boot=200), slowly(logits, table, labels)
    for name in ("top_1", "real", "variable_top_k", "strict", "asma"):
        assert value(report, name) == pytest.approx(slow[name], abs=1e-12), name
    for k in (1, 2, 3):
        assert value(report, "variable_top_k", k) == pytest.approx(slow[f"A_{k}"], abs=1e-12)
    assert report.cell("top_1")["n"] < report.cell("real")["n"] == report.n


def test_1_with_one_label_each_all_agree() -> None:
    logits, _, _ = made()
    labels = np.random.default_rng(1).integers(0, 6, len(logits))
    report = MultiLabelReport(logits, [[label] for label in labels], labels, n_boot=50)
    assert {value(report, name) for name in ("top_1", "real", "variable_top_k", "strict", "asma")} == {
        (logits.argmax(axis=1) == labels).mean()
    }


def test_2_real_is_at_least_top_1_unless_the_label_is_not_valid() -> None:
    logits, table, labels = made()
    report = MultiLabelReport(logits, table, labels, n_boot=50)
    assert value(report, "real") > value(report, "top_1")
    outside = MultiLabelReport(LOGITS, [[A]], [C], n_boot=50)  # the answer is c, which only the one label says
    assert (value(outside, "top_1"), value(outside, "real")) == (1.0, 0.0)


def test_4_asma_counts_subgroups_alike() -> None:
    logits = np.tile(LOGITS, (3, 1))
    sets = [[C], [A, B], [A, C]]  # k = (1, 2, 2), a = (1, 0.5, 1)
    report = MultiLabelReport(logits, sets, n_min=1, n_boot=50)
    assert [value(report, "variable_top_k", k) for k in (1, 2)] == [1.0, 0.75]
    assert value(report, "asma") == 0.875
    assert value(report, "asma_weighted") == pytest.approx(0.8333, abs=5e-5)
    assert MultiLabelReport(logits, sets, n_min=2, n_boot=50).cell("asma")["value"] == 0.75  # only k = 2 has two
    none = MultiLabelReport(logits, sets, n_boot=50)
    assert none.cell("asma") == {"value": None, "low": None, "high": None, "n": 0, "interval": "none"}


def test_6_empty_sets_are_left_out_and_counted() -> None:
    logits, table, labels = made()
    empty = ~table.any(axis=1)
    report = MultiLabelReport(logits, table, labels, n_boot=100)
    without = MultiLabelReport(logits[~empty], table[~empty], labels[~empty], n_boot=100)
    assert (report.empty, report.n) == (empty.sum(), (~empty).sum()) and report.empty > 10
    assert report.rows == without.rows
    assert sum(report.to_dict()["label_counts"].values()) == report.n
    with pytest.raises(DataError, match="none of 2 pictures has a valid label"):
        MultiLabelReport(logits[:2], [[], []])


def test_7_class_order_and_increasing_functions_change_nothing() -> None:
    logits, table, labels = made()
    rows = MultiLabelReport(logits, table, labels, n_boot=50).rows
    order = np.random.default_rng(3).permutation(6)
    place = np.argsort(order)
    moved = np.where(labels >= 0, place[labels], -1)
    assert MultiLabelReport(logits[:, order], table[:, order], moved, n_boot=50).rows == rows
    assert MultiLabelReport(np.exp(logits / 3), table, labels, n_boot=50).rows == rows


def test_intervals_hold_the_value_and_draw_groups_whole() -> None:
    logits, table, labels = made(600)
    alone = MultiLabelReport(logits, table, labels, n_boot=500)
    for row in alone.rows:
        assert row["low"] <= row["value"] <= row["high"], row
    p, n = value(alone, "real"), alone.n
    width = alone.cell("real")["high"] - alone.cell("real")["low"]
    assert width == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / n), rel=0.15)
    times = partial(np.repeat, repeats=4, axis=0)
    twice = times(logits), times(table), times(labels)
    grouped = MultiLabelReport(*twice, groups=times(np.arange(600)), n_boot=500).cell("real")
    assert grouped["value"] == p and grouped["high"] - grouped["low"] == pytest.approx(width, rel=0.15)
    narrow = MultiLabelReport(*twice, n_boot=500).cell("real")
    assert narrow["high"] - narrow["low"] == pytest.approx(width / 2, rel=0.15)


def test_where_all_resamples_agree_the_interval_is_wilsons() -> None:
    logits = np.tile(LOGITS, (80, 1))
    report = MultiLabelReport(logits, [[C]] * 40 + [[A, C]] * 40, n_boot=50)
    assert report.cell("real") == {"value": 1.0, "low": pytest.approx(80 / (80 + 1.96**2), abs=1e-4), "high": 1.0,
                                   "n": 80, "interval": "wilson"}  # fmt: skip
    assert report.cell("asma")["interval"] == "wilson"
    assert report.cell("asma")["low"] > report.cell("variable_top_k", 1)["low"]  # a mean is surer than its parts
