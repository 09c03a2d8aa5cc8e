from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from claims import selfie as claim
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN
from claims.table import markdown
from offshelf.pretrain.selfie import Selfie

TINY = claim.Sizes(
    unlabelled=64,
    pretrain_epochs=1,
    pretrain_batch=32,
    labels_a_class=12,
    test=24,
    finetune_epochs=1,
    finetune_batch=12,
    pilot=16,
    seeds=(0, 1, 2),
    longer_seeds=(0, 1),
)
UP, ZERO, DOWN = {"low": 0.01, "high": 0.03}, {"low": 0.0, "high": 0.02}, {"low": -0.02, "high": -0.01}


@pytest.mark.parametrize(
    ("first", "second", "ratio", "expected"),
    [
        (UP, UP, {"low": 1.1, "high": 4.0}, SHOWN),
        (UP, UP, {"low": 0.9, "high": 4.0}, NOT_SHOWN),
        (UP, ZERO, {"low": 1.1, "high": 4.0}, NOT_SHOWN),  # touching 0 is not above it
        (UP, DOWN, {"low": 1.1, "high": 4.0}, CONTRADICTED),
        (UP, UP, {"low": 0.2, "high": 0.9}, CONTRADICTED),
    ],
)
def test_the_claim_needs_all_three_parts(first: Any, second: Any, ratio: Any, expected: str) -> None:
    numbers = {"differences": {"selfie - scratch": first, "selfie - longer": second}, "spread": ratio}
    verdict, parts = claim.verdict_of(numbers)
    assert verdict == expected
    assert parts["selfie - scratch"] == SHOWN


def test_the_rule_of_the_record_is_the_one_in_the_docstring() -> None:
    assert claim.RULE in " ".join(str(claim.__doc__).split())


def test_the_longer_arm_sees_as_many_pictures_and_shares_seeds() -> None:
    sizes = claim.Sizes()
    labelled = 10 * sizes.labels_a_class
    in_all = sizes.pretrain_epochs * sizes.unlabelled + sizes.finetune_epochs * labelled
    assert sizes.longer_epochs(10) * labelled == in_all == 60_500
    assert sizes.longer_seeds == sizes.seeds[: len(sizes.longer_seeds)]
    assert claim.PILOT not in sizes.seeds


def test_ratio_of_spreads() -> None:
    a, b = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.1, 0.15, 0.2, 0.25, 0.3, 0.35]
    found = claim.spread(a, b, 1e-3)
    assert found["value"] == pytest.approx(2.0)
    # the 97.5 % point of F(5, 5) is 7.146, its root 2.673; degrees are equal, so the lower point is its inverse
    assert found["low"] == pytest.approx(2 / 2.6733, rel=1e-3)
    assert found["high"] == pytest.approx(2 * 2.6733, rel=1e-3)
    assert claim.spread([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], 1e-3)["value"] == 1.0


def test_a_patch_leaves_two_by_two_positions_of_the_partial_network() -> None:
    objective = Selfie(claim.network(0), 64, depth=1, num_heads=4)
    assert (objective.patch, objective.grid, objective.hidden) == (16, 4, 4)
    (found,) = objective.backbone.forward_intermediates(
        torch.zeros(1, 3, 16, 16), indices=[-2], stop_early=True, intermediates_only=True
    )
    assert found.shape == (1, 64, 2, 2)


def test_the_last_stage_is_drawn_anew_around_what_was_learnt() -> None:
    learnt, fresh = claim.network(0), claim.network(7)
    moved = claim.transplanted(learnt, 7).state_dict()
    for name, value in moved.items():
        source = fresh if name.startswith("layer4.") else learnt
        assert torch.equal(value, source.state_dict()[name]), name
    assert not torch.equal(moved["layer4.0.conv1.weight"], learnt.state_dict()["layer4.0.conv1.weight"])


def test_equal_answers_differ_by_nothing() -> None:
    labels = np.arange(40) % 4
    right = np.stack([labels] * 3)
    wrong = (right + 1) % 4
    found = claim.numbers_of(labels, {"selfie": right, "scratch": right, "longer": wrong[:2]}, n_boot=50)
    assert found["differences"]["selfie - scratch"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert found["differences"]["selfie - longer"] == {"difference": 1.0, "low": 1.0, "high": 1.0}
    assert found["deviations"]["selfie"] == 0.0 and found["spread"]["value"] == 1.0
    assert found["by_seed"]["longer"] == [0.0, 0.0]


def test_a_whole_measurement_on_made_pictures() -> None:
    random = np.random.default_rng(0)

    def made(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 2
        pictures = random.integers(0, 100, (n, 3, 32, 32)) + 100 * labels[:, None, None, None]
        return pictures.astype(np.uint8), labels

    result = claim.compare(claim.Pictures(*made(64), *made(24)), TINY)
    told = result["numbers"]
    assert result["verdict"] in (SHOWN, NOT_SHOWN, CONTRADICTED)
    assert set(told["rates"].values()) <= set(TINY.learning_rates)
    assert told["pretraining"]["hidden"] == 4 and 0 < told["pretraining"]["last_accuracy"] < 1
    assert [len(told["by_seed"][arm]) for arm in claim.ARMS] == [3, 3, 2]
    assert len(result["table"]["rows"]) == 6 and {len(row) for row in result["table"]["rows"]} == {3}
    shared = {"version": 1, "date": "", "command": "", "seconds": 1.0, "commit": "", "machine": {"cores": 2, "cpu": ""}}
    assert "Selfie minus from scratch" in markdown(result | shared)
