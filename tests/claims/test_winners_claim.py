"""How often a winner changes from draw to draw: hand-made tables, made-up answers, and a run on made-up features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from claims import eight_sets, winners
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN, data_folder
from claims.off_the_shelf import Task
from claims.winners_told import Pairs, Sizes, changed, lost, over_data_sets, shown, summarise, told, verdict
from offshelf.data.samples import as_samples
from offshelf.errors import DataError

FIRST = np.array([[0.9, 0.8, 0.7], [0.5, 0.6, 0.4], [0.5, 0.5, 0.2], [0.1, 0.2, 0.3]])
SECOND = np.array([[0.7, 0.8, 0.6], [0.5, 0.7, 0.4], [0.6, 0.6, 0.1], [0.9, 0.4, 0.5]])


def pairs(first: np.ndarray, second: np.ndarray, apart: list[bool]) -> Pairs:
    tied = np.zeros(first.shape, dtype=bool)
    tied[np.arange(len(first)), first.argmax(axis=1)] = True
    return Pairs(first, second, first, second, np.array(apart), tied)


def made_up(n: int = 240, n_classes: int = 3) -> Task:
    """Three classes, groups of two neighbours, the latter half tested; the pictures do not matter."""
    labels = np.arange(n) // 2 % n_classes
    groups = np.array([f"g{row // 2}" for row in range(n)], dtype=object)
    rows, names = np.arange(n), [f"class {k}" for k in range(n_classes)]
    picture = np.zeros((n, 4, 4), dtype=np.uint8)
    return Task("made up", as_samples(picture), labels, groups, names, rows[: n // 2], rows[n // 2 :], {}, 0)


def test_a_winner_has_changed_when_another_backbone_is_highest_and_of_equals_the_first_counts() -> None:
    assert changed(FIRST, SECOND).tolist() == [True, False, False, True]
    assert changed(FIRST, FIRST).tolist() == [False] * 4


def test_points_lost_are_measured_in_the_second_draw() -> None:
    assert lost(FIRST, SECOND) == pytest.approx([10.0, 0.0, 0.0, 40.0])
    assert lost(SECOND, FIRST) == pytest.approx([10.0, 0.0, 0.0, 20.0])


def test_the_mean_over_data_sets_counts_every_pair_or_those_asked_for() -> None:
    values = np.array([[1, 0, 0, 1], [0, 0, 0, 1]], dtype=bool)
    asked = np.array([[1, 1, 0, 0], [0, 0, 0, 1]], dtype=bool)
    assert over_data_sets(values)["value"] == 3 / 8
    assert over_data_sets(values, asked)["value"] == pytest.approx(2 / 3)
    assert over_data_sets(values, np.zeros_like(asked)) == {"value": None, "low": None, "high": None}
    rare = np.zeros((8, 4), dtype=bool)
    rare[0, 0] = True  # one data set of eight is left out by a third of the resamples
    assert over_data_sets(np.tile(values, (4, 1)), rare) == {"value": 1.0, "low": None, "high": None}


def test_the_interval_is_that_of_a_slow_loop_stretched_for_few_data_sets() -> None:
    values = np.random.default_rng(0).random((8, 20)) < np.linspace(0.2, 0.9, 8)[:, None]
    cell, draws, means = over_data_sets(values), np.random.default_rng(1), []
    for _ in range(4000):
        sets = draws.integers(0, 8, 8)
        means.append(np.mean([values[one, draws.integers(0, 20, 20)].mean() for one in sets]))
    low, high = np.percentile(means, [2.5, 97.5])
    stretch = np.sqrt(8 / 7) * 2.3646 / 1.96  # Student's quantile with seven degrees of freedom
    assert cell["value"] == values.mean()
    assert cell["low"] == pytest.approx(values.mean() - stretch * (values.mean() - low), abs=0.015)
    assert cell["high"] == pytest.approx(values.mean() + stretch * (high - values.mean()), abs=0.015)


def test_bounds_stay_within_what_can_be_and_do_not_collapse() -> None:
    none = over_data_sets(np.zeros((8, 20), dtype=bool))
    assert none["value"] == none["low"] == 0.0
    assert none["high"] == pytest.approx(0.3244, abs=1e-3)  # Wilson's of none in eight: z^2 / (n + z^2)
    nearly = over_data_sets(np.arange(40).reshape(2, 20) > 0)
    assert nearly["high"] == 1.0
    points = over_data_sets(np.full((3, 4), 7.5), most=100.0)
    assert (points["low"], points["high"]) == (7.5, 7.5)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.26, 0.9, SHOWN), (0.25, 0.9, NOT_SHOWN), (0.1, 0.3, NOT_SHOWN), (0.1, 0.24, CONTRADICTED)],
)
def test_the_verdict_lies_on_one_in_four(low: float, high: float, expected: str) -> None:
    assert verdict({"value": 0.2, "low": low, "high": high}) == expected


def test_what_is_told_of_hand_made_draws() -> None:
    found = [pairs(FIRST, SECOND, [False, True, False, True]), pairs(FIRST, FIRST, [True, True, False, False])]
    numbers = {key: cell["value"] for key, cell in told(found, 200).items()}
    assert numbers["changed"] == 2 / 8
    assert numbers["labels_alone"] == 0 and numbers["test_alone"] == 2 / 8
    assert numbers["points_lost"] == pytest.approx(50 / 8)
    assert numbers["told_apart"] == 4 / 8
    assert numbers["changed_if_told_apart"] == 1 / 4 and numbers["changed_if_not"] == 1 / 4
    assert numbers["second_in_tie_group"] == 6 / 8 and numbers["tie_group_size"] == 1
    below = [(SECOND.max(axis=1) - SECOND.mean(axis=1)).mean(), (FIRST.max(axis=1) - FIRST.mean(axis=1)).mean()]
    assert numbers["points_lost_by_any"] == pytest.approx(100 * np.mean(below))


def test_the_record_has_a_row_a_data_set_and_one_for_each_number_of_labels() -> None:
    one, task = pairs(FIRST, SECOND, [False, True, False, True]), made_up()
    record = summarise(
        {"10%": [one] * 2, "50%": [one] * 2}, [task] * 2, Sizes(pairs={"10%": 4, "50%": 4}, resamples=200)
    )
    rows = record["table"]["rows"]
    assert len(rows) == 4 and {len(row) for row in rows} == {len(record["table"]["header"])}
    assert rows[0][1].startswith("0.50 [") and rows[0][4].startswith("12.5 [")
    assert rows[0][5:] == ["2 of 4", "1 of 2", "2 of 4"]
    assert record["by_data_set"]["10%"]["made up"]["first"] == [0, 1, 0, 2]
    assert record["verdict"] == verdict(record["numbers"]["10%"]["changed"])
    assert "0.67" in record["sentence"]  # chance with three backbones
    assert shown({"value": 0.5, "low": None, "high": None}) == "0.50 [no interval]"


def test_a_winner_is_told_apart_only_where_enough_pictures_say_so() -> None:
    truth = np.arange(60) % 2
    good, close, poor = truth.copy(), truth.copy(), 1 - truth
    close[:5] = 1 - close[:5]
    answered = np.stack([poor, close, good])
    units = np.arange(60).astype(object)
    apart, tied = winners.judged(truth, answered, units, 300)
    assert not apart and tied.tolist() == [False, True, True]
    apart, tied = winners.judged(truth, np.stack([poor, good, 1 - truth]), units, 300)
    assert apart and tied.tolist() == [False, True, False]


def test_balanced_accuracy_is_the_mean_over_classes() -> None:
    truth = np.array([0, 0, 0, 0, 1, 1])
    answered = np.array([[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 2]])
    assert winners.balanced_accuracies(truth, answered).tolist() == [0.5, 0.75, 0.75]


def test_draws_take_other_labels_and_other_test_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = made_up(), []

    def scored(truth: np.ndarray, answered: np.ndarray) -> np.ndarray:
        seen.append(answered.copy())
        return answered[:, 0].astype(float)

    # Instead of answers: the row of the test part and, as a second backbone, the seed of the labels.
    rows = np.arange(len(task.test))
    monkeypatch.setattr(winners, "answers", lambda f, t, b, seed: np.stack([rows, np.full(len(rows), seed)]))
    monkeypatch.setattr(winners, "balanced_accuracies", scored)
    monkeypatch.setattr(winners, "judged", lambda truth, answered, g, n: (np.bool_(True), np.ones(2, dtype=bool)))
    winners.draw_pair({}, task, "10%", 3, 10)
    first, second, relabelled, retested = seen
    assert [one[1, 0] for one in seen] == [6, 7, 7, 6]
    assert np.array_equal(first[0], relabelled[0]) and np.array_equal(second[0], retested[0])
    assert sorted([*first[0], *second[0]]) == rows.tolist()
    tested = task.groups[task.test]
    assert not set(tested[first[0]]) & set(tested[second[0]])


def test_a_backbone_that_knows_the_classes_wins_every_draw_and_equals_are_won_by_chance() -> None:
    task, draws = made_up(), np.random.default_rng(0)
    noise = {f"noise {k}": draws.normal(size=(len(task.labels), 6)).astype(np.float32) for k in range(3)}
    clear = np.eye(3, dtype=np.float32)[task.labels] + 0.05 * draws.normal(size=(len(task.labels), 3))
    sizes = Sizes(pairs={"50%": 6}, test_resamples=100)
    known = winners.draw_pairs({**noise, "clear": clear.astype(np.float32)}, task, "50%", sizes)
    assert known.first.shape == (6, 4) and known.tied.shape == (6, 4)
    assert not changed(known.first, known.second).any() and known.apart.all()
    assert (known.first[:, 3] == 1.0).all() and (known.tied.sum(axis=1) == 1).all()
    alike = winners.draw_pairs(noise, task, "50%", sizes)
    assert changed(alike.first, alike.second).any() and not alike.apart.all()


def test_neighbouring_numbers_of_each_hundred_are_one_place() -> None:
    assert {eight_sets.place(f"g{n:03d}.jpg") for n in (1, 2, 101, 102, 301, 302)} == {"g 0"}
    assert eight_sets.place("g003.jpg") == "g 1" != eight_sets.place("a003.jpg")
    assert eight_sets.place("g100.jpg") == eight_sets.place("g399.jpg") == "g 49"


def test_the_eight_sets_keep_groups_on_one_side() -> None:
    folders = ("chest-xray", "trashnet", "rsscn7", *eight_sets.SINGLE.values(), *eight_sets.CUT.values())
    try:
        found: list[Path] = [data_folder(folder) for folder in folders]
    except DataError as error:
        pytest.skip(f"needs the real data sets: {error}")
    tasks = eight_sets.load_tasks()
    assert len(tasks) == len(found) == 8
    for task in tasks:
        assert not set(task.groups[task.train]) & set(task.groups[task.test])
        assert task.straddling == 0 and len(task.train) <= 3000 and len(task.test) <= 2000
