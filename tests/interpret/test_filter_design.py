"""Designing filters of whole networks: what changes, what does not, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from offshelf.errors import UsageError
from offshelf.interpret.filter_choice import BANKS, RULES
from offshelf.interpret.filter_design import design_filters
from offshelf.interpret.filter_rules import RANDOM_RULES
from offshelf.interpret.layer_inputs import convolutions, inputs_of
from offshelf.interpret.patch_filters import LEARNED_RULES

PICTURES = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32)).astype(np.uint8)


def small(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=3, **settings)


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def kept(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("rule", ["he", "dct", "pca"])
def test_only_the_listed_layers_change(rule: str) -> None:
    model = small().train()
    before, flags = kept(model), [module.training for module in model.modules()]
    torch.manual_seed(4)
    state = torch.get_rng_state()
    layers = ["layer2.0.conv2", "layer1.0.conv1"]
    told = design_filters(model, rule, layers, PICTURES, patches=500)
    assert changed(model, before) == {f"{name}.weight" for name in layers}
    assert [layer.name for layer in told.layers] == layers[::-1]  # in the order of a pass
    assert torch.equal(torch.get_rng_state(), state) and [m.training for m in model.modules()] == flags


@pytest.mark.parametrize("rule", [*BANKS, *LEARNED_RULES])
def test_scales(rule: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3))
    design_filters(model, rule, pictures=PICTURES, patches=300)
    weight = model[0].weight
    assert torch.allclose(weight.flatten(1).square().sum(dim=1), torch.full((len(weight),), 2.0), atol=1e-4)
    design_filters(model, rule, pictures=PICTURES, patches=300, scale="unit")
    assert torch.allclose(weight.flatten(1).norm(dim=1), torch.ones(len(weight)), atol=1e-4)


@pytest.mark.parametrize("rule", ["lsuv", "dct", "he"])
def test_unit_variance_of_every_treated_layer(rule: str) -> None:
    model = small()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(0.5)
    names = ["conv1.0", "layer1.0.conv1", "layer3.0.conv2"]
    told = design_filters(model, rule, names, PICTURES, scale=None if rule == "lsuv" else "lsuv")
    for layer in told.layers:
        conv = model.get_submodule(layer.name)
        assert isinstance(conv, nn.Conv2d) and layer.variance is not None
        seen = torch.from_numpy(PICTURES).float()
        mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        output = conv(inputs_of(model, conv, (seen / 255 - mean) / std)).detach()
        assert float(output.var()) == pytest.approx(1, abs=0.05) and layer.variance == pytest.approx(1, abs=0.05)


def test_a_bank_that_is_too_small_is_never_repeated_in_silence() -> None:
    model = nn.Sequential(nn.Conv2d(3, 40, 3))
    told = design_filters(model, "dct").layers[0]
    assert (told.from_rule, told.filled) == (27, 13) and "13 others are drawn by He's rule" in told.notes[0]
    weight = model[0].weight.detach()
    rows = torch.nn.functional.normalize(weight.flatten(1), dim=1)
    assert torch.allclose(rows[:27] @ rows[:27].T, torch.eye(27), atol=1e-5)
    for fill in ("he", "rotate"):
        design_filters(model, "dct", fill=fill)  # type: ignore[arg-type]
        rows = torch.nn.functional.normalize(model[0].weight.detach().flatten(1), dim=1)
        assert float((rows @ rows.T - torch.eye(40)).abs().max()) < 0.95, fill
    with pytest.raises(UsageError, match="dct gives 27 filters for 40"):
        design_filters(model, "dct", fill="refuse")
    pca = design_filters(model, "pca", pictures=PICTURES, patches=2000).layers[0]
    assert (pca.from_rule, pca.filled, pca.patches) == (27, 13, 2000)  # 26 directions that vary, and brightness


def test_one_filter_sees_brightness() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 5))
    for rule in ("gabor", "edges", "k-means"):
        design_filters(model, rule, pictures=PICTURES, patches=300)
        sums = model[0].weight.detach().flatten(1).sum(dim=1).abs()
        assert float(sums[0]) == pytest.approx((2 * 75) ** 0.5, rel=1e-4) and float(sums[1:].max()) < 0.1
        design_filters(model, rule, pictures=PICTURES, patches=300, brightness=False)
        assert float(model[0].weight.detach().flatten(1).sum(dim=1).abs().max()) < 0.1


def test_grouped_and_depthwise_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 8, 3, groups=4)
    )
    told = design_filters(model, "dct", ["2", "3"])
    assert [(layer.shape, layer.groups, layer.filled) for layer in told.layers] == [
        ((12, 1, 3, 3), 12, 0),
        ((8, 3, 3, 3), 4, 0),
    ]
    depthwise = torch.nn.functional.normalize(model[2].weight.detach().flatten(1), dim=1)
    assert torch.allclose(depthwise[:9] @ depthwise[:9].T, torch.eye(9), atol=1e-5)  # the nine, one a channel
    assert torch.allclose(depthwise[9:], depthwise[:3])  # and round again, on other channels
    for part in model[3].weight.detach().chunk(4):
        rows = torch.nn.functional.normalize(part.flatten(1), dim=1)
        assert torch.allclose(rows @ rows.T, torch.eye(2), atol=1e-5)
    learned = design_filters(model, "pca", ["2", "3"], PICTURES, patches=800)
    assert [layer.patches for layer in learned.layers] == [800, 800]
    few = design_filters(nn.Sequential(nn.Conv2d(4, 40, 3, groups=2)), "dct").layers[0]
    assert few.filled == 4 and few.from_rule == 36  # two channels see 18 patterns, a group has 20 filters


def test_deeper_layers_learn_from_what_comes_after_the_non_linearity() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3))
    x = torch.randn(6, 3, 12, 12)
    seen = inputs_of(model, model[3], x)  # type: ignore[arg-type]
    assert torch.allclose(seen, torch.relu(nn.BatchNorm2d(4)(model[0](x))), atol=1e-5) and bool((seen >= 0).all())
    assert model[1].num_batches_tracked == 0 and not model[1].running_mean.any()  # type: ignore[union-attr]


def test_freezing_and_letting_go() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    before = model[0].bias.detach().clone()  # type: ignore[union-attr]
    told = design_filters(model, "dct", train="freeze")
    weight = model[0].weight.detach().clone()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)

    def step() -> None:
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    step()
    assert torch.equal(model[0].weight, weight) and torch.equal(model[0].bias, before)  # type: ignore[arg-type]
    assert not told.release(model, 100)
    told = design_filters(model, "dct", train=2)
    assert [told.release(model, epoch) for epoch in (0, 1, 2)] == [False, False, True]
    step()
    assert not torch.equal(model[0].weight, weight)


def test_holes_of_a_masked_kernel_stay_holes() -> None:
    from offshelf.backbones.kernel_shapes import MaskedConv2d, mask_of

    model = nn.Sequential(MaskedConv2d(3, 6, 5, mask=mask_of("ring", 5)))
    design_filters(model, "k-means", pictures=PICTURES, patches=300)
    weight = model[0].weight.detach()
    assert not weight[..., 1:4, 1:4].any()
    assert torch.allclose(weight.flatten(1).square().sum(dim=1), torch.full((6,), 2.0), atol=1e-4)


def test_filters_of_another_backbone() -> None:
    source = "test_byobnet.offshelf_finetune_cifar10"
    from offshelf.backbones.load import load_backbone

    theirs = load_backbone(source).stem.conv.weight.detach()  # type: ignore[union-attr]
    norms = theirs.flatten(1).norm(dim=1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    design_filters(model, f"copied:{source}", scale="own")
    order = norms.argsort(descending=True)
    assert torch.allclose(model[0].weight.detach(), theirs[order[:8]])
    wide = nn.Sequential(nn.Conv2d(3, 30, 5))
    told = design_filters(wide, f"copied:{source}").layers[0]
    assert (told.from_rule, told.filled) == (24, 6)
    resized = torch.nn.functional.normalize(wide[0].weight.detach()[:24].flatten(1), dim=1)
    again = torch.nn.functional.interpolate(theirs, (5, 5), mode="bicubic", antialias=True)
    again = again[again.flatten(1).norm(dim=1).argsort(descending=True)]
    assert torch.allclose(resized, torch.nn.functional.normalize(again.flatten(1), dim=1), atol=1e-5)
    deep = convolutions(load_backbone(source), ["*"])[3]
    with pytest.raises(UsageError, match="its filters see .* channels and this layer's 5"):
        design_filters(nn.Sequential(nn.Conv2d(5, 4, 3)), f"copied:{source}#{deep}")


def test_the_default_layer_is_the_first_convolution() -> None:
    assert convolutions(timm.create_model("resnet18")) == ["conv1"]
    assert convolutions(timm.create_model("vit_tiny_patch16_224")) == ["patch_embed.proj"]
    assert len(convolutions(timm.create_model("resnet18"), ["layer1.*"])) == 4


@pytest.mark.parametrize(
    ("rule", "how", "said"),
    [
        ("gabr", {}, "did you mean 'gabor'.*Rules: gaussian"),
        ("copied:", {}, "unknown"),
        ("dct", {"layers": "layer1.0.conv3"}, "no convolution of this name; did you mean"),
        ("dct", {"layers": []}, "none were named"),
        ("pca", {}, "pca needs pictures"),
        ("lsuv", {}, "lsuv needs pictures"),
        ("dct", {"scale": "lsuv"}, "dct with scale lsuv needs pictures"),
        ("dct", {"scale": "big"}, "scale='big': expected one of own, he"),
        ("dct", {"fill": "big"}, "fill='big'"),
        ("dct", {"train": "later"}, "expected 'train', 'freeze'"),
        ("dct", {"train": -1}, "expected 'train', 'freeze'"),
        ("dct", {"train": True}, "expected 'train', 'freeze'"),
        ("zero", {"scale": "he"}, "filters are 0 and cannot be scaled"),
        ("pca", {"pictures": PICTURES[0]}, "pictures of shape"),
    ],
)
def test_what_cannot_be_done_is_said(rule: str, how: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        design_filters(small(), rule, **how)


def test_a_network_without_convolutions() -> None:
    with pytest.raises(UsageError, match="Sequential has no convolutions"):
        design_filters(nn.Sequential(nn.Linear(3, 2)), "he")


def test_every_rule_has_one_name() -> None:
    assert len(set(RULES)) == len(RULES) == len(RANDOM_RULES) + len(BANKS) + len(LEARNED_RULES)


def test_looking_leaves_what_a_first_pass_makes_of_a_placeholder() -> None:
    """ConViT's coordinates are a placeholder until the first pass; put back, it would wipe them out."""
    import timm

    from offshelf.backbones.architectures import register_architectures
    from offshelf.interpret.layer_inputs import in_forward_order

    register_architectures()
    model = timm.create_model("convit_mini")
    in_forward_order(model, ["patch_embed.proj"], None)
    coordinates = [value for name, value in model.named_buffers() if name.endswith("rel_indices")]
    assert coordinates and all(value.numel() > 3 and value.abs().sum() > 0 for value in coordinates)
