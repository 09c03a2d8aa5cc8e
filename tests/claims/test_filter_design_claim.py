from __future__ import annotations

import numpy as np
import pytest

from claims import filter_design as claim
from claims.cifar import Pictures
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN
from claims.table import markdown

TINY = claim.Sizes(
    side=16, many=64, few=32, test=24, many_epochs=1, few_epochs=2, batch_size=16, patches=500, seeds=(0, 1)
)


def cell(low: float, high: float) -> dict[str, float]:
    return {"difference": (low + high) / 2, "low": low, "high": high}


def numbers(few: dict[str, float], many: dict[str, float], zero: tuple[float, float] = (0.09, 0.11)) -> dict:  # type: ignore[type-arg]
    return {
        "differences": {claim.FEW_FROZEN: few, claim.MANY_TRAINED: many},
        "arms": {claim.FEW_FROZEN: {"zero": {"value": 0.1, "low": zero[0], "high": zero[1]}}},
    }


@pytest.mark.parametrize(
    ("few", "many", "expected"),
    [
        (cell(0.01, 0.03), cell(-0.01, 0.014), SHOWN),
        (cell(0.01, 0.03), cell(-0.01, 0.015), NOT_SHOWN),  # touching the margin is not inside it
        (cell(0.01, 0.03), cell(0.016, 0.03), CONTRADICTED),
        (cell(0.01, 0.03), cell(-0.03, -0.016), CONTRADICTED),
        (cell(0.0, 0.03), cell(-0.01, 0.01), NOT_SHOWN),
        (cell(-0.02, -0.01), cell(-0.01, 0.01), CONTRADICTED),
    ],
)
def test_the_claim_needs_both_parts(few: dict[str, float], many: dict[str, float], expected: str) -> None:
    assert claim.verdict_of(numbers(few, many), 0.1)[0] == expected


def test_without_its_control_nothing_is_shown() -> None:
    verdict, parts = claim.verdict_of(numbers(cell(0.01, 0.03), cell(-0.01, 0.01), (0.2, 0.3)), 0.1)
    assert verdict == NOT_SHOWN and parts["control"] == "failed"


def test_the_rule_of_the_record_is_the_one_in_the_docstring() -> None:
    assert claim.RULE in " ".join(str(claim.__doc__).split())
    assert str(claim.MARGIN) in claim.RULE


def test_the_difference_is_that_of_the_mean_of_four() -> None:
    one, none = np.ones((2, 10), bool), np.zeros((2, 10), bool)
    arms = {"he": none, "pca": one, "k-means": one, "dct": none, "gabor": none}
    assert np.array_equal(claim.designed_minus_he(arms), np.full((2, 10), 0.5))
    assert claim.mean_interval(np.full((2, 10), 0.5)) == {"difference": 0.5, "low": 0.5, "high": 0.5}


def test_the_interval_covers_pictures_and_seeds() -> None:
    one = np.random.default_rng(0).integers(0, 2, (1, 400)).astype(float)
    alike = claim.mean_interval(np.repeat(one, 3, axis=0))
    assert alike["difference"] == pytest.approx(one.mean())
    assert alike["high"] - alike["low"] == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 400), rel=0.1)  # pictures alone
    apart = claim.mean_interval(np.repeat([[0.0], [0.5], [1.0]], 400, axis=1))
    assert (
        apart["difference"] == 0.5
        and apart["low"] == pytest.approx(0, abs=0.2)
        and apart["high"] == pytest.approx(1, abs=0.2)
    )  # seeds


def test_arms_of_one_seed_share_all_other_weights() -> None:
    one, two, other = claim.network(0, 10), claim.network(0, 10), claim.network(1, 10)
    same = [bool((a == b).all()) for a, b in zip(one.state_dict().values(), two.state_dict().values())]
    assert all(same) and not bool((one.stem[0].weight == other.stem[0].weight).any())  # type: ignore[index]
    assert sum(p.numel() for p in one.parameters()) == pytest.approx(0.2e6, rel=0.02)


def test_a_whole_measurement_on_made_pictures() -> None:
    random = np.random.default_rng(0)

    def made(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 2
        pictures = random.integers(0, 100, (n, 3, 16, 16)) + 100 * labels[:, None, None, None]
        return pictures.astype(np.uint8), labels

    result = claim.compare(Pictures(*made(64), *made(24)), TINY)
    told = result["numbers"]
    assert result["verdict"] in (SHOWN, NOT_SHOWN, CONTRADICTED) and result["parts"]["control"] == "held"
    assert len(told["told"]) == 2 * (2 * len(claim.ARMS) + 1)
    frozen = [one for one in told["told"] if one["regime"] == claim.FEW_FROZEN]
    assert all(one["travelled"] == 0 for one in frozen if one["rule"] != "zero")
    assert all(one["travelled"] > 0 for one in told["told"] if one["regime"] == claim.MANY_TRAINED)
    assert told["arms"][claim.FEW_FROZEN]["zero"]["value"] == 0.5
    assert [len(row) for row in result["table"]["rows"]] == [3] * 12
    shared = {"version": 1, "date": "", "command": "", "seconds": 1.0, "commit": "", "machine": {"cores": 2, "cpu": ""}}
    assert "mean of the four minus He" in markdown(result | shared)
