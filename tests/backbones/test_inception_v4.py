"""The properties of the paper's networks, counted and worked by hand; timm's where it has them, ours elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from offshelf.backbones.export import save_backbone
from offshelf.backbones.inception_layers import Parallel, ResidualBlock, branch, plain_block, reduction
from offshelf.backbones.inception_v4 import InceptionResNet, inception_resnet
from offshelf.backbones.inception_widths import V1, V2_PAPER
from offshelf.backbones.load import load_backbone
from offshelf.backbones.parameter_groups import parameter_groups
from offshelf.backbones.residual_scale import residual_blocks, residual_scales, set_residual_scale
from offshelf.engine.optimise import Average, make_optimiser
from offshelf.engine.recipe import Recipe
from offshelf.errors import BackboneError, UsageError


def counted(name: str, **settings: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name, **settings).parameters())


@pytest.fixture(scope="module")
def timms() -> dict[str, Any]:
    """timm's two networks with random weights, without a classifier, in evaluation mode; nobody changes them."""
    torch.manual_seed(0)
    return {name: timm.create_model(name, num_classes=0).eval() for name in ("inception_v4", "inception_resnet_v2")}


def shapes(model: nn.Module, side: int) -> list[tuple[int, ...]]:
    with torch.device("meta"):
        x = torch.zeros(1, 3, side, side)
    return [tuple(m.shape[1:]) for m in model.to("meta").eval().forward_intermediates(x, intermediates_only=True)]


# ---- 1: sizes ------------------------------------------------------------------------------------


def test_counts_of_timms_networks() -> None:
    assert counted("inception_v4") == 42_679_816
    assert counted("inception_resnet_v2") == 55_843_464


def test_maps_of_inception_v4() -> None:
    with torch.device("meta"):
        model = timm.create_model("inception_v4")
    assert shapes(model, 299)[2:] == [(384, 35, 35), (1024, 17, 17), (1536, 8, 8)]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("v1", [(64, 147, 147), (192, 71, 71), (256, 35, 35), (896, 17, 17), (1792, 8, 8)]),
        ("v2-paper", [(64, 147, 147), (192, 71, 71), (384, 35, 35), (1152, 17, 17), (2144, 8, 8)]),
    ],
)
def test_maps_of_ours(version: str, expected: list[tuple[int, ...]]) -> None:
    with torch.device("meta"):
        model = inception_resnet(version)  # type: ignore[arg-type]
    assert shapes(model, 299) == expected
    info: Any = model.feature_info
    assert [one["num_chs"] for one in info] == [shape[0] for shape in expected]
    assert [one["reduction"] for one in info] == [2, 4, 8, 16, 32]
    assert [len(residual_blocks(stage)) for stage in model.stages] == [5, 10, 5]  # type: ignore[union-attr]


def test_a_block_of_stage_a_counted_by_hand() -> None:
    """v1 at 256 channels: convolutions 32, 32-32, 32-32-32 with two numbers a channel of norm, and U with a bias."""
    one, three = 256 * 32, 32 * 32 * 9
    convolutions = 3 * one + 3 * three
    norms, project = 2 * 32 * 6, 96 * 256 + 256
    assert sum(p.numel() for p in ResidualBlock(256, V1.blocks[0]).parameters()) == convolutions + norms + project


def test_the_small_pair_is_of_equal_size() -> None:
    plain, residual = counted("inception_mini", num_classes=10), counted("inception_resnet_mini", num_classes=10)
    assert abs(residual / plain - 1) < 0.03 and 300_000 < plain < 400_000


# ---- 2 to 6: the residual block ------------------------------------------------------------------


def block(scale: float) -> ResidualBlock:
    torch.manual_seed(0)
    return ResidualBlock(64, V1.blocks[0], scale)


def test_a_scale_of_0_is_the_identity_on_what_is_not_negative_and_stops_the_branches_gradient() -> None:
    x = torch.randn(2, 64, 6, 6)
    one = block(0.0)
    assert torch.equal(one(x), torch.relu(x)) and torch.equal(one(x.abs()), x.abs())
    one(x).square().sum().backward()
    assert all(float(p.grad.abs().max()) == 0 for p in one.parameters() if p.grad is not None)


