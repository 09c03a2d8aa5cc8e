"""Random rules: their deviations, their orthogonality, and the controls that cannot learn."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from offshelf.interpret.filter_rules import RANDOM_RULES, random_filters

O, I, K = 400, 64, 5  # noqa: E741
FAN_IN, FAN_OUT = I * K * K, O * K * K


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("he", math.sqrt(2 / FAN_IN)),
        ("xavier", math.sqrt(2 / (FAN_IN + FAN_OUT))),
        ("lecun-uniform", 2.4 / (FAN_IN * math.sqrt(3))),
        ("gaussian", 0.01),
    ],
)
def test_deviations(rule: str, expected: float) -> None:
    assert float(random_filters(rule, (O, I, K, K)).std()) == pytest.approx(expected, rel=0.02)


def test_fan_in_counts_the_channels_of_a_group() -> None:
    weight = random_filters("he", (640, 16, 5, 5), groups=4)  # 64 channels in 4 groups
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (16 * 25)), rel=0.02)


@pytest.mark.parametrize(("shape", "groups"), [((8, 3, 3, 3), 1), ((64, 2, 3, 3), 1), ((12, 4, 3, 3), 3)])
def test_orthogonal_rows_or_columns_of_each_group(shape: tuple[int, int, int, int], groups: int) -> None:
    for part in random_filters("orthogonal", shape, groups).chunk(groups):
        rows = part.flatten(1)
        gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
        assert torch.allclose(gram, 2 * torch.eye(len(gram)), atol=1e-5)


def test_delta_orthogonal_has_one_tap() -> None:
    weight = random_filters("delta-orthogonal", (8, 8, 3, 3))
    centre = weight[:, :, 1, 1]
    assert torch.allclose(centre @ centre.T, 2 * torch.eye(8), atol=1e-5)
    weight[:, :, 1, 1] = 0
    assert not weight.any()


def test_dirac_passes_a_picture_through() -> None:
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(F.conv2d(x, random_filters("dirac", (4, 4, 3, 3)), padding=1), x)
    assert torch.equal(F.conv2d(x, random_filters("dirac", (4, 1, 3, 3), 4), padding=1, groups=4), x)


def test_a_rule_hangs_on_its_seed_and_leaves_the_global_state() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for rule in RANDOM_RULES:
        one, two = random_filters(rule, (6, 3, 3, 3), seed=1), random_filters(rule, (6, 3, 3, 3), seed=1)
        assert torch.equal(one, two)
        if rule not in ("zero", "constant", "dirac"):
            assert not torch.equal(one, random_filters(rule, (6, 3, 3, 3), seed=2)), rule
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rule", ["zero", "constant", "he"])
def test_constant_layers_stay_symmetric(rule: str) -> None:
    """Two layers of equal filters: every filter of a layer gets the same gradient, so none can become another."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3)
    with torch.no_grad():
        for conv in (first, second):
            conv.weight.copy_(random_filters(rule, tuple(conv.weight.shape)))  # type: ignore[arg-type]
            conv.bias.zero_()  # type: ignore[union-attr]
    F.relu(second(F.relu(first(torch.randn(2, 3, 9, 9))))).square().sum().backward()
    same = all(
        torch.allclose(conv.weight.grad, conv.weight.grad[:1].expand_as(conv.weight)) for conv in (first, second)
    )  # type: ignore[index, union-attr, arg-type]
    assert same is (rule != "he")
