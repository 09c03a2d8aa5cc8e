from __future__ import annotations

import numpy as np
import pytest
import torch

from claims import cvt as claim
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN
from claims.table import markdown

TINY = claim.Sizes(train=48, test=24, epochs=1, batch=16, width=8, vit_width=24, vit_depth=2, seeds=(0, 1))


def cell(low: float, high: float) -> dict[str, float]:
    return {"difference": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.019, 0.019, SHOWN),
        (0.001, 0.019, SHOWN),  # a difference that is sure, but small
        (-0.02, 0.01, NOT_SHOWN),  # touching the margin is not inside it
        (0.01, 0.03, NOT_SHOWN),
        (-0.03, 0.03, NOT_SHOWN),
        (0.021, 0.03, CONTRADICTED),
        (-0.04, -0.021, CONTRADICTED),
    ],
)
def test_alike_within_the_margin(low: float, high: float, expected: str) -> None:
    assert claim.alike(low, high, claim.MARGIN) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (cell(0.01, 0.05), cell(-0.01, 0.01), SHOWN),
        (cell(0.0, 0.05), cell(-0.01, 0.01), NOT_SHOWN),
        (cell(0.01, 0.05), cell(-0.01, 0.03), NOT_SHOWN),
        (cell(0.01, 0.05), cell(0.03, 0.05), CONTRADICTED),
        (cell(-0.05, -0.01), cell(-0.01, 0.01), CONTRADICTED),
    ],
)
def test_the_claim_needs_both_parts(first: dict[str, float], second: dict[str, float], expected: str) -> None:
    verdict, _ = claim.verdict_of({"cvt - vit": first, "cvt-pos - cvt": second})
    assert verdict == expected


def test_the_rule_of_the_record_is_the_one_in_the_docstring() -> None:
    assert claim.RULE in " ".join(str(claim.__doc__).split())
    assert str(claim.MARGIN) in claim.RULE


def test_the_arms_are_equal_but_for_what_is_compared() -> None:
    sizes = claim.Sizes()
    found = {arm: claim.parameters(arm, sizes, 10) for arm in claim.ARMS}
    assert max(found.values()) <= 1.05 * min(found.values())
    # maps of 16, 8 and 4 at widths 24, 48 and 96; 64 patches and the class token at 72
    assert found["cvt-pos"] - found["cvt"] == 24 * 256 + 48 * 64 + 96 * 16
    assert found["vit"] - found["vit-no-pos"] == 65 * 72
    assert claim.network("vit-no-pos", sizes, 0).pos_embed is None
    cvt, vit = (claim.network(arm, sizes, 0) for arm in ("cvt", "vit"))
    heads = [stage.blocks[0].attn.heads for stage in cvt.stages]
    assert [width // n for width, n in zip((24, 48, 96), heads)] == [24] * 3 == [vit.blocks[0].attn.head_dim] * 3
    x = torch.linspace(-3, 3, 50)
    assert torch.equal(cvt.stages[0].blocks[0].mlp.act(x), vit.blocks[0].mlp.act(x))


def test_equal_answers_differ_by_nothing() -> None:
    labels = np.arange(40) % 4
    right = np.stack([labels, labels])
    wrong = np.stack([(labels + 1) % 4, labels])
    found = claim.numbers_of(labels, {"cvt": right, "vit": wrong, "cvt-pos": right, "vit-no-pos": wrong}, n_boot=200)
    assert found["differences"]["cvt-pos - cvt"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert found["differences"]["cvt - vit"]["difference"] == 0.5
    assert found["by_seed"]["vit"] == [0.0, 1.0]


def test_a_whole_measurement_on_made_pictures() -> None:
    random = np.random.default_rng(0)

    def made(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 2
        pictures = random.integers(0, 100, (n, 3, 32, 32)) + 100 * labels[:, None, None, None]
        return pictures.astype(np.uint8), labels

    result = claim.compare(claim.Pictures(*made(48), *made(24)), TINY)
    told = result["numbers"]
    assert result["verdict"] in (SHOWN, NOT_SHOWN, CONTRADICTED)
    assert [len(told["by_seed"][arm]) for arm in claim.ARMS] == [2] * 4
    assert all(second > 0 for arm in claim.ARMS for second in told["seconds"][arm])
    assert len(result["table"]["rows"]) == 7
    shared = {"version": 1, "date": "", "command": "", "seconds": 1.0, "commit": "", "machine": {"cores": 2, "cpu": ""}}
    assert "CvT, no position embedding minus vision transformer" in markdown(result | shared)