def test_the_sum_is_affine_in_the_scale() -> None:
    x = torch.randn(2, 64, 6, 6)
    whole = (block(1.0).sum(x) - x).detach()
    assert float(whole.abs().max()) > 0.1
    for scale in (0.1, 0.3, -2.0):
        assert torch.allclose((block(scale).sum(x) - x).detach(), scale * whole, atol=1e-5)
        assert torch.equal(block(scale)(x), torch.relu(block(scale).sum(x)))


def test_the_block_against_timms_with_the_same_weights(timms: dict[str, Any]) -> None:
    """timm's Block17 at its own widths, weight by weight; ours has the same order of convolutions."""
    theirs = timms["inception_resnet_v2"].repeat_1[0]
    ours = ResidualBlock(1088, V2_PAPER.blocks[1], scale=0.1).eval()
    state = {key: value for key, value in theirs.state_dict().items()}
    own = {key: value for key, value in ours.state_dict().items() if key != "scale"}
    assert [v.shape for v in own.values()] == [v.shape for v in state.values()]
    ours.load_state_dict(dict(zip(own, state.values())) | {"scale": torch.tensor(0.1)})
    x = torch.randn(1, 1088, 5, 5)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_the_projection_has_a_bias_and_nothing_else_and_the_sum_no_norm() -> None:
    one = block(0.2)
    assert one.project.bias is not None and one.project.kernel_size == (1, 1)
    assert [name for name, _ in one.named_children()] == ["branches", "project", "act"]
    assert not any(isinstance(m, nn.BatchNorm2d) for name, m in one.named_modules() if not name.startswith("branches"))
    convolutions = [m for m in one.branches.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in one.branches.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 6
    assert all(c.bias is None for c in convolutions) and all(n.eps == 1e-3 for n in norms)


def test_timms_last_block_has_no_relu_and_a_scale_of_1(timms: dict[str, Any]) -> None:
    block8 = timms["inception_resnet_v2"].block8
    assert block8.relu is None and block8.scale == 1.0
    with torch.no_grad():
        assert float(block8(torch.randn(2, 2080, 2, 2).abs() - 0.5).min()) < 0


def test_default_scales() -> None:
    with torch.device("meta"):
        scales = {v: inception_resnet(v) for v in ("v1", "v2-paper")}
    for model in scales.values():
        assert [len(s) for s in model.stages] == [5, 11, 6]  # type: ignore[union-attr, arg-type]
    mini = inception_resnet("mini", residual_scale=(0.1, 0.2, 0.3))
    assert residual_scales(mini) == pytest.approx([0.1] * 4 + [0.2] * 6 + [0.3] * 2)
    assert residual_scales(inception_resnet("mini")) == pytest.approx([0.2] * 12)


# ---- 7 to 10: layers -----------------------------------------------------------------------------


def test_widths_of_the_reductions(timms: dict[str, Any]) -> None:
    assert timms["inception_v4"].features[10](torch.zeros(1, 384, 7, 7)).shape == (1, 384 + 256 + 384, 3, 3)
    assert reduction(256, V1.reductions[0], valid=True)[1] == 256 + 384 + 256 == 896
    assert reduction(896, V1.reductions[1], valid=True)[1] == 1792
    assert reduction(384, V2_PAPER.reductions[0], valid=True)[1] == 384 + 384 + 384 == 1152
    assert reduction(1152, V2_PAPER.reductions[1], valid=True)[1] == 384 + 288 + 320 + 1152 == 2144
    assert timms["inception_resnet_v2"].mixed_6a(torch.zeros(1, 320, 7, 7)).shape == (1, 384 + 384 + 320, 3, 3)


def test_one_by_seven_and_seven_by_one_see_seven_by_seven() -> None:
    layers = branch(1, ((1, (1, 7)), (1, (7, 1)))).eval()
    for one in layers:
        nn.init.ones_(one.conv.weight)  # type: ignore[union-attr, arg-type]
    x = torch.zeros(1, 1, 15, 15)
    x[0, 0, 7, 7] = 1.0
    with torch.no_grad():
        rows, columns = torch.nonzero(layers(x)[0, 0], as_tuple=True)
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (4, 10, 4, 10)
    assert len(rows) == 49


def test_averages_do_not_count_the_padding() -> None:
    one = plain_block(4, (((2, 1),),), pooled=2).eval()
    average = one.branches[-1][0]  # type: ignore[index]
    assert torch.allclose(average(torch.full((1, 4, 5, 5), 3.0)), torch.full((1, 4, 5, 5), 3.0))
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert float(average(x)[0, 0, 0, 0]) == pytest.approx((0 + 1 + 3 + 4) / 4)


@pytest.mark.parametrize("version", ["v1", "v2-paper"])
def test_the_smallest_picture(version: str) -> None:
    model = inception_resnet(version, width=0.125, num_classes=2).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        assert model.forward_features(torch.zeros(1, 3, 75, 75)).shape[-2:] == (1, 1)  # type: ignore[operator]
        for call in (model, model.forward_intermediates):
            with pytest.raises(UsageError, match="a picture of 74 x 80 pixels: expected at least 75 x 75"):
                call(torch.zeros(1, 3, 74, 80))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["inception_v4", "inception_resnet_v2"])
