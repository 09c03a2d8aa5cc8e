"""The numbered properties are those that a faithful implementation must have."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import sparse

from offshelf.errors import DataError
from offshelf.evaluate.label_sets import first_classes, label_matrix, real_labels, score_pictures

A, B, C, D = range(4)
LOGITS = np.array([[3.0, 2.0, 4.0, 1.0]])  # the order is c, a, b, d


@pytest.mark.parametrize(("labels", "share", "real"), [([A, C], 1.0, 1.0), ([A, B], 0.5, 0.0), ([D], 0.0, 0.0)])
def test_3_the_hand_example(labels: list[int], share: float, real: float) -> None:
    found = score_pictures(LOGITS, [labels]).values
    assert (found["variable_top_k"][0], found["real"][0]) == (share, real)
    assert found["strict"][0] == (share == 1)
    assert np.isnan(found["top_1"][0])


def test_8_ties_go_to_the_lower_class() -> None:
    assert first_classes(np.array([[1, 2, 2, 2.0], [0, 0, 0, 0]]), 3).tolist() == [[1, 2, 3], [0, 1, 2]]
    assert first_classes(np.zeros((9000, 40)), 2).tolist() == [[0, 1]] * 9000  # many, and in more than one part
    assert score_pictures(np.array([[1, 1, 1]]), [[1]]).values["real"][0] == 0


def test_9_real_accuracy_is_that_of_timm(tmp_path: Path) -> None:
    from timm.data.real_labels import RealLabelsImagenet

    n = 3000  # the first pictures; timm reads theirs from a file of its own form
    (tmp_path / "real.json").write_text(json.dumps(real_labels()[:n]))
    names = [f"val/ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, n + 1)]
    sets = real_labels(names)
    random = np.random.default_rng(0)
    outputs = random.standard_normal((n, 1000), dtype=np.float32)
    rows = np.flatnonzero(random.random(n) < 0.7)
    outputs[rows, [sets[row][-1] if sets[row] else 0 for row in rows]] += 4
    theirs = RealLabelsImagenet(names, str(tmp_path / "real.json"))
    theirs.add_result(torch.from_numpy(outputs))
    found = score_pictures(outputs, sets).values["real"]
    assert 100 * np.nanmean(found) == pytest.approx(theirs.get_accuracy(1), abs=1e-9)
    assert 50 < theirs.get_accuracy(1) < 90 and np.isnan(found).sum() > 100


def test_10_the_histogram_of_the_real_labels() -> None:
    counts = Counter(len(one) for one in real_labels())
    assert counts[0] == 3163
    assert [counts[k] for k in range(1, 10)] == [39394, 5408, 1319, 411, 161, 88, 41, 13, 2]
    assert sum(counts.values()) == 50_000


def test_real_labels_are_found_by_file_number_which_starts_at_1() -> None:
    sets = real_labels()
    names = ["ILSVRC2012_val_00000001.JPEG", "some/where/ILSVRC2012_val_00050000.png", "ILSVRC2012_val_00000002"]
    assert real_labels(names) == [sets[0], sets[-1], sets[1]]
    for wrong in ("ILSVRC2012_val_00000000.JPEG", "ILSVRC2012_val_00050001.JPEG", "n01440764_18.JPEG"):
        with pytest.raises(DataError, match="numbers 1 to 50000"):
            real_labels([wrong])


def test_real_labels_agree_with_the_published_list(real_data: Path) -> None:
    table = pq.read_table(real_data / "imagenet-one-per-class" / "real_val_labels.parquet")
    column = next(name for name in table.column_names if name != "index")
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in table["index"].to_pylist()]
    assert len(names) == 50_000
    assert [sorted(one) for one in real_labels(names)] == [sorted(one) for one in table[column].to_pylist()]


def test_11_chance_is_k_in_all() -> None:
    random = np.random.default_rng(0)
    n, n_classes = 30_000, 10
    for k in (1, 2, 4):
        found = score_pictures(random.random((n, n_classes)), [list(range(k))] * n).values["variable_top_k"]
        assert found.mean() == pytest.approx(k / n_classes, abs=4 * found.std() / np.sqrt(n))


def test_label_sets_come_in_several_forms() -> None:
    table = np.array([[1, 0, 1], [0, 0, 0]])
    for form in (table, table.astype(bool), table.astype(float), sparse.csr_array(table), [[2, 0], ()], [{0, 2}, []]):
        assert label_matrix(form, 3).tolist() == [[True, False, True], [False] * 3]


@pytest.mark.parametrize(
    ("logits", "sets", "labels", "words"),
    [
        (np.zeros(3), [[0]], None, r"logits of shape \(3,\)"),
        (np.zeros((0, 3)), [], None, "at least 1"),
        (np.array([[0, np.nan]]), [[0]], None, "row 0: not a number"),
        (np.zeros((1, 3)), [[0], [1]], None, "2 label sets for 1 rows"),
        (np.zeros((2, 3)), [[0], [0, 3]], None, "row 1: class 3; expected 0 to 2"),
        (np.zeros((1, 3)), [[-1]], None, "class -1"),
        (np.zeros((1, 3)), np.zeros((1, 2)), None, r"expected \(n, 3\)"),
        (np.zeros((1, 3)), np.array([[0, np.nan, 1]]), None, "row 0, class 1: nan; expected 0 or 1"),
        (np.zeros((1, 3)), [[0]], [0, 1], "expected 1 class numbers"),
        (np.zeros((1, 3)), [[0]], [0.5], "expected 1 class numbers"),
        (np.zeros((1, 3)), [[0]], [3], "labels, row 0: 3"),
    ],
)
def test_what_does_not_fit_is_named(logits: np.ndarray, sets: object, labels: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        score_pictures(logits, sets, labels)  # type: ignore[arg-type]
