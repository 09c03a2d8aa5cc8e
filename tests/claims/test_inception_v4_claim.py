from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from claims import inception_v4 as claim
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN
from claims.table import markdown

TINY = claim.Sizes(
    train=48,
    test=24,
    steps=3,
    smoothing=2,
    batch_size=4,
    plain_learning_rates=(0.05,),
    losses=(9.0, 0.001),
    channels=16,
    blocks=2,
    scale_steps=2,
    scale_batch=4,
    scale_test=12,
    every=2,
    seeds=(0, 1),
)


def test_the_rule_of_the_record_is_the_one_in_the_docstring() -> None:
    assert claim.RULE in " ".join(str(claim.__doc__).split())


def ratio(low: float, high: float, **more: Any) -> dict[str, Any]:
    cell = {"value": (low * high) ** 0.5, "low": low, "high": high}
    return {"ratio": cell, "bound": None} | cell | more


GOOD: dict[str, Any] = {
    "sooner": [ratio(1.2, 2.0), ratio(1.1, 3.0, bound="at least")],
    "as_good": {"low": -0.01, "high": 0.02},
    "bounded": [ratio(1.6, 2.0), ratio(1.7, 3.0)],
    "spikes": [ratio(1.1, 2.0), ratio(1.2, 4.0)],
    "no_cost": {"low": -0.019, "high": 0.03},
}


@pytest.mark.parametrize(
    ("change", "verdict", "part"),
    [
        ({}, SHOWN, ("sooner", SHOWN)),
        ({"sooner": [ratio(1.2, 2.0), ratio(1.0, 3.0)]}, NOT_SHOWN, ("sooner", NOT_SHOWN)),  # touching 1
        ({"sooner": [ratio(1.2, 2.0), ratio(1.1, 3.0, bound="at most")]}, NOT_SHOWN, ("sooner", NOT_SHOWN)),
        ({"sooner": [ratio(0.5, 0.9), ratio(1.1, 3.0)]}, CONTRADICTED, ("sooner", CONTRADICTED)),
        ({"as_good": {"low": -0.03, "high": 0.01}}, NOT_SHOWN, ("as good", NOT_SHOWN)),
        ({"bounded": [ratio(1.4, 2.0), ratio(1.7, 3.0)]}, NOT_SHOWN, ("bounded", NOT_SHOWN)),
        ({"bounded": [ratio(1.1, 1.4), ratio(1.7, 3.0)]}, CONTRADICTED, ("bounded", CONTRADICTED)),
        ({"spikes": [ratio(0.9, 2.0), ratio(1.2, 4.0)]}, NOT_SHOWN, ("spikes", NOT_SHOWN)),
        ({"no_cost": {"low": -0.09, "high": -0.03}}, CONTRADICTED, ("no cost", CONTRADICTED)),
    ],
)
def test_the_claim_needs_every_part(change: dict[str, Any], verdict: str, part: tuple[str, str]) -> None:
    told, parts = claim.verdict_of(GOOD | change)
    assert told == verdict and parts[part[0]] == part[1]


def test_the_plain_network_gets_its_better_learning_rate() -> None:
    found = {"reached": {"residual": [[50, 40]], "a": [[100, None]], "b": [[200, 120]]}}
    sizes = claim.Sizes(losses=(1.6,), seeds=(0, 1))
    (cell,) = claim.sooner(found, sizes)
    assert cell["plain"] == [100, 120] and cell["by_seed"] == [2.0, 3.0] and cell["bound"] is None
    assert cell["ratio"]["value"] == pytest.approx(6**0.5)
    never = {"reached": {"residual": [[50, 40]], "a": [[100, None]], "b": [[200, None]]}}
    assert claim.sooner(never, sizes)[0]["by_seed"] == [2.0, 400 / 40]


def test_ratios_take_the_larger_of_the_small_scales() -> None:
    values = {(0, 1.0): 4.0, (0, 0.3): 2.0, (0, 0.1): 1.0, (1, 1.0): 9.0, (1, 0.3): 1.0, (1, 0.1): 3.0}
    runs = [{"seed": a, "scale": s, "learning_rate": 0.3, "key": v} for (a, s), v in values.items()]
    cell = claim.ratios(runs, "key", 0.3, (0, 1))
    assert cell["by_seed"] == [2.0, 3.0]
    runs[0]["key"] = None
    assert claim.ratios(runs, "key", 0.3, (0, 1))["value"] is None


def test_the_pair_is_of_equal_size_and_shares_stem_and_reductions() -> None:
    sizes = {v: sum(p.numel() for p in claim.network(v, 10, 0).parameters()) for v in ("mini", "mini-plain")}
    assert abs(sizes["mini"] / sizes["mini-plain"] - 1) < 0.03


def test_equal_answers_differ_by_nothing() -> None:
    right = np.ones((2, 40))
    found = claim.accuracy_difference({"right": {"residual": right, "a": right, "b": right * 0}})
    assert (found["against"], found["difference"], found["low"], found["high"]) == ("a", 0.0, 0.0, 0.0)


def test_a_whole_measurement_on_made_pictures() -> None:
    random = np.random.default_rng(0)

    def made(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 2
        pictures = random.integers(0, 100, (n, 3, 16, 16)) + 100 * labels[:, None, None, None]
        return pictures.astype(np.uint8), labels

    result = claim.compare(claim.Pictures(*made(48), *made(24)), TINY)
    told = result["numbers"]
    assert result["verdict"] in (SHOWN, NOT_SHOWN, CONTRADICTED)
    assert len(told["runs"]) == 2 * 2 * 3 and len(told["bounded"]) == 3 and len(told["spikes"]) == 2
    assert all(found == [[2, 2], [None, None]] for found in told["race"]["reached"].values())
    starts = {run["scale"]: run["growth_at_start"] for run in told["runs"] if run["seed"] == 0}
    assert starts[1.0] > starts[0.3] > starts[0.1]
    assert len(result["table"]["rows"]) == 2 + 2 + 1 + 3 + 2 + 1
    shared = {"version": 1, "date": "", "command": "", "seconds": 1.0, "commit": "", "machine": {"cores": 2, "cpu": ""}}
    assert "sooner:" in markdown(result | shared)