def test_timms_smallest_picture(name: str, timms: dict[str, Any]) -> None:
    from offshelf.backbones.input_size import require_size

    require_size(timms[name], 75, 75)
    with pytest.raises(UsageError, match=r"does not take pictures of 74 x 74 pixels .* Choose another size"):
        require_size(timms[name], 74, 74)


# ---- 12, and the paper's recipe ------------------------------------------------------------------


def test_the_averaged_weights_are_timms_moving_average() -> None:
    from timm.utils import ModelEmaV3

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average, reference = Average(model, 0.05), ModelEmaV3(model, decay=0.05)  # below the ramp: 2 / 11 at the start
    for step in range(1, 4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(model, step)
        reference.update(model)
    for name, value in reference.module.state_dict().items():
        assert torch.allclose(average.values[name], value, atol=1e-6), name


def test_rmsprop_by_hand() -> None:
    """Mean square from 1, decay 0.9, eps 1 inside the root: one step of a gradient of 2."""
    weight = nn.Parameter(torch.tensor([5.0]))
    recipe = Recipe(optimiser="rmsprop", learning_rate=0.045, weight_decay=0.0, betas=(0.9, 0.9))
    optimiser = make_optimiser(recipe, [{"params": [weight], "lr": 0.045, "weight_decay": 0.0}])
    weight.grad = torch.tensor([2.0])
    optimiser.step()
    assert float(weight.detach()) == pytest.approx(5 - 0.045 * 2 / (0.9 * 1 + 0.1 * 4 + 1.0) ** 0.5, abs=1e-6)


# ---- timm's interface ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inception_mini", "inception_resnet_mini"])
def test_the_interface(name: str, tmp_path: Path) -> None:
    model: Any = load_backbone(f"{name}.random_3", num_classes=5)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert torch.equal(last, model.forward_features(x)) and torch.equal(maps[-1], last)
        assert [m.shape[1] for m in maps] == [32, 64, 96, 160] and [m.shape[-1] for m in maps] == [32, 16, 8, 4]
        (early,) = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
        assert torch.equal(early, maps[1])
        pooled = model.forward_head(last, pre_logits=True)
        assert pooled.shape == (2, model.head_hidden_size) == (2, 160)
        assert torch.allclose(pooled, last.mean(dim=(2, 3)), atol=1e-6)
        assert torch.equal(model.forward_head(last), model(x)) and model(x).shape == (2, 5)
        features = timm.create_model(name, features_only=True)
        assert [f.shape for f in features.eval()(x)] == [m.shape for m in maps]
        again: Any = load_backbone(save_backbone(model, tmp_path / "saved"), num_classes=None)
        assert torch.equal(again(x), model(x))
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled) and model.get_classifier().__class__ is nn.Identity
    with pytest.raises(UsageError, match="expected 'NCHW'"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_scales_are_saved_with_the_weights(tmp_path: Path) -> None:
    model = load_backbone("inception_resnet_mini.random")
    set_residual_scale(model, 0.7)
    again = load_backbone(save_backbone(model, tmp_path / "saved"))
    assert residual_scales(again) == pytest.approx([0.7] * 12)


def test_settings_are_saved_and_pruned_networks_stop_early(tmp_path: Path) -> None:
    register = timm.create_model("inception_resnet_mini", repeats=(1, 1, 1), width=0.5, num_classes=3)
    again = load_backbone(save_backbone(register, tmp_path / "saved"), num_classes=None).eval()
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x), register.eval()(x))
        assert register.prune_intermediate_layers([1]) == [1]
        assert register(x).shape == (1, 32, 8, 8) and register.num_features == 32


