from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp
from torch import nn

from offshelf.engine.recipe import Recipe
from offshelf.errors import UsageError
from offshelf.evaluate.convergence_race import (
    Racer,
    convergence_race,
    first_below,
    over_seeds_cell,
    smoothed,
    step_ratio,
)
from offshelf.transfer.classification import ClassificationViews

VIEWS = ClassificationViews(4, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Linear(nn.Module):
    """A linear classifier of pixels with timm's two methods; it notes what it was shown."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fc = nn.Linear(48, 2)
        self.shown: list[torch.Tensor] = []

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.shown.append(x.detach().clone())
        return self.fc(x.flatten(1))


def made(n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n) % 2
    noise = np.random.default_rng(0).integers(0, 200, (n, 3, 4, 4))
    return (noise + 50 * labels[:, None, None, None]).astype(np.uint8), labels


def recipe(rate: float = 0.05) -> Recipe:
    return Recipe(
        optimiser="sgd", learning_rate=rate, weight_decay=0.0, batch_size=8, warmup=0.0, final_rate=1.0, betas=(0, 0.9)
    )


def test_smoothing_and_thresholds_by_hand() -> None:
    curve = smoothed([4.0, 2.0, 3.0, 1.0, 0.0], 2)
    assert np.isnan(curve[0]) and curve[1:].tolist() == [3.0, 2.5, 2.0, 0.5]
    assert first_below(curve, 2.5) == 4 and first_below(curve, 3.5) == 2 and first_below(curve, 0.5) is None
    assert smoothed([1.0], 2).tolist() != [1.0] and smoothed([3.0, 1.0], 1).tolist() == [3.0, 1.0]


def test_the_interval_over_seeds_is_students() -> None:
    values = [100.0, 120.0, 150.0]
    cell = over_seeds_cell(values)
    known = ttest_1samp(np.log(values), 0).confidence_interval(0.95)
    assert cell["value"] == pytest.approx((100 * 120 * 150) ** (1 / 3))
    assert (cell["low"], cell["high"]) == pytest.approx((math.exp(known.low), math.exp(known.high)))
    assert over_seeds_cell([7])["value"] == pytest.approx(7) and over_seeds_cell([7])["low"] is None
    assert over_seeds_cell([7, 7])["interval"] == "none" and over_seeds_cell([7, None])["value"] is None


def test_ratios_and_what_they_are_bounds_of() -> None:
    told = step_ratio([100, 90], [50, 30], 200)
    assert told["by_seed"] == [2.0, 3.0] and told["bound"] is None and told["ratio"]["value"] == pytest.approx(6**0.5)
    assert step_ratio([None, 90], [50, 30], 200) | {"ratio": 0} == {
        "by_seed": [4.0, 3.0],
        "bound": "at least",
        "ratio": 0,
    }
    assert step_ratio([100, 90], [50, None], 200)["bound"] == "at most"
    for first, other in (([None, 90], [None, 30]), ([None, 90], [50, None])):
        assert step_ratio(first, other, 200)["ratio"]["value"] is None


def test_all_networks_of_a_seed_see_the_same_batches() -> None:
    kept: dict[str, list[Linear]] = {"a": [], "b": []}

    def maker(name: str) -> Any:
        def make(seed: int) -> nn.Module:
            kept[name].append(Linear(seed + (name == "b")))
            return kept[name][-1]

        return make

    pixels, labels = made(40)
    views = ClassificationViews(4, VIEWS.mean, VIEWS.std, flip=True, shift=0.25)
    racers = [Racer(name, maker(name), views) for name in kept]
    told = convergence_race(
        racers, pixels, labels, pixels[:10], labels[:10], recipe(), steps=7, seeds=(0, 1), smoothing=2, n_boot=50
    )
    for seed in (0, 1):
        a, b = (kept[name][seed].shown for name in kept)
        assert len(a) == len(b) >= 7 and all(torch.equal(x, y) for x, y in zip(a, b))
    assert not torch.equal(kept["a"][0].shown[-1], kept["a"][1].shown[-1])
    assert told["thresholds"] == [0.42, 0.35] and told["chance_loss"] == pytest.approx(math.log(2))
    assert [arm["parameters"] for arm in told["arms"]] == [98, 98]


def test_the_quicker_network_is_told() -> None:
    """The same network twice, once with a head start: its weights are halved towards the answer."""
    pixels, labels = made(64)

    def ahead(seed: int) -> nn.Module:
        model = Linear(seed)
        with torch.no_grad():
            model.fc.weight.mul_(0.1)
            model.fc.weight[1] += 0.1
            model.fc.weight[0] -= 0.1
        return model

    racers = [Racer("slow", Linear, VIEWS), Racer("quick", ahead, VIEWS)]
    told = convergence_race(
        racers, pixels, labels, pixels, labels, recipe(0.02), steps=60, thresholds=[0.5], seeds=(0, 1, 2), smoothing=5,
        n_boot=200,
    )  # fmt: skip
    slow, quick = told["arms"]
    (ratio,) = told["pairs"][0]["ratios"]
    assert ratio["ratio"]["value"] > 1 and told["pairs"][0]["first"] == "slow"
    for arm, steps in ((slow, slow["reached"][0]["by_seed"]), (quick, quick["reached"][0]["by_seed"])):
        mean, low, high = (arm["curve"][key] for key in ("mean", "low", "high"))
        assert (
            mean[3] is None and mean[4] is not None and all(a <= b <= c for a, b, c in zip(low[4:], mean[4:], high[4:]))
        )
        assert len(steps) == 3 and arm["accuracy"]["value"] == pytest.approx(np.mean(arm["accuracy_by_seed"]))
    assert told["pairs"][0]["accuracy"]["value"] == pytest.approx(
        quick["accuracy"]["value"] - slow["accuracy"]["value"]
    )


def test_equal_networks_have_a_ratio_of_one_and_no_difference() -> None:
    pixels, labels = made(64)
    racers = [Racer("a", Linear, VIEWS), Racer("b", Linear, VIEWS)]
    told = convergence_race(racers, pixels, labels, pixels, labels, recipe(), steps=30, thresholds=[0.6], n_boot=50)
    (pair,) = told["pairs"]
    assert pair["ratios"][0]["by_seed"] == [1.0] * 3 and pair["accuracy"]["value"] == 0
    assert told["arms"][0]["curve"] == told["arms"][1]["curve"]


def test_one_that_diverges_is_told_and_the_race_goes_on() -> None:
    pixels, labels = made(16)

    def broken(seed: int) -> nn.Module:
        model = Linear(seed)
        with torch.no_grad():
            model.fc.weight.fill_(float("nan"))
        return model

    racers = [Racer("broken", broken, VIEWS), Racer("sound", Linear, VIEWS)]
    told = convergence_race(
        racers, pixels, labels, pixels, labels, recipe(), steps=4, seeds=(0,), smoothing=1, n_boot=20
    )
    assert told["arms"][0]["diverged_at"] == [1] and told["arms"][1]["diverged_at"] == [None]
    assert told["arms"][0]["accuracy"]["value"] == 0 and told["arms"][0]["largest_gradient"] == [None]


@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        (["a"], {}, "1 network in a race: expected at least two"),
        (["a", "a"], {}, "a is in the race twice"),
        (["a", "b"], {"smoothing": 9}, "smoothing over 9 of 4 steps"),
        (["a", "b"], {"thresholds": [-1.0]}, "threshold -1.0: expected a loss above 0"),
        (["a", "b"], {"seeds": ()}, "no seeds"),
    ],
)
def test_what_does_not_fit_is_refused(names: list[str], settings: dict[str, Any], said: str) -> None:
    pixels, labels = made(16)
    racers = [Racer(name, Linear, VIEWS) for name in names]
    about: dict[str, Any] = {"steps": 4, "smoothing": 1} | settings
    with pytest.raises(UsageError, match=said):
        convergence_race(racers, pixels, labels, pixels, labels, recipe(), **about)
