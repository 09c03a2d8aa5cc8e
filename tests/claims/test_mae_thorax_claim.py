from __future__ import annotations

import numpy as np
import pytest
import torch

from claims import mae_thorax as claim
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN
from claims.table import markdown
from offshelf.pretrain.mae_thorax import sincos_positions

TINY = claim.Sizes(
    side=32,
    width=24,
    depth=1,
    heads=2,
    pretrain_epochs=1,
    pretrain_batch=32,
    decoder_width=8,
    labels_a_class=12,
    finetune_epochs=1,
    batch=16,
    seeds=(0, 1),
)


def cell(low: float, high: float) -> dict[str, float]:
    return {"difference": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("third", "expected"), [((0.001, 0.02), SHOWN), ((0.0, 0.02), NOT_SHOWN), ((-0.02, -0.01), CONTRADICTED)]
)
def test_the_claim_needs_all_parts(third: tuple[float, float], expected: str) -> None:
    good = cell(0.01, 0.03)
    told = {"thorax - scratch": good, "thorax - longer": good, "thorax - natural": cell(*third)}
    verdict, parts = claim.verdict_of(told)
    assert (verdict, parts["thorax - scratch"], parts["thorax - natural"]) == (expected, SHOWN, expected)


def test_the_rule_of_the_record_is_the_one_in_the_docstring() -> None:
    assert claim.RULE in " ".join(str(claim.__doc__).split())


def test_the_longer_arm_sees_as_many_pictures() -> None:
    sizes = claim.Sizes()
    labelled = 3 * sizes.labels_a_class
    both = sizes.pretrain_epochs * 705 + sizes.finetune_epochs * labelled
    assert abs(sizes.longer_epochs(705, 3) * labelled - both) <= labelled / 2


def test_arms_differ_in_masks_and_crops_only() -> None:
    sizes = claim.Sizes()
    one, two = (claim.objective(sizes, 0, recipe) for recipe in ("thorax", "natural"))
    assert (one.visible, two.visible, one.grid**2) == (9, 25, 100)
    assert (one.crop_scale, two.crop_scale) == ((0.5, 1.0), (0.2, 1.0))
    assert one.normalised_target is two.normalised_target is False
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    other = claim.objective(sizes, 1, "thorax").export()  # from scratch: other weights, the same codes
    assert not torch.equal(other.patch_embed.proj.weight, one.backbone.patch_embed.proj.weight)
    assert torch.equal(other.pos_embed[0, 1:], sincos_positions(96, 10))


def test_a_patient_counts_once_and_equal_answers_differ_by_nothing() -> None:
    labels, patients = np.arange(40) % 2, np.arange(40) // 4 + 7
    wrong = labels.copy()
    wrong[:4] = 1 - wrong[:4]  # one patient
    predictions = {arm: np.stack([labels, labels]) for arm in claim.ARMS} | {"natural": np.stack([wrong, wrong])}
    found = claim.numbers_of(labels, patients, predictions, n_boot=200)
    assert found["differences"]["thorax - scratch"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert found["differences"]["thorax - natural"]["difference"] == pytest.approx(0.1)
    assert found["differences"]["thorax - natural"]["low"] == 0.0  # a resample without that patient
    assert (found["test_patients"], found["by_seed"]["natural"]) == (10, [0.9, 0.9])


def test_a_whole_measurement_on_made_pictures() -> None:
    random = np.random.default_rng(0)

    def made(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 2
        pictures = random.integers(0, 100, (n, 3, 32, 32)) + 100 * labels[:, None, None, None]
        return pictures.astype(np.uint8), labels

    result = claim.compare(claim.Pictures(*made(64), *made(24), np.arange(24) // 2), TINY)
    told = result["numbers"]
    assert result["verdict"] in (SHOWN, NOT_SHOWN, CONTRADICTED)
    assert all(0.05 < told["pretraining"][recipe]["last_loss"] < 10 for recipe in claim.RECIPES)
    assert [len(told["by_seed"][arm]) for arm in claim.ARMS] == [2] * 4
    assert len(result["table"]["rows"]) == 8 and told["test_patients"] == 12
    shared = {"version": 1, "date": "", "command": "", "seconds": 1.0, "commit": "", "machine": {"cores": 2, "cpu": ""}}
    assert "the recipe for X-rays minus from scratch" in markdown(result | shared)
