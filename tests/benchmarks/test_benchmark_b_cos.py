"""The contestants of the B-cos benchmark compute what they say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import b_cos_contestants as contestants
from benchmarks._process import Watch

SIZES = {"backbone": "test_resnet", "side": 32, "batch": 2, "repeats": 2}


@pytest.mark.parametrize("kind", ["plain", "b-cos"])
def test_each_contestant_runs_and_is_the_network_it_says(kind: str) -> None:
    facts, arrays = contestants.forward(Watch(), kind=kind, **SIZES)  # type: ignore[arg-type]
    assert facts["pictures"] == 4 and facts["batch_seconds"] > 0
    model, made = contestants.network("test_resnet", kind, 32)
    np.testing.assert_allclose(arrays["out"], model(made(2, 32)).detach().numpy(), rtol=1e-4, atol=1e-6)
    first = contestants.step(Watch(), kind=kind, **SIZES)[1]["out"]  # type: ignore[arg-type]
    assert first.shape == (2, 10) and np.isfinite(first).all()


def test_the_map_of_the_b_cos_network_accounts_for_the_logit() -> None:
    exact = contestants.explanation(Watch(), kind="b-cos", **SIZES)[0]["remainder"]  # type: ignore[arg-type]
    slope = contestants.explanation(Watch(), kind="plain", **SIZES)[0]["remainder"]  # type: ignore[arg-type]
    assert exact < 1e-5
    assert slope > 100 * exact
