"""The claim of B-cosification at toy sizes: what is compared, and that the record follows from the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from claims import b_cosification as claim
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN
from claims.table import markdown
from offshelf.backbones.b_cosification import bcosify

TINY = claim.Sizes(side=16, train=64, test=40, standard_epochs=2, brief_epochs=1, batch=32, mosaics=3, seeds=(0, 1))


def test_budgets_are_equal_and_the_networks_are_one() -> None:
    sizes = claim.Sizes()
    assert sizes.long_epochs == sizes.standard_epochs + sizes.brief_epochs == 8
    model = claim.network(0, 10)
    assert [
        tuple(m.shape[1:]) for m in model.forward_intermediates(torch.zeros(1, 3, 32, 32), intermediates_only=True)
    ] == [
        (16, 32, 32),
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
        (128, 4, 4),
    ]
    count = [sum(p.numel() for p in network.parameters()) for network in (model, bcosify(model))]
    assert count == [310370, 309840]
    assert torch.equal(claim.network(1, 10).fc.weight, claim.network(1, 10).fc.weight)


def test_sure_rows_are_right_in_all_arms_and_the_surest_first() -> None:
    labels = np.array([0, 1, 0, 1])
    a = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    b = np.array([[0.6, 0.4], [0.1, 0.9], [0.4, 0.6], [0.2, 0.8]])
    assert claim.sure_rows({"a": a, "b": b, "c": 1 - a}, labels, ("a", "b")).tolist() == [1, 0]


def test_intervals_over_mosaics_and_seeds() -> None:
    random = np.random.default_rng(0)
    a = random.uniform(0.4, 0.6, (3, 50))
    same = claim.pointing_interval(a, a, 200)
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0}
    found = claim.pointing_interval(a, a - 0.1, 200)
    assert found["low"] == pytest.approx(0.1) and found["difference"] == pytest.approx(0.1)
    alone = claim.pointing_interval(a, None, 500)
    assert alone["value"] == pytest.approx(a.mean())
    assert alone["low"] < a.mean() < alone["high"] and alone["high"] - alone["low"] < 0.05


def test_the_verdict_needs_both_parts() -> None:
    def told(accuracy: tuple[float, float], pointing: tuple[float, float]) -> str:
        return claim.verdict_of(
            {
                "accuracy_differences": {"cosified - brief": {"low": accuracy[0], "high": accuracy[1]}},
                "pointing_differences": {"cosified - standard": {"low": pointing[0], "high": pointing[1]}},
            }
        )[0]

    assert told((0.1, 0.2), (0.1, 0.2)) == SHOWN
    assert told((0.1, 0.2), (-0.1, 0.2)) == NOT_SHOWN
    assert told((-0.2, -0.1), (0.1, 0.2)) == CONTRADICTED


def test_a_whole_measurement_on_made_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(claim.NETWORK, "channels", [8, 8, 8, 8])
    # so short a training names few pictures rightly: mosaics of all of them
    monkeypatch.setattr(claim, "sure_rows", lambda answers, labels, arms: np.arange(len(labels)))
    random = np.random.default_rng(0)

    def made(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 4
        pictures = random.integers(0, 80, (n, 3, 16, 16))
        for k in range(3):
            pictures[labels == k, k] += 150
        return pictures.astype(np.uint8), labels

    result = claim.compare(claim.Pictures(*made(TINY.train), *made(TINY.test)), TINY)
    told = result["numbers"]
    assert result["verdict"] in (SHOWN, NOT_SHOWN, CONTRADICTED)
    assert [len(told["by_seed"]["accuracy"][arm]) for arm in claim.ARMS] == [2] * 4
    assert all(0 <= value <= 1 for name in claim.MAPS for value in told["by_seed"]["pointing"][name])
    assert len(result["table"]["rows"]) == 4 + 3 + 5 + 3
    assert "in the rule" in result["table"]["rows"][4][0] and "in the rule" in result["table"]["rows"][12][0]
    shared = {"version": 1, "date": "", "command": "", "seconds": 1.0, "commit": "", "machine": {"cores": 2, "cpu": ""}}
    assert "Share of the map in the right cell" in markdown(result | shared)
