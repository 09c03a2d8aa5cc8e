from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.data.picture_views import PictureViews
from offshelf.engine.draws import Draws
from offshelf.engine.train import Training, train
from offshelf.errors import BackboneError, UsageError
from offshelf.pretrain.spark import (
    Decoder,
    Densify,
    SparK,
    cell_moments,
    patchify,
    reconstruction_loss,
    unpatchify,
    visible_cells,
    visible_count,
)

SMALL: dict[str, Any] = {
    "layers": (1, 1, 1, 1),
    "channels": (16, 16, 32, 32),
    "output_stride": 8,
    "zero_init_last": False,  # gains of 0 let no gradient through in the first step
}


def small(seed: int = 0, **settings: Any) -> SparK:
    """An objective of stride 8 at 32 pixels: a 4 x 4 grid, three stages."""
    torch.manual_seed(seed)
    return SparK(timm.create_model("resnet18", num_classes=0, **SMALL), 32, **{"decoder_width": 16} | settings)


def batch_of(objective: SparK, n: int = 4, epoch: int = 0) -> dict[str, torch.Tensor]:
    table = np.random.default_rng(0).integers(0, 256, (n, 3, 40, 40), dtype=np.uint8)
    return objective.views()(torch.from_numpy(table), Draws(0, epoch, range(n)))


# ---- masks and cells ----


@pytest.mark.parametrize(
    ("side", "ratio", "expected"), [(7, 0.6, 20), (4, 0.6, 6), (8, 0.6, 26), (12, 0.75, 36), (2, 0.6, 2)]
)
def test_every_picture_has_the_same_number_of_visible_cells(side: int, ratio: float, expected: int) -> None:
    assert visible_count(side**2, ratio) == expected
    seen = visible_cells(torch.rand(50, side**2), ratio)
    assert seen.shape == (50, 1, side, side)
    assert (seen.sum((1, 2, 3)) == expected).all()
    assert seen.float().mean(0).std() > 0  # not one mask for all


def test_the_smallest_numbers_are_visible() -> None:
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3]])
    assert visible_cells(noise, 0.5).flatten().tolist() == [False, True, False, True]


def test_patchify_by_hand_and_back() -> None:
    pictures = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4)
    cells = patchify(pictures, 2)
    assert cells.shape == (2, 4, 12)
    # second cell: upper right; its pixels row by row, the three channels side by side
    assert cells[0, 1].tolist() == [2, 18, 34, 3, 19, 35, 6, 22, 38, 7, 23, 39]
    assert torch.equal(unpatchify(cells, 2), pictures)


# ---- the loss ----


def test_painting_nothing_scores_one_minus_one_over_n() -> None:
    torch.manual_seed(0)
    pictures = 5 + torch.randn(3, 3, 64, 64) * torch.rand(3, 3, 64, 64)
    seen = visible_cells(torch.rand(3, 4), 0.6)
    loss = reconstruction_loss(torch.zeros_like(pictures), pictures, seen)
    assert loss.item() == pytest.approx(3071 / 3072, abs=2e-5)
    flat = reconstruction_loss(torch.zeros_like(pictures), torch.full_like(pictures, 0.7), seen)
    assert flat.item() == pytest.approx(0.0, abs=1e-6)  # a constant cell has the target 0


def test_a_perfect_painting_scores_nothing_and_visible_cells_do_not_count() -> None:
    torch.manual_seed(0)
    pictures, seen = torch.randn(2, 3, 32, 32), visible_cells(torch.rand(2, 16), 0.6)
    cells = patchify(pictures, 8)
    mean, deviation = cell_moments(cells)
    assert deviation[0, 0].item() == pytest.approx(float(np.sqrt(cells[0, 0].numpy().var(ddof=1) + 1e-6)), rel=1e-5)
    perfect = unpatchify((cells - mean) / deviation, 8)
    assert reconstruction_loss(perfect, pictures, seen).item() == pytest.approx(0.0, abs=1e-10)
    big = seen.repeat_interleave(8, 2).repeat_interleave(8, 3)
    spoilt = (perfect + 3 * big).requires_grad_(True)
    loss = reconstruction_loss(spoilt, pictures, seen)
    assert loss.item() == pytest.approx(0.0, abs=1e-10)
    (gradient,) = torch.autograd.grad(reconstruction_loss(spoilt + 1, pictures, seen), spoilt)
    assert (gradient * big == 0).all()
    assert (gradient != 0).logical_or(big).all()
    # 1 off in every hidden pixel: error 1; the gradient is 2 / (hidden pixels)
    torch.testing.assert_close(gradient[~big.expand_as(gradient)], torch.full((2 * 10 * 192,), 2 / (2 * 10 * 192)))


def test_nothing_hidden_gives_zero() -> None:
    pictures = torch.randn(1, 3, 16, 16)
    everything = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    assert reconstruction_loss(torch.zeros_like(pictures), pictures, everything).item() == 0.0


