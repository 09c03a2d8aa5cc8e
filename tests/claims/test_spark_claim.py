from __future__ import annotations

import numpy as np
import pytest
import torch

from claims import spark as claim
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN
from claims.table import markdown
from offshelf.engine.draws import Draws

TINY = claim.Sizes(
    unlabelled=64,
    pretrain_epochs=1,
    pretrain_batch=32,
    decoder_width=8,
    labels_a_class=12,
    test=24,
    finetune_epochs=1,
    finetune_batch=16,
    seeds=(0, 1),
)


def cell(low: float, high: float) -> dict[str, float]:
    return {"difference": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (cell(0.01, 0.03), cell(0.001, 0.02), SHOWN),
        (cell(0.01, 0.03), cell(0.0, 0.02), NOT_SHOWN),  # touching 0 is not above it
        (cell(0.01, 0.03), cell(-0.02, -0.01), CONTRADICTED),
    ],
)
def test_the_claim_needs_both_parts(first: dict[str, float], second: dict[str, float], expected: str) -> None:
    verdict, parts = claim.verdict_of({"spark - scratch": first, "spark - longer": second})
    assert verdict == expected
    assert parts["spark - scratch"] == SHOWN


def test_the_rule_of_the_record_is_the_one_in_the_docstring() -> None:
    assert claim.RULE in " ".join(str(claim.__doc__).split())


def test_the_longer_arm_sees_as_many_pictures() -> None:
    sizes = claim.Sizes()
    labelled = 10 * sizes.labels_a_class
    in_all = sizes.pretrain_epochs * sizes.unlabelled + sizes.finetune_epochs * labelled
    assert sizes.longer_epochs(10) * labelled == in_all == 73_000


def test_balanced_rows() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    rows = claim.balanced(labels, np.arange(10, 100), 30, seed=0)
    assert np.bincount(labels[rows]).tolist() == [10, 10, 10]
    assert rows.min() >= 10 and (np.diff(rows) > 0).all()
    assert set(rows) != set(claim.balanced(labels, np.arange(10, 100), 30, seed=1))


def test_the_network_has_cells_of_eight_pixels_and_three_stages() -> None:
    objective = claim.SparK(claim.network(0), 32, decoder_width=64)
    batch = objective.views()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), Draws(0, 0, [0]))
    stages = objective.encode(batch["pictures"], claim_mask(batch["noise"]))
    assert (objective.stride, objective.grid) == (8, 4)
    assert [tuple(stage.shape[1:]) for stage in stages] == [(128, 4, 4), (32, 8, 8), (32, 16, 16)]


def claim_mask(noise: torch.Tensor) -> torch.Tensor:
    from offshelf.pretrain.spark import visible_cells

    return visible_cells(noise, 0.6)


def test_the_zero_filled_arm_bleeds_and_the_sparse_one_does_not() -> None:
    torch.manual_seed(0)
    x, seen = torch.randn(2, 3, 32, 32), claim_mask(torch.rand(2, 16))
    for kind, bleeds in ((claim.SparK, False), (claim.ZeroFilled, True)):
        coarsest = kind(claim.network(0), 32, decoder_width=8).eval().encode(x, seen)[0]
        assert bool((coarsest * ~seen).abs().sum() > 0) is bleeds


def test_equal_answers_differ_by_nothing() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(40) % 4
    right = np.stack([labels, labels])
    predictions = {arm: right for arm in claim.ARMS} | {"zeros": random.integers(0, 4, (2, 40))}
    found = claim.numbers_of(labels, predictions, n_boot=50)
    assert found["differences"]["spark - scratch"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert found["arms"]["spark"]["value"] == 1.0 and found["by_seed"]["longer"] == [1.0, 1.0]
    assert found["differences"]["spark - zeros"]["low"] > 0.3


def test_a_whole_measurement_on_made_pictures() -> None:
    random = np.random.default_rng(0)

    def made(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 2
        pictures = random.integers(0, 100, (n, 3, 32, 32)) + 100 * labels[:, None, None, None]
        return pictures.astype(np.uint8), labels

    result = claim.compare(claim.Pictures(*made(64), *made(24)), TINY)
    told = result["numbers"]
    assert result["verdict"] in (SHOWN, NOT_SHOWN, CONTRADICTED)
    assert all(0.2 < told["pretraining"][arm]["last_loss"] < 3 for arm in ("spark", "zeros"))
    assert [len(told["by_seed"][arm]) for arm in claim.ARMS] == [2] * 4
    assert len(result["table"]["rows"]) == 8
    shared = {"version": 1, "date": "", "command": "", "seconds": 1.0, "commit": "", "machine": {"cores": 2, "cpu": ""}}
    assert "SparK minus from scratch" in markdown(result | shared)
