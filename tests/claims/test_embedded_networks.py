"""The comparison of embedded networks with their random twins, on made-up pictures and made-up scores."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from claims.embedded_networks import Compared, Sizes, compare, resampled, summarise
from claims.off_the_shelf import Task
from offshelf.backbones.embedded import EMBEDDED
from offshelf.data.samples import as_samples


def task(n: int = 48) -> Task:
    labels = np.arange(n) % 2
    draws = np.random.default_rng(0)
    pictures = [
        Image.fromarray((draws.integers(0, 60, (32, 32, 3)) + 150 * label).astype(np.uint8)) for label in labels
    ]
    groups = np.array([f"g{i}" for i in range(n)], dtype=object)
    rows = np.arange(n)
    return Task(
        "made up", as_samples(pictures), labels, groups, ["dark", "light"], rows[: n // 2], rows[n // 2 :], {}, 0
    )


def test_the_difference_is_that_of_means_and_draws_are_drawn_again() -> None:
    one = Compared(np.array([0.8, 0.8, 0.8]), np.array([[0.5, 0.5, 0.5], [0.7, 0.7, 0.7]]))
    assert one.difference()[0] == pytest.approx(0.2)
    many = Compared(np.full(401, 0.8), np.stack([np.full(401, 0.5), np.full(401, 0.7)]))
    assert set(many.difference()[1:].round(3)) == {0.1, 0.2, 0.3}


def test_resamples_surround_the_value_of_the_test_part() -> None:
    made = task()
    right = made.labels[made.test].copy()
    right[:6] = 1 - right[:6]
    drawn = resampled(made, right, 500)
    assert drawn[0] == 0.75
    assert drawn.shape == (501,)
    assert 0.06 < drawn[1:].std() < 0.12  # binomial: 0.088


def test_both_kinds_of_weights_run_end_to_end_and_are_summed_up() -> None:
    made, sizes = task(), Sizes(side=32, draws=(0, 1), resamples=50)
    found = compare(EMBEDDED[0], made, sizes)
    assert found.learnt[0] == 1.0  # dark against light
    record = summarise({EMBEDDED[0]: [found, found]}, [made, made], sizes)
    assert len(record["table"]["rows"][0]) == len(record["table"]["header"]) == 4
    assert record["verdict"] in ("shown", "not shown at this scale", "contradicted")
    assert record["table"]["rows"][0][1].startswith("1.000; ")


def test_the_rule_counts_networks_that_help() -> None:
    made, sizes = task(), Sizes()
    better = Compared(np.full(101, 0.9), np.full((2, 101), 0.5))
    worse = Compared(np.full(101, 0.4), np.full((2, 101), 0.5))
    record = summarise({EMBEDDED[0]: [better, better]}, [made, made], sizes)
    assert record["verdict"] == "shown" and record["numbers"][EMBEDDED[0]]["difference"] == pytest.approx(0.4)
    assert summarise({EMBEDDED[0]: [better, worse]}, [made, made], sizes)["verdict"] == "shown"  # the mean counts
    assert summarise({EMBEDDED[0]: [worse, worse]}, [made, made], sizes)["verdict"] == "contradicted"
