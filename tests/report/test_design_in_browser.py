"""The page of a study of filters as a reader meets it: sorting, both colour schemes, a desk and a telephone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offshelf.evaluate.filter_results import draw
from offshelf.report.build import build_report
from tests.report.browsing import Opened
from tests.report.conftest import make_run
from tests.report.test_leaderboard_in_browser import CONTRAST

NAMES = ["he", "orthogonal", "dct", "gabor", "pca", "k-means", "copied:a_very_long_name_of_a_backbone.of_ours_cifar10"]


def make_study(n: int = 400) -> dict[str, Any]:
    """A plausible study of seven arms, one of which cannot be measured."""
    random = np.random.default_rng(0)

    def cell(value: float, spread: float = 0.03) -> dict[str, Any]:
        return {"value": value, "low": value - spread, "high": value + spread, "n": n, "interval": "bootstrap"}

    arms = []
    for place, name in enumerate(NAMES):
        score = 0.4 + 0.03 * place
        curve = [score - 0.2 / (epoch + 1) for epoch in range(10)]
        filters = random.normal(size=(48, 3, 5, 5))
        arms.append(
            {
                "name": name,
                "rule": name,
                "settings": {},
                "parameters": 198_066 + place,
                "multiply_adds": 16_000_000,
                "receptive_field": 40,
                "last": cell(score),
                "first": cell(curve[0]),
                "by_seed": [score] * 3,
                "difference": cell(score - 0.4) if place else None,
                "validation": cell(score),
                "area": cell(float(np.mean(curve))),
                "curve": {"value": curve, "low": [v - 0.02 for v in curve], "high": [v + 0.02 for v in curve]},
                "losses": [2.0 - 0.1 * epoch for epoch in range(10)],
                "variances": {"stem.0": 2.1, "stages.0.1": 1.4},
                "epochs_to_baseline": None if place == 1 else 4,
                "baseline": not place,
                "seconds": 12.0,
                "layers": [
                    {
                        "name": "stem.0",
                        "begun": {"from_rule": 27, "patches": 50_000, "notes": [f"{name} gives 27 filters for 48"]},
                        "shape": [48, 3, 5, 5],
                        "travelled": None if place == 2 else 0.2,
                        "dead": [0.0, 0.125],
                        "grades": {key: [0.1, 0.2] for key in ("sparsity", "entropy", "orthogonality")},
                        "pictures": {"before": draw(filters), "after": draw(filters), "n": 48},
                    }
                ],
            }
        )
    return {
        "title": "films: filters, initialisation",
        "verb": "design",
        "study": "initialisation",
        "question": {"backbone": "plain_cnn.random", "match": "parameters", "tolerance": 0.02, "norm": "batch"},
        "settings": {"recipe": {"epochs": 10}, "hold": "freeze", "labels": "500", "labelled": 500, "patches": 50_000},
        "seeds": [0, 1, 2],
        "classes": ["a", "b", "c"],
        "chance": 1 / 3,
        "baseline": "he",
        "arms": arms,
        "best": NAMES[5],
        "tie_groups": [NAMES[4:], NAMES[:4]],
        "parts": {"train": 1000, "validation": 250, "test": n},
        "data": {
            "source": "films/",
            "n": 1650,
            "n_used": 1650,
            "groups": None,
            "notes": [],
            "bad_files": [],
            "fingerprint": "9f2c",
        },
        "cost": {"total_seconds": 60.0, "images_per_second": 900.0, "cpu": "a processor"},
        "verdict": ["Best on the validation part: k-means.", "It cannot be told apart from pca."],
    }


@pytest.fixture
def page(run_folder: Callable[..., Path], opened: Callable[..., Opened]) -> Callable[..., Opened]:
    report = build_report(run_folder(make_study(), make_run() | {"verb": "design"}))
    return lambda **how: opened(report, **how)


def test_the_arms_stand_in_order_and_can_be_sorted(page: Callable[..., Opened]) -> None:
    one = page()
    assert one.column("Arm") == NAMES[::-1]
    one.button("Accuracy").click()
    assert one.sorted_by("Accuracy") == "descending" and one.column("Arm") == NAMES[::-1]
    one.button("Accuracy").click()
    assert one.column("Arm") == NAMES
    one.button("Parameters").click()
    assert one.sorted_by("Parameters") == "ascending" and one.column("Arm") == NAMES


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_ground(page: Callable[..., Opened], scheme: str) -> None:
    found = page(scheme=scheme).page.evaluate(CONTRAST)
    assert found["seen"] > 150 and found["least"] >= 4.5, found["where"]


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light")])
def test_it_fits_its_window_and_draws_the_filters(page: Callable[..., Opened], width: int, scheme: str) -> None:
    one = page(width=width, scheme=scheme)
    one.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = one.page.evaluate(
        "[...document.querySelectorAll('#filters img')].map(one => [one.naturalWidth, one.width])"
    )
    assert len(drawn) == 14 and all(natural == 95 and shown >= 95 for natural, shown in drawn)
    wide, narrow = (one.page.locator(f"#arms .{kind}-only").is_visible() for kind in ("wide", "narrow"))
    assert (wide, narrow) == (width > 720, width <= 720)