def test_layers_and_gradients() -> None:
    model: Any = timm.create_model("inception_resnet_mini", repeats=(1, 2, 1), num_classes=3)
    groups = parameter_groups(model, model, 1.0, 0.1, layer_decay=0.5)
    rates = sorted({group["lr"] for group in groups})
    assert rates[-1] == 1.0 and rates[0] == 0.5 ** (len(rates) - 1) and len(rates) == 1 + 6 + 1
    x = torch.randn(2, 3, 16, 16)
    model.train()
    model(x).square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x).square().sum().backward()
    assert all(torch.allclose(p.grad, g, atol=1e-4) for p, g in zip(model.parameters(), gradients))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(x)).all()


def test_the_second_classifier() -> None:
    model = InceptionResNet("v1", width=0.125, auxiliary=True, num_classes=3).eval()
    with torch.no_grad():
        logits, second = model.forward_with_auxiliary(torch.randn(1, 3, 139, 139))
    assert logits.shape == second.shape == (1, 3)
    model.reset_classifier(0)
    with pytest.raises(UsageError, match="auxiliary=True"):
        model.forward_with_auxiliary(torch.randn(1, 3, 139, 139))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"version": "v9"}, "version='v9': expected one of"),
        ({"version": "mini", "stem": "x"}, "stem='x': expected one of imagenet, cifar"),
        ({"version": "mini", "repeats": (1, 0, 1)}, "expected three numbers of blocks"),
        ({"version": "mini", "width": 0.0}, "width=0.0: expected a factor above 0"),
        ({"version": "mini", "auxiliary": True}, "auxiliary=True with stem='cifar'"),
        ({"version": "mini", "residual_scale": (1.0, 2.0)}, "expected a number, or three"),
        ({"version": "mini-plain", "residual_scale": 0.1}, "a plain network has no residual branches"),
        ({"version": "v2", "repeats": (1, 1, 1)}, "version='v2' is timm's network, of fixed sizes"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        inception_resnet(**settings)


def test_version_2_is_timms_with_another_scale() -> None:
    with torch.device("meta"):
        model = inception_resnet("v2", residual_scale=0.3, num_classes=2)
    assert type(model).__module__ == "timm.models.inception_resnet_v2" and set(residual_scales(model)) == {0.3}


def test_there_are_no_weights_to_be_had() -> None:
    with pytest.raises(BackboneError, match=r"use 'inception_resnet_v1.random'"):
        load_backbone("inception_resnet_v1")


# ---- the verbs -----------------------------------------------------------------------------------


def test_fine_tuned_and_used_as_features(folder: Path, tmp_path: Path) -> None:
    from offshelf import finetune, fit

    quick: dict[str, Any] = {"image_size": 16, "epochs": 1, "batch_size": 12}
    run = finetune(folder, backbone="inception_resnet_mini.random", out=tmp_path / "tuned", **quick)
    again = load_backbone(run.folder / "model", num_classes=None)
    assert again.num_classes == 3 and len(residual_scales(again)) == 12
    plain: dict[str, Any] = {"backbones": ["inception_mini.random"], "heads": ["logistic"], "control": "none"}
    fitted = fit(folder, input_size=32, out=tmp_path / "fit", **plain)
    assert [card["name"] for card in fitted.results["backbones"]] == ["inception_mini.random"]


def test_pictures_of_a_wrong_size_are_refused_with_a_sentence() -> None:
    from offshelf.transfer.finetune import FineTune

    pixels = np.zeros((4, 3, 64, 64), np.uint8)
    with pytest.raises(UsageError, match=r"inception_v4.random does not take pictures of 64 x 64 pixels .*299 pixels"):
        FineTune(backbone="inception_v4.random", image_size=64, epochs=1).fit(pixels, [0, 1, 0, 1])


def test_branches_are_concatenated() -> None:
    both = Parallel(nn.Identity(), nn.ReLU())(-torch.ones(1, 2, 1, 1))
    assert both.flatten().tolist() == [-1.0, -1.0, 0.0, 0.0]
