"""Receptive fields and costs by hand, and the refusal to compare what costs differently."""

from __future__ import annotations

import pytest
from torch import nn

from offshelf.backbones.plain_cnn import PlainCNN
from offshelf.errors import UsageError
from offshelf.evaluate.filter_shapes import Cost, check_matched, cost_of, field_of, matched, receptive_field

C = 16


def layers(n: int, size: int) -> nn.Module:
    return nn.Sequential(*[nn.Conv2d(C, C, size, padding=size // 2, bias=False) for _ in range(n)])


def test_receptive_fields() -> None:
    assert receptive_field([(3, 1, 1)] * 2) == 5 and receptive_field([(3, 1, 1)] * 3) == 7
    assert receptive_field([(3, 1, 2)]) == 5  # dilation
    assert receptive_field([(7, 2, 1), (3, 2, 1), (3, 1, 1)]) == 19  # 7, + 2 x 2, + 2 x 4
    assert receptive_field([]) == 1


def test_parameters_of_stacks() -> None:
    count = lambda n, size: sum(p.numel() for p in layers(n, size).parameters())  # noqa: E731
    assert (count(2, 3), count(1, 5)) == (2 * 9 * C**2, 25 * C**2)
    assert (count(3, 3), count(1, 7)) == (27 * C**2, 49 * C**2)


def test_the_cost_of_a_network_by_hand() -> None:
    model = PlainCNN(filters=4, widths=(6,), size=5, stage_size=3, num_classes=10)
    parameters = 3 * 4 * 25 + 8 + 4 * 6 * 9 + 12 + 6 * 10 + 10
    adds = 3 * 4 * 25 * 32 * 32 + 4 * 6 * 9 * 16 * 16 + 60
    assert cost_of(model, 32) == Cost(parameters, adds)
    ring = PlainCNN(filters=4, widths=(6,), size=5, shape="ring", stage_size=3, num_classes=10)
    assert cost_of(ring, 32) == Cost(parameters - 3 * 4 * 9, adds - 3 * 4 * 9 * 32 * 32)
    apart = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False))
    assert cost_of(apart, 8) == Cost(54, 54 * 64)


def test_shapes_that_cover_as_much_see_as_much() -> None:
    square = field_of(PlainCNN(size=5, stage_size=5))
    # 5; pooled + 1, + 4 x 2; + 2, + 4 x 4; + 4, + 4 x 8
    assert square == 5 + 1 + 8 + 2 + 16 + 4 + 32
    for shape in ("factorised", "stacked", "dilated", "cross", "separable"):
        assert field_of(PlainCNN(size=5, stage_size=5, shape=shape, stage_shape=shape)) == square, shape


@pytest.mark.parametrize("what", ["parameters", "multiply-adds"])
def test_widths_are_found_that_cost_the_same(what: str) -> None:
    base = cost_of(PlainCNN(size=3), 32)
    for shape, size in (("square", 7), ("separable", 5)):
        settings = {"shape": shape, "size": size, "stage_shape": shape, "stage_size": size}
        chosen, cost = matched(settings, base, 32, what=what)  # type: ignore[arg-type]
        assert cost.of(what) == pytest.approx(base.of(what), rel=0.02)  # type: ignore[arg-type]
        assert cost_of(PlainCNN(**chosen), 32) == cost
    chosen, cost = matched({"filters": 96, "size": 3}, base, 32, what=what, keep_filters=True)  # type: ignore[arg-type]
    assert chosen["filters"] == 96 and chosen["widths"][0] < 64


def test_what_cannot_be_matched_is_refused() -> None:
    base = cost_of(PlainCNN(size=3), 32)
    with pytest.raises(UsageError, match="the comparison is not fair"):
        matched({"filters": 8000, "size": 3}, base, 32, keep_filters=True)
    check_matched("a", Cost(102, 1), Cost(100, 1), "parameters")
    with pytest.raises(UsageError, match=r"a: 103 parameters are \+3.0 % of 100; expected at most 2 % apart"):
        check_matched("a", Cost(103, 1), Cost(100, 1), "parameters")
    with pytest.raises(UsageError, match="97 multiply-adds are -3.0 %"):
        check_matched("a", Cost(100, 97), Cost(100, 100), "multiply-adds")
