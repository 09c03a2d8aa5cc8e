from __future__ import annotations

import numpy as np
import pytest

from claims import halonet as claim
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN
from claims.table import markdown

TINY = claim.Sizes(
    batch=1, channels=8, map_size=16, rounds=4, train=20, test=16, epochs=1, batch_size=10, seeds=(0, 1)
)  # fmt: skip


def cell(low: float, high: float, key: str = "value") -> dict[str, float]:
    return {key: (low + high) / 2, "low": low, "high": high}


def cost_told(**changed: object) -> dict[str, object]:
    ratios = {"block 1": cell(5.0, 6.0), "block 8": cell(1.0, 1.0), "block 16": cell(1.5, 1.8)}
    return {"best": "block 8", "largest": "block 16", "kept_ratio": 4.0, "ratios": ratios} | changed


def test_the_rule_of_the_record_is_the_one_in_the_docstring() -> None:
    assert claim.RULE in " ".join(str(claim.__doc__).split())


def test_verdicts_of_cost() -> None:
    assert set(claim.cost_verdicts(cost_told()).values()) == {SHOWN}
    ratios = {"block 1": cell(1.9, 2.2), "block 16": cell(0.9, 1.2)}
    found = claim.cost_verdicts(cost_told(ratios=ratios, kept_ratio=1.5))
    assert found == {"faster": NOT_SHOWN, "lighter": CONTRADICTED, "intermediate": NOT_SHOWN}
    ratios["block 1"] = cell(1.1, 1.3)
    assert claim.cost_verdicts(cost_told(ratios=ratios))["faster"] == CONTRADICTED
    for edge in ("block 1", "block 16"):
        assert claim.cost_verdicts(cost_told(best=edge))["intermediate"] == CONTRADICTED


@pytest.mark.parametrize(
    ("conv", "none", "expected"),
    [
        ((-0.009, 0.01), (0.001, 0.02), (SHOWN, SHOWN)),
        ((-0.02, 0.01), (-0.01, 0.02), (NOT_SHOWN, NOT_SHOWN)),
        ((-0.04, -0.011), (-0.03, -0.01), (CONTRADICTED, CONTRADICTED)),
    ],
)
def test_verdicts_of_accuracy(conv: tuple[float, float], none: tuple[float, float], expected: tuple[str, str]) -> None:
    differences = {"h1 - conv": cell(*conv, "difference"), "h1 - h0": cell(*none, "difference")}
    assert tuple(claim.accuracy_verdicts(differences).values()) == expected


def test_the_fastest_block_is_chosen_on_rounds_on_which_it_is_not_judged() -> None:
    """Block 4 wins the first half, block 8 the second: block 4 is judged, and by the second half alone."""
    formula = {"macs": 1, "gather_factor": 1.0}
    seconds = {
        "block 1": [9, 9, 12, 12], "block 4": [1, 1, 4, 4], "block 8": [2, 2, 1, 1], "block 16": [3, 3, 3, 3],
        claim.GLOBAL: [5, 5, 5, 5],
    }  # fmt: skip
    cost = {
        name: {"seconds": rows, "kept": 8 if name == "block 1" else 2, "formula": formula | {"macs": i + 1}}
        for i, (name, rows) in enumerate(seconds.items())
    }
    told = claim.cost_numbers(cost)
    assert (told["best"], told["largest"], told["kept_ratio"]) == ("block 4", "block 16", 4.0)
    assert told["ratios"]["block 1"] == {"value": pytest.approx(3.0), "low": pytest.approx(3), "high": pytest.approx(3)}
    assert told["ratios"]["block 16"]["value"] == pytest.approx(0.75)


def test_a_ratio_is_a_geometric_mean_with_its_interval() -> None:
    found = claim.ratio(np.array([2.0, 8.0] * 10), np.ones(20))
    assert found["value"] == pytest.approx(4.0)
    assert 2.5 < found["low"] < 4.0 < found["high"] < 6.5


def test_seconds_made_of_both_terms_are_explained() -> None:
    macs, gather = np.array([1e9, 2e9, 4e9]), np.array([49.0, 16.0, 3.0])
    (a, c), share = claim._fit(3e-9 * macs + 0.1 * gather, macs, gather)
    assert (a, c, share) == (pytest.approx(3e-9), pytest.approx(0.1), pytest.approx(1.0))


def test_arms_have_the_same_parameters_and_differ_in_the_last_two_stages() -> None:
    counts = {arm: claim.parameters(claim.settings_of(arm)) for arm in claim.ARMS}
    assert counts["conv"] == 69_408
    assert all(abs(n / counts["conv"] - 1) < 0.04 for n in counts.values())
    assert counts["h0"] < counts["h1"] < counts["h2"]  # tables of positions grow with the window
    for arm, halo in (("h0", 0), ("h1", 1), ("h2", 2)):
        stages = claim.network(0, claim.settings_of(arm)).stages
        assert not hasattr(stages[0][0], "self_attn")
        layers = [stage[0].self_attn for stage in stages[1:]]
        assert [(layer.block_size, layer.halo_size) for layer in layers] == [(4, halo)] * 2


def test_equal_answers_differ_by_nothing() -> None:
    labels = np.arange(40) % 4
    predictions = dict.fromkeys(claim.ARMS, np.stack([labels, labels])) | {"h0": np.zeros((2, 40), dtype=int)}
    found = claim.accuracy_numbers(labels, predictions, n_boot=50)
    assert found["differences"]["h1 - conv"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert found["differences"]["h1 - h0"]["difference"] == pytest.approx(0.75)
    assert found["by_seed"] == {"conv": [1.0, 1.0], "h0": [0.25, 0.25], "h1": [1.0, 1.0], "h2": [1.0, 1.0]}


def test_a_whole_measurement_on_made_pictures() -> None:
    random = np.random.default_rng(0)

    def made(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 2
        pictures = random.integers(0, 100, (n, 3, 32, 32)) + 100 * labels[:, None, None, None]
        return pictures.astype(np.uint8), labels

    result = claim.compare(claim.Pictures(*made(40), *made(16)), TINY)
    told = result["numbers"]
    assert result["verdict"] in (SHOWN, NOT_SHOWN, CONTRADICTED) and len(result["parts"]) == 5
    assert told["cost"]["block 8"]["formula"]["keys"] == 196
    assert told["cost"]["block 1"]["kept"] > told["cost"]["block 4"]["kept"] > told["cost"][claim.SHIFTED]["kept"]
    assert [len(told["accuracy"]["by_seed"][arm]) for arm in claim.ARMS] == [2] * 4
    assert len(result["table"]["rows"]) == 7 + 4 + 4
    shared = {"version": 1, "date": "", "command": "", "seconds": 1.0, "commit": "", "machine": {"cores": 2, "cpu": ""}}
    assert "halo 1 minus halo 0 (in the rule)" in markdown(result | shared)
