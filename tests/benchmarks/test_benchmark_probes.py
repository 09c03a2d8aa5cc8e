"""Both sides of the probe benchmark solve the same problem, and the answers are compared rightly."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import probes
from benchmarks._process import Measured
from benchmarks.probe_contestants import made_rows, objective
from offshelf.errors import UsageError


def test_every_head_finds_what_scikit_learn_finds(in_this_process: list[str]) -> None:
    kept = probes.measure("toy", probes.HEADS, rounds=1, command="a command")
    found = {each["head"]: {one["name"]: one for one in each["contestants"]} for each in kept["heads"]}
    assert list(found) == list(probes.HEADS)
    for contestants in found.values():
        assert list(contestants) == ["scikit-learn, 1 thread", "offshelf, 1 thread"]
        assert contestants["scikit-learn, 1 thread"]["equal_predictions"] == 1.0
        assert contestants["scikit-learn, 1 thread"]["ratio"]["median"] == 1.0
    ours = {head: contestants["offshelf, 1 thread"] for head, contestants in found.items()}
    assert ours["logistic"]["equal_predictions"] > 0.98
    assert ours["logistic"]["path_difference"] < 5e-3
    assert abs(ours["logistic"]["objective_difference"]) < 1e-4
    assert ours["svm"]["equal_predictions"] == 1.0
    assert ours["svm"]["path_difference"] < 1e-12
    assert ours["knn"]["equal_predictions"] == 1.0
    assert ours["knn_choice"]["path_difference"] < 0.1  # even votes are settled in another way
    for table in probes.tables(kept):
        assert len(table.rows) == 2
        assert all(len(row) == len(table.header) for row in table.rows)


def test_the_objective_is_cross_entropy_and_penalty() -> None:
    X, y = made_rows(30, 5, 3)
    W, b = np.zeros((3, 5)), np.zeros(3)
    assert objective(X, y, W, b, 1.0) == pytest.approx(np.log(3))
    W = np.random.default_rng(0).normal(size=(3, 5))
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    slow = 0.0
    for row, truth in zip(Z, y):
        scores = np.exp(W @ row + [0.1, 0.2, 0.3])
        slow -= np.log(scores[truth] / scores.sum()) / 30
    slow += (W**2).sum() / (2 * 0.5 * 30)
    assert objective(X, y, W, np.array([0.1, 0.2, 0.3]), 0.5) == pytest.approx(slow, rel=1e-5)


def test_made_rows_are_the_same_for_a_seed_and_look_like_pooled_features() -> None:
    (X, y), (again, _) = made_rows(400, 20, 4), made_rows(400, 20, 4)
    assert (again == X).all()
    assert X.dtype == np.float32
    assert X.min() == 0.0
    assert 0.3 < (X == 0).mean() < 0.7
    assert sorted(set(y.tolist())) == [0, 1, 2, 3]


def answer(C: float, loss: float | None, path: list[float], predicted: list[int]) -> Measured:
    facts = {"C": C} if loss is None else {"C": C, "objective": loss}
    return Measured(1.0, 1.0, 1.0, 1.0, 0.0, {}, facts, {"path": np.array(path), "predicted": np.array(predicted)})


def test_answers_are_compared_entry_by_entry() -> None:
    reference = answer(1.0, 0.50, [0.7, 0.6], [0, 1, 2, 2])
    found = probes.same_answers(reference, answer(1.0, 0.49, [0.7, 0.55], [0, 1, 2, 0]))
    assert found["equal_predictions"] == 0.75
    assert found["path_difference"] == pytest.approx(0.05)
    assert found["objective_difference"] == pytest.approx(-0.01)
    other = probes.same_answers(reference, answer(10.0, 0.30, [0.7, 0.6], [0, 1, 2, 2]))
    assert other["objective_difference"] is None, "objectives at two penalties cannot be compared"


def test_votes_are_equal_only_for_all_classes() -> None:
    runs = [
        Measured(1.0, 1.0, 1.0, 1.0, 0.0, arrays={"votes": np.array(votes)})
        for votes in ([[3, 2, 0], [1, 4, 0]], [[3, 2, 0], [0, 4, 1]])
    ]
    assert probes.same_answers(*runs)["equal_predictions"] == 0.5


def test_an_unknown_size_or_head_is_refused_with_what_there_is() -> None:
    with pytest.raises(UsageError, match="'smal'.*did you mean 'small'"):
        probes.measure("smal", ["svm"], 1, "")
    with pytest.raises(UsageError, match="expected one of logistic, svm, knn, knn_choice"):
        probes.measure("toy", ["forest"], 1, "")
