from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from claims import mae_thorax as claim
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN
from claims.table import markdown
from offshelf.pretrain.tokens import sincos_positions
from offshelf.transfer.finetune import FineTune

TINY = claim.Sizes(side=32, folds=2, pretrain_epochs=1, pretrain_batch=8, finetune_epochs=1, finetune_batch=8)


def made(n: int, seed: int = 0) -> claim.XRays:
    """Pictures whose brightness tells the first finding, the others by chance; two pictures a patient."""
    random = np.random.default_rng(seed)
    findings = random.integers(0, 2, (n, 4)).astype(np.float32)
    findings[:, 0] = np.arange(n) // 2 % 2
    pixels = random.integers(0, 100, (n, 3, 32, 32)) + 120 * findings[:, 0, None, None, None]
    return claim.XRays(pixels.astype(np.uint8), findings, np.arange(n) // 2)


def cell(low: float, high: float) -> dict[str, float]:
    return {"difference": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (cell(0.001, 0.02), SHOWN),
        (cell(0.0, 0.02), NOT_SHOWN),  # touching 0 is not above it
        (cell(-0.02, -0.01), CONTRADICTED),
    ],
)
def test_the_claim_needs_all_three_parts(last: dict[str, float], expected: str) -> None:
    good = cell(0.01, 0.03)
    verdict, parts = claim.verdict_of({"thorax - scratch": good, "thorax - longer": good, "thorax - natural": last})
    assert verdict == expected
    assert parts["thorax - scratch"] == SHOWN


def test_the_rule_of_the_record_is_the_one_in_the_docstring() -> None:
    assert claim.RULE in " ".join(str(claim.__doc__).split())


def test_folds_divide_no_patient_and_spread_findings() -> None:
    xrays = made(60)
    of = claim.folds_of(xrays, 3)
    assert all(len(set(of[xrays.patients == patient])) == 1 for patient in range(30))
    assert np.bincount(of).tolist() == [20, 20, 20]


def test_the_network_and_what_enters_it() -> None:
    sizes = claim.Sizes()
    seen: list[int] = []
    for recipe, visible in (("thorax", 9), ("natural", 25)):  # of 100 patches
        model = claim.network(0, sizes)
        objective = claim.MAE(model, sizes.side, **claim.RECIPES[recipe], **claim.DECODER)
        model.blocks[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape[1]))
        objective({"pictures": torch.zeros(1, 3, 80, 80), "noise": torch.rand(1, 100)})
        assert seen.pop() == 1 + visible
    fresh = claim.network(0, sizes)
    assert torch.equal(fresh.pos_embed[0], sincos_positions(96, 10, prefix=1))
    assert torch.equal(fresh.blocks[0].attn.qkv.weight, claim.network(0, sizes).blocks[0].attn.qkv.weight)
    assert not torch.equal(fresh.blocks[0].attn.qkv.weight, claim.network(1, sizes).blocks[0].attn.qkv.weight)


def test_mean_area_by_hand() -> None:
    findings = np.array([[1, 1], [0, 1], [1, 0], [0, 1], [1, 1], [0, 1]], dtype=np.float32)
    scores = np.array([[0.9, 0.1], [0.2, 0.9], [0.4, 0.5], [0.6, 0.1], [0.3, 0.2], [0.3, 0.3]])
    of = np.array([0, 0, 0, 0, 1, 1])
    found = claim.mean_auroc(findings, scores, of, np.ones((6, 1)))
    # fold 0: pairs of the first finding 3 of 4 right, of the second 1 of 3; fold 1: a tie, and one that is undefined
    np.testing.assert_allclose(found[:, 0], [(3 / 4 + 1 / 3) / 2, 1 / 2])
    twice = claim.mean_auroc(findings, scores, of, np.array([2.0, 1, 1, 1, 1, 1])[:, None])
    np.testing.assert_allclose(twice[0, 0], (5 / 6 + 1 / 4) / 2)


def test_equal_scores_differ_by_nothing_and_better_ones_by_something() -> None:
    xrays, random = made(120), np.random.default_rng(0)
    of = claim.folds_of(xrays, 3)
    good = xrays.findings + random.normal(0, 0.5, xrays.findings.shape)
    scores = dict.fromkeys(claim.ARMS, good) | {"natural": random.normal(0, 1, good.shape)}
    found = claim.numbers_of(xrays, of, scores, n_boot=100)
    assert found["differences"]["thorax - scratch"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert found["differences"]["thorax - natural"]["low"] > 0.2
    arm = found["arms"]["thorax"]
    assert 0.85 < arm["low"] < arm["value"] < arm["high"] < 1
    assert arm["value"] == pytest.approx(np.mean(found["by_fold"]["thorax"]))
    assert arm["value"] == pytest.approx(np.mean([found["by_finding"][name]["thorax"] for name in claim.FINDINGS]))


def first_finding_only(
    folder: Path,
    pixels: np.ndarray,
    findings: np.ndarray,
    test: np.ndarray,
    is_pretrained: bool,
    epochs: int,
    seed: int,
    sizes: claim.Sizes,
) -> np.ndarray:
    """One label in place of four: the classifier of two classes, its answer in every column."""
    classifier = FineTune(
        backbone=str(folder), image_size=sizes.side, epochs=epochs, batch_size=8, random_state=seed
    ).fit(pixels, findings[:, 0].astype(int))
    return classifier.predict_proba(test)[:, [1, 1, 1, 1]]


def test_a_whole_measurement_on_made_pictures() -> None:
    xrays = made(48)
    result = claim.compare(xrays, TINY, tune=first_finding_only)
    told = result["numbers"]
    assert result["verdict"] in (SHOWN, NOT_SHOWN, CONTRADICTED)
    assert [len(told["by_fold"][arm]) for arm in claim.ARMS] == [2] * 4
    assert told["by_finding"]["Infiltration"]["longer"] > 0.8  # brightness is easy
    for one in told["repetitions"]:
        assert one["longer_epochs"] >= 2
        assert 0 < one["pretraining"]["thorax"]["last_loss"] < 3
    assert len(result["table"]["rows"]) == 7
    shared = {"version": 1, "date": "", "command": "", "seconds": 1.0, "commit": "", "machine": {"cores": 2, "cpu": ""}}
    assert "thorax recipe minus from scratch" in markdown(result | shared)
