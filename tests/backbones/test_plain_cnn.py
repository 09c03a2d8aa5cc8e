"""The study's network speaks timm's interface, and its kernels are what they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from offshelf.backbones.architectures import register_architectures
from offshelf.backbones.export import save_backbone
from offshelf.backbones.kernel_shapes import SHAPES, MaskedConv2d, mask_of
from offshelf.backbones.load import load_backbone
from offshelf.backbones.parameter_groups import parameter_groups
from offshelf.backbones.plain_cnn import PlainCNN
from offshelf.errors import UsageError


def made(**settings: Any) -> nn.Module:
    register_architectures()
    torch.manual_seed(0)
    return timm.create_model("plain_cnn", **settings).eval()


def test_timms_interface() -> None:
    model, x = made(num_classes=7), torch.randn(2, 3, 32, 32)
    assert (
        sum(p.numel() for p in model.parameters())
        == 198_711
        == 3 * 48 * 25 + 9 * (48 * 64 + 64 * 96 + 96 * 128) + (2 * (48 + 64 + 96 + 128) + 128 * 7 + 7)
    )
    features = model.forward_features(x)
    assert features.shape == (2, 128, 4, 4) and torch.equal(model.forward_head(features), model(x))
    assert torch.allclose(model.forward_head(features, pre_logits=True), features.mean(dim=(2, 3)), atol=1e-6)
    last, maps = model.forward_intermediates(x)
    assert [tuple(one.shape[1:]) for one in maps] == [(48, 32, 32), (64, 16, 16), (96, 8, 8), (128, 4, 4)]
    assert torch.equal(last, features) and torch.equal(maps[-1], features)
    only = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    assert len(only) == 1 and torch.equal(only[0], maps[1])
    assert [one["reduction"] for one in model.feature_info] == [1, 2, 4, 8]
    pyramid = made(features_only=True)(x)
    assert [one.shape[1] for one in pyramid] == [48, 64, 96, 128]
    model.reset_classifier(0)
    assert torch.allclose(model(x), model.forward_head(features, pre_logits=True))
    assert isinstance(model.get_classifier(), nn.Identity)
    model.set_grad_checkpointing()
    assert torch.allclose(model.forward_features(x), features, atol=1e-6)


def test_pruning_keeps_what_is_asked_for() -> None:
    model, x = made(), torch.randn(1, 3, 16, 16)
    expected = model.forward_intermediates(x, intermediates_only=True)[1]
    model.prune_intermediate_layers([1])
    assert torch.equal(model.forward_features(x), expected) and model.head_hidden_size == 64


def test_layers_move_at_their_own_rates() -> None:
    model = made()
    groups = parameter_groups(model, model, 1.0, 0.1, layer_decay=0.5)
    assert sorted({round(group["lr"], 4) for group in groups}) == [0.0625, 0.125, 0.25, 0.5, 1.0]


@pytest.mark.parametrize("shape", SHAPES)
def test_saved_and_loaded_it_answers_the_same(shape: str, tmp_path: Path) -> None:
    model = made(shape=shape, stage_shape=shape, size=5, stage_size=3, filters=6, widths=(8, 9), num_classes=3)
    x = torch.randn(2, 3, 16, 16)
    again = load_backbone(save_backbone(model, tmp_path / "net"), num_classes=None)
    assert torch.allclose(again(x), model(x), atol=1e-6)


def test_it_runs_in_bf16_and_with_another_stride() -> None:
    x = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(made()(x).isfinite().all())
    assert made(stride=2).forward_features(x).shape == (2, 128, 2, 2)
    assert any(isinstance(module, nn.BatchNorm2d) for module in made().modules())
    bare = made(norm="none")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in bare.modules()) and bare.stem[0].bias is not None


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_covers_the_same_pixels_and_keeps_the_map(shape: str) -> None:
    """What one value sees, told by the gradient: a square of 7 pixels, no more, with the corners that the shape has."""
    model = made(shape=shape, size=7, filters=4, widths=(4,), norm="none")
    with torch.no_grad():
        for module in model.stem.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.abs_()
    x = torch.rand(1, 3, 21, 21, requires_grad=True)
    out = model.stem(x)
    assert out.shape[-2:] == (21, 21)
    out[0, :, 10, 10].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(dim=0).nonzero()
    assert seen.min(dim=0).values.tolist() == [7, 7] and seen.max(dim=0).values.tolist() == [13, 13]
    expected = {"dilated": 9, "cross": 13, "ring": 24}.get(shape, 49)
    assert len(seen) == expected


def test_holes_stay_exactly_zero_through_training() -> None:
    model = made(shape="cross", size=5, filters=4, widths=(4,), num_classes=2).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    conv = model.stem[0]
    before = conv.weight.detach().clone()
    for _ in range(3):
        model(torch.randn(8, 3, 16, 16)).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    holes = mask_of("cross", 5) == 0
    assert int(holes.sum()) == 16 and not conv.weight[..., holes].any()
    assert isinstance(conv, MaskedConv2d) and conv.taps == 9 and not torch.equal(conv.weight, before)
    assert "stem.0.mask" not in model.state_dict()


def test_masked_kernels_begin_with_he_over_the_taps_they_have() -> None:
    weight = PlainCNN(shape="ring", size=5, filters=400).stem[0].weight
    inside = weight[..., mask_of("ring", 5) == 1]
    assert float(inside.detach().std()) == pytest.approx((2 / (3 * 16)) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 4}, "square kernel of size 4: expected an odd number of 1 or more"),
        ({"shape": "dilated", "size": 1}, "an odd number of 3 or more"),
        ({"shape": "crosss"}, "did you mean 'cross'.*Shapes: square"),
        ({"norm": "layer"}, "norm='layer': expected one of batch, none"),
        ({"filters": 0}, "expected numbers of 1 or more"),
        ({"widths": ()}, "expected numbers of 1 or more"),
        ({"stride": 0}, "stride=0"),
    ],
)
def test_what_cannot_be_built_is_said(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        PlainCNN(**settings)


def test_pictures_that_are_too_small() -> None:
    with pytest.raises(UsageError, match="expected at least 8 x 8 for 3 stages"):
        made()(torch.zeros(1, 3, 7, 8))
    with pytest.raises(UsageError, match="output_fmt='NLC'"):
        made().forward_intermediates(torch.zeros(1, 3, 16, 16), output_fmt="NLC")
