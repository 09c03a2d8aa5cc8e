from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from offshelf.evaluate.label_efficiency import Attempt, efficiency_curve, passes
from offshelf.evaluate.label_subsets import LabelBudget
from offshelf.evaluate.predictions import Predictions
from offshelf.evaluate.seeds import over_seeds
from offshelf.transfer.pipelines import Arm

N = 120
LABELS = np.arange(N) % 3


def rows_of(labels: np.ndarray, classes: int = 3) -> Any:
    return SimpleNamespace(labels=labels, classes=list("abc")[:classes], clusters=lambda chosen: None)


def attempt(skill: float, seed: int) -> Attempt:
    random = np.random.default_rng([int(100 * skill), seed])
    right = random.random(N) < skill
    predicted = np.where(right, LABELS, (LABELS + 1) % 3)
    spread = np.full((N, 3), 0.1)
    spread[np.arange(N), predicted] = 0.8
    return Attempt(seed, Predictions(Arm("net", "finetuned"), spread, predicted, np.zeros(N, int)), [10 + seed], 4)


def curve_of(skills: list[float], seeds: int = 3, n_boot: int = 500) -> dict[str, Any]:
    tried = [(LabelBudget(f"{s:.0%}", share=s), [attempt(s, k) for k in range(seeds)]) for s in skills]
    return efficiency_curve(tried, rows_of(LABELS), None, n_boot=n_boot)


def test_a_point_is_the_mean_over_the_seeds() -> None:
    curve = curve_of([0.5, 0.9])
    for point, skill in zip(curve["points"], (0.5, 0.9)):
        tried = [attempt(skill, seed) for seed in range(3)]
        by_seed = [np.mean([(one.item.predicted == c)[c == LABELS].mean() for c in range(3)]) for one in tried]
        assert point["by_seed"]["balanced_accuracy"] == pytest.approx(by_seed)
        cell = point["metrics"]["balanced_accuracy"]
        assert cell["value"] == pytest.approx(np.mean(by_seed))
        assert cell["low"] < cell["value"] < cell["high"]
        assert (point["n"], point["least"], point["most"], point["epochs"]) == (11, 10, 12, 4)
    assert curve["metric"] == "balanced_accuracy"
    assert curve["seeds"] == [0, 1, 2]
    first, last = curve["points"]
    assert first["gain"] is None
    difference = last["metrics"]["balanced_accuracy"]["value"] - first["metrics"]["balanced_accuracy"]["value"]
    assert last["gain"]["value"] == pytest.approx(difference)
    assert last["gain"]["low"] > 0.2


def test_no_gain_between_equal_points_has_no_width() -> None:
    same = [(LabelBudget(text, count=1), [attempt(0.7, k) for k in range(3)]) for text in "ab"]
    gain = efficiency_curve(same, rows_of(LABELS), None, n_boot=100)["points"][1]["gain"]
    assert (gain["value"], gain["low"], gain["interval"]) == (0.0, None, "none")


def test_seeds_that_differ_widen_the_interval() -> None:
    alike = [attempt(0.7, 0)] * 3
    unlike = [attempt(0.5, 0), attempt(0.7, 0), attempt(0.9, 0)]
    widths = []
    for tried in (alike, unlike):
        cell = efficiency_curve([(LabelBudget("5", count=5), tried)], rows_of(LABELS), None)["points"][0]["metrics"]
        widths.append(cell["accuracy"]["high"] - cell["accuracy"]["low"])
    assert widths[1] > 1.5 * widths[0]


def test_all_right_in_every_seed_falls_back_to_wilson() -> None:
    cell = curve_of([1.0], n_boot=50)["points"][0]["metrics"]["accuracy"]
    assert (cell["value"], cell["high"], cell["interval"]) == (1.0, 1.0, "wilson")
    assert 0.96 < cell["low"] < 0.98  # Wilson of 120 of 120


def test_several_labels_draw_the_mean_area() -> None:
    labels = np.stack([np.arange(N) % 2, np.arange(N) % 3 == 0], axis=1).astype(float)
    random = np.random.default_rng(0)
    tried = []
    for noise in (3.0, 0.3):
        spread = 1 / (1 + np.exp(-(labels - 0.5 + noise * random.normal(size=labels.shape))))
        item = Predictions(Arm("net", "finetuned"), spread, (spread > 0.5).astype(int), np.zeros(N, int))
        tried.append((LabelBudget(str(noise), count=1), [Attempt(0, item, [5], 1)]))
    curve = efficiency_curve(tried, rows_of(labels, 2), np.ones(2, bool), n_boot=200)
    assert curve["metric"] == "macro_auroc"
    first, last = (point["metrics"]["macro_auroc"]["value"] for point in curve["points"])
    assert first < 0.7 < 0.95 < last


def test_joining_seeds_is_the_slow_loop() -> None:
    drawn = np.random.default_rng(1).normal(size=(3, 40))
    chosen = np.random.default_rng([5, 13]).integers(0, 3, (40, 3))
    slow = [np.mean([drawn[s, b] for s in chosen[b]]) for b in range(40)]
    assert over_seeds(drawn, 3, seed=5) == pytest.approx(slow)
    assert over_seeds(drawn[:1], 3, seed=5) == pytest.approx(drawn[0])


@pytest.mark.parametrize(
    ("epochs", "batch", "n", "n_all", "expected"),
    [
        (10, 128, 50_000, 50_000, 10),  # all labels: as asked
        (10, 128, 500, 50_000, 67),  # 3 steps an epoch: 200 steps are enough
        (4, 64, 14, 705, 44),  # 44 steps are what all labels get
        (10, 128, 100, 100, 10),
        (100, 32, 320, 3200, 100),  # 1,000 steps already
    ],
)
def test_few_pictures_pass_more_often(epochs: int, batch: int, n: int, n_all: int, expected: int) -> None:
    assert passes(epochs, batch, n, n_all) == expected
