from __future__ import annotations

import numpy as np
import pytest
import torch

from claims import sit as claim
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN
from claims.table import markdown

TINY = claim.Sizes(
    unlabelled=32,
    pretrain_epochs=1,
    pretrain_batch=16,
    labels_a_class=12,
    test=24,
    finetune_epochs=1,
    finetune_batch=12,
    seeds=(0, 1),
)


def cell(low: float, high: float) -> dict[str, float]:
    return {"difference": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("longer", "reconstruction", "expected"),
    [
        (cell(0.001, 0.02), cell(0.01, 0.03), SHOWN),
        (cell(0.001, 0.02), cell(-0.009, 0.03), SHOWN),  # at least as good within 0.01
        (cell(0.001, 0.02), cell(-0.011, 0.03), NOT_SHOWN),
        (cell(-0.009, 0.02), cell(0.01, 0.03), NOT_SHOWN),  # no margin against scratch
        (cell(-0.02, -0.01), cell(0.01, 0.03), CONTRADICTED),
        (cell(0.001, 0.02), cell(-0.03, -0.011), CONTRADICTED),
    ],
)
def test_the_claim_needs_all_parts(longer: dict[str, float], reconstruction: dict[str, float], expected: str) -> None:
    verdict, parts = claim.verdict_of(
        {"sit - scratch": cell(0.01, 0.03), "sit - longer": longer, "sit - reconstruction": reconstruction}
    )
    assert verdict == expected
    assert parts["sit - scratch"] == SHOWN


def test_the_rule_of_the_record_is_the_one_in_the_docstring() -> None:
    assert claim.RULE in " ".join(str(claim.__doc__).split())
    assert f"within {claim.MARGIN:g}" in claim.RULE


def test_the_longer_arm_sees_as_many_views() -> None:
    sizes = claim.Sizes()
    labelled = 10 * sizes.labels_a_class
    in_all = 2 * sizes.pretrain_epochs * sizes.unlabelled + sizes.finetune_epochs * labelled
    assert sizes.longer_epochs(10) * labelled == in_all == 84_500


def test_the_arms_differ_in_their_tasks_only() -> None:
    objectives = {arm: claim.SiT(claim.network(0), 32, **tasks) for arm, tasks in claim.TASKS.items()}
    assert objectives["sit"].tasks == ["reconstruction", "rotation", "contrast"]
    assert objectives["reconstruction"].tasks == ["reconstruction"]
    for one, other in zip(objectives["sit"].backbone.parameters(), objectives["reconstruction"].backbone.parameters()):
        assert torch.equal(one, other)
    assert (objectives["sit"].missing, objectives["sit"].grid) == (0, 4)


def test_features_are_the_mean_of_both_tokens() -> None:
    model = claim.network(0).eval()
    table = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))  # type: ignore
    tokens = model.forward_features((torch.from_numpy(table).float() / 255 - mean) / std)  # type: ignore[operator]
    np.testing.assert_allclose(
        claim.features(model, table), tokens[:, :2].mean(1).detach().numpy(), rtol=1e-4, atol=1e-5
    )


def test_equal_answers_differ_by_nothing() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(40) % 4
    right = np.stack([labels, labels])
    predictions = {arm: right for arm in claim.ARMS} | {"reconstruction": random.integers(0, 4, (2, 40))}
    found = claim.numbers_of(labels, predictions, {arm: right for arm in claim.FROZEN}, n_boot=50)
    assert found["differences"]["sit - scratch"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert found["frozen_differences"]["sit - scratch"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert found["arms"]["sit"]["value"] == 1.0 and found["by_seed"]["longer"] == [1.0, 1.0]
    assert found["differences"]["sit - reconstruction"]["low"] > 0.3


def test_a_whole_measurement_on_made_pictures() -> None:
    random = np.random.default_rng(0)

    def made(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 2
        pictures = random.integers(0, 100, (n, 3, 32, 32)) + 100 * labels[:, None, None, None]
        return pictures.astype(np.uint8), labels

    result = claim.compare(claim.Pictures(*made(32), *made(24)), TINY)
    told = result["numbers"]
    assert result["verdict"] in (SHOWN, NOT_SHOWN, CONTRADICTED)
    assert 0.1 < told["pretraining"]["reconstruction"]["loss"] < 3
    assert told["pretraining"]["sit"]["contrast"] == pytest.approx(np.log(31), abs=1)
    assert told["frozen"]["sit"]["value"] > 0.9  # bright and dark pictures
    assert [len(told["by_seed"][arm]) for arm in claim.ARMS] == [2] * 4
    assert len(result["table"]["rows"]) == 13
    shared = {"version": 1, "date": "", "command": "", "seconds": 1.0, "commit": "", "machine": {"cores": 2, "cpu": ""}}
    assert "SiT minus from scratch" in markdown(result | shared)