# ---- decoder ----


def test_parameter_counts_of_the_paper() -> None:
    with torch.device("meta"):
        decoder = Decoder(768, 32)
        densify = [Densify(c, 768 >> i, 3 if i else 1, by_layer=False) for i, c in enumerate((2048, 1024, 512, 256))]
        assert isinstance(Densify(768, 768, 1, by_layer=True).project, nn.Identity)  # ConvNeXt-S
    assert sum(p.numel() for p in decoder.parameters()) == 23_183_115
    assert sum(p.numel() for d in densify for p in d.project.parameters()) == 6_219_168
    assert sum(d.mask_token.numel() for d in densify) == 3_840


def test_hidden_positions_are_filled_with_the_token() -> None:
    torch.manual_seed(0)
    layer = Densify(6, 6, 1, by_layer=True)  # no projection: what comes out is normalised stage or token
    assert (layer.mask_token.abs() <= 0.02).all() and (layer.mask_token != 0).all()
    mask = torch.tensor([[[[True, False], [False, True]]]])
    stage = torch.randn(1, 6, 2, 2) * mask
    filled = layer(stage, mask)
    assert torch.equal(filled[0, :, 0, 1], layer.mask_token[0, :, 0, 0])
    seen = stage[0, :, 1, 1]
    torch.testing.assert_close(
        filled[0, :, 1, 1], (seen - seen.mean()) / (seen.var(correction=0) + 1e-6).sqrt(), rtol=1e-4, atol=1e-5
    )


def test_batch_norm_of_a_stage_counts_visible_positions_only() -> None:
    torch.manual_seed(0)
    layer = Densify(3, 8, 3, by_layer=False)
    mask = torch.tensor([[[[True, False], [False, True]]]])
    stage = (torch.randn(1, 3, 2, 2) + 4) * mask
    layer(stage, mask)
    torch.testing.assert_close(layer.norm.running_mean, 0.1 * stage.sum((0, 2, 3)) / 2)


# ---- the objective ----


def test_stages_are_chosen_by_stride_the_last_of_equal_ones() -> None:
    assert (small().stride, small().grid) == (8, 4)
    assert small().stages == [4, 1, 0]  # strides 8 (the last of three), 4 and 2
    resnet = SparK(load_backbone("test_resnet.random"), 64, decoder_width=32)
    assert resnet.stages == [4, 3, 2, 1]  # 32, 16, 8, 4; the stem's stride 2 is left out
    convnext = SparK(load_backbone("test_convnext.random"), 64, decoder_width=64)
    assert convnext.stages == [3, 2, 1, 0]
    assert isinstance(convnext.densify[0].norm, nn.LayerNorm) and isinstance(resnet.densify[0].norm, nn.BatchNorm2d)
    assert isinstance(convnext.densify[0].project, nn.Identity)  # 64 channels already
    vgg = timm.create_model("vgg11_bn", num_classes=0, mlp_ratio=0.01)
    assert SparK(vgg, 64, decoder_width=32).stages == [5, 4, 3, 2]


def test_making_it_leaves_statistics_and_modes_alone() -> None:
    backbone = timm.create_model("test_resnet", num_classes=0)
    backbone.layer1.eval()
    before, modes = copy.deepcopy(backbone.state_dict()), [m.training for m in backbone.modules()]
    SparK(backbone, 64, decoder_width=32)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert [m.training for m in backbone.modules()] == modes


@pytest.mark.parametrize("training", [True, False])
def test_hidden_pixels_change_neither_stages_nor_painting(training: bool) -> None:
    objective = small().train(training)
    batch = batch_of(objective)
    seen = visible_cells(batch["noise"], 0.6)
    big = seen.repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(big, batch["pictures"], torch.randn_like(batch["pictures"]))
    state = copy.deepcopy(objective.state_dict())
    first = objective.encode(batch["pictures"], seen)
    painted = objective.paint(batch["pictures"], seen)
    objective.load_state_dict(state)
    second = objective.encode(other, seen)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
        grown = seen.repeat_interleave(a.shape[-1] // 4, 2).repeat_interleave(a.shape[-1] // 4, 3)
        assert (a * ~grown == 0).all() and (a * grown != 0).any()
    assert torch.equal(painted, objective.paint(other, seen))


@pytest.mark.parametrize("shown", [True, False])
def test_masks_that_show_all_or_nothing(shown: bool) -> None:
    objective = small()
    pictures = batch_of(objective)["pictures"]
    seen = torch.full((4, 1, 4, 4), shown)
    loss = reconstruction_loss(objective.paint(pictures, seen), pictures, seen)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())


def test_gradients_reach_everything_and_the_loss_is_determined_by_the_batch() -> None:
    objective = small()
    batch = batch_of(objective)
    state = copy.deepcopy(objective.state_dict())
    loss = objective(batch)["loss"]
    loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    objective.load_state_dict(state)
    torch.manual_seed(99)
    assert objective(batch)["loss"].item() == loss.item()


def test_bf16() -> None:
    objective = small()
    batch = batch_of(objective)
    exact = copy.deepcopy(objective)(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(batch)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.03)


def test_views_are_the_same_one_by_one_and_pickle() -> None:
    objective = small()
    views = pickle.loads(pickle.dumps(objective.views()))
    table = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 3, 40, 40), dtype=np.uint8))
    together = views(table, Draws(5, 2, [7, 8, 9]))
    assert together["pictures"].shape == (3, 3, 32, 32) and together["noise"].shape == (3, 16)
    for i in range(3):
        alone = views(table[i : i + 1], Draws(5, 2, [7 + i]))
        for key, value in together.items():
            assert torch.equal(value[i : i + 1], alone[key])
    assert not torch.equal(together["noise"], views(table, Draws(5, 3, [7, 8, 9]))["noise"])


def test_tokens_do_not_decay() -> None:
    objective = small()
    still = {id(p) for name, p in objective.named_parameters() if name.endswith("mask_token")}
    assert objective.no_weight_decay() == {f"densify.{i}.mask_token" for i in range(3)}
    groups = objective.parameter_groups(1e-3, 0.04)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert all(decay[token] == 0 for token in still)
    assert decay[id(objective.backbone.conv1.weight)] == 0.04
    assert decay[id(objective.backbone.bn1.weight)] == 0


def test_training_lowers_the_loss_and_the_export_is_a_plain_network(tmp_path: Any) -> None:
    objective = small()
    ramp = np.linspace(0, 255, 32)
    table = np.stack([np.add.outer(np.roll(ramp, 3 * i), ramp) / 2 for i in range(32)])[:, None].repeat(3, 1)
    data = PictureViews(table.astype(np.uint8), objective.views(), seed=0)
    recipe = replace(objective.recipe, batch_size=32, learning_rate=3e-3)
    told = train(objective, data, Training.of(recipe, n=32, epochs=30, seed=0, log_every=1))
    losses = [record["loss"] for record in told.history]
    assert losses[-1] < 0.8 * losses[0] and losses[-1] < 0.9  # painting nothing scores 1

    backbone = objective.export()
    dense = timm.create_model("resnet18", num_classes=0, **SMALL)
    dense.load_state_dict(backbone.state_dict(), strict=True)
    objective.backbone.load_state_dict(dense.state_dict(), strict=True)
    assert [type(m) for m in backbone.modules()] == [type(m) for m in dense.modules()]
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone.eval()(x), dense.eval()(x))  # not equal: other memory layouts
    assert torch.equal(objective.backbone.eval()(x), backbone(x))  # outside of forward the twins are dense
    again = load_backbone(str(save_backbone(backbone, tmp_path / "net", model_args=SMALL)))
    assert torch.equal(again(x), dense(x))
    assert objective.train()(batch_of(objective))["loss"].isfinite()  # it may be used on


def test_illustrations_keep_what_is_visible() -> None:
    objective = small().eval()
    batch = batch_of(objective)
    with torch.no_grad():
        shown = objective.illustrate(batch)
    assert list(shown) == ["picture", "visible", "painted"]
    big = visible_cells(batch["noise"], 0.6).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert (shown["visible"] * ~big == 0).all()
    for picture in shown.values():
        assert picture.shape == (4, 3, 32, 32) and picture.min() >= 0 and picture.max() <= 1
    torch.testing.assert_close(shown["painted"] * big, shown["picture"] * big)
    assert not torch.allclose(shown["painted"] * ~big, shown["picture"] * ~big)


@pytest.mark.parametrize(
    ("size", "told"), [(32, "64 works"), (70, "64 and 96 work"), (16, "64 works"), (100, "96 and 128 work")]
)
def test_wrong_sizes_name_right_ones_and_leave_the_network_alone(size: int, told: str) -> None:
    backbone = load_backbone("test_resnet.random")
    kinds = [type(module) for module in backbone.modules()]
    with pytest.raises(UsageError, match=f"image_size={size}.*{told}"):
        SparK(backbone, size)
    assert [type(module) for module in backbone.modules()] == kinds


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio=0.0"),
        ({"mask_ratio": 0.99}, "of 16 cells none or all"),
        ({"decoder_width": 20}, "decoder_width=20.*16 works"),
        ({"decoder_width": 4}, "8 works"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        small(**settings)


def test_a_vision_transformer_is_sent_on() -> None:
    with pytest.raises(BackboneError, match="VisionTransformer.*ResNet.*mae-thorax or sit"):
        SparK(load_backbone("test_vit.random"), 160)
