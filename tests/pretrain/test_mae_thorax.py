from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from offshelf import pretrain
from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.data.picture_views import PictureViews
from offshelf.engine.draws import Draws
from offshelf.engine.train import Training, train
from offshelf.errors import BackboneError, UsageError
from offshelf.pretrain.mae_thorax import (
    MAE,
    NATURAL_IMAGES,
    Decoder,
    in_places,
    random_masking,
    reconstruction_loss,
    visible_count,
)
from offshelf.pretrain.patches import cell_moments, patchify, unpatchify
from offshelf.pretrain.settings import settings_of
from offshelf.pretrain.tokens import sincos_positions

ROTARY: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}
SMALL_DECODER = {"decoder_width": 32, "decoder_heads": 4, "decoder_depth": 1}


def small(backbone: Any = None, **settings: Any) -> MAE:
    """An objective of 4 x 4 patches of 16 pixels, of which four are visible."""
    if backbone is None:
        backbone = load_backbone("test_vit.random").requires_grad_(True)
        backbone.set_input_size(img_size=(64, 64))
    torch.manual_seed(0)
    return MAE(backbone, 64, **{"mask_ratio": 0.75} | SMALL_DECODER | settings)


def batch_of(objective: MAE, n: int = 4, epoch: int = 0) -> dict[str, torch.Tensor]:
    table = np.random.default_rng(0).integers(0, 256, (n, 3, 72, 72), dtype=np.uint8)
    return objective.views()(torch.from_numpy(table), Draws(0, epoch, range(n)))


# ---- masks ----


@pytest.mark.parametrize(
    ("patches", "ratio", "expected"),
    [(196, 0.5, 98), (196, 0.75, 49), (196, 0.8, 39), (196, 0.9, 19), (196, 0.95, 9), (64, 0.9, 6)],
)
def test_the_mask_ratio_is_exact(patches: int, ratio: float, expected: int) -> None:
    assert visible_count(patches, ratio) == expected
    kept, _, hidden = random_masking(torch.rand(20, patches), ratio)
    assert kept.shape == (20, expected)
    assert (hidden.sum(1) == patches - expected).all()
    assert not hidden.gather(1, kept).any()
    assert hidden.float().mean(0).std() > 0  # not one mask for all


def test_masking_by_hand_and_its_undoing() -> None:
    kept, restore, hidden = random_masking(torch.tensor([[0.9, 0.1, 0.5, 0.3]]), 0.5)
    assert kept.tolist() == [[1, 3]]
    assert restore.tolist() == [[3, 0, 2, 1]]
    assert hidden.tolist() == [[True, False, True, False]]
    visible, token = torch.tensor([[[10.0], [30.0]]]), torch.tensor([[[-1.0]]])
    assert in_places(visible, token, restore).flatten().tolist() == [-1, 10, -1, 30]
    everything = torch.rand(5, 16, 3)
    order, back, _ = random_masking(torch.rand(5, 16), 0.3)
    shown = everything.gather(1, order[:, :, None].expand(-1, -1, 3))
    filled = in_places(shown, torch.full((1, 1, 3), 7.0), back)
    assert torch.equal(filled[filled != 7].sort().values, shown.flatten().sort().values)
    assert ((filled == everything).all(2) | (filled == 7).all(2)).all()


# ---- the loss ----

PAINTED = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]])
TARGET = torch.tensor([[[1.0, 1.0], [1.0, 3.0], [2.0, 2.0], [3.0, 0.0]]])
HIDDEN = torch.tensor([[True, True, False, False]])


def test_the_loss_by_hand_is_over_hidden_patches_alone() -> None:
    assert reconstruction_loss(PAINTED, TARGET, HIDDEN, False).item() == pytest.approx(1.5)  # over all it is 1.875
    other = TARGET + 9 * ~HIDDEN[:, :, None]
    assert reconstruction_loss(PAINTED, other, HIDDEN, False).item() == pytest.approx(1.5)
    painted = PAINTED.clone().requires_grad_(True)
    reconstruction_loss(painted, TARGET, HIDDEN, False).backward()
    assert painted.grad.flatten().tolist() == [-0.5, -0.5, 0, -1, 0, 0, 0, 0]


def test_the_normalised_target_by_hand() -> None:
    # (1, 1) becomes (0, 0), (1, 3) -+1 / sqrt(2) by the unbiased variance 2: errors 0 and (1.707^2 + 0.293^2) / 2
    loss = reconstruction_loss(PAINTED, TARGET, HIDDEN, True).item()
    assert loss == pytest.approx(((1 + 0.5**0.5) ** 2 + (1 - 0.5**0.5) ** 2) / 4, rel=1e-5)
    torch.manual_seed(0)
    patches = 3 + 2 * torch.randn(2, 4, 48)
    nothing = torch.zeros_like(patches)
    everything = torch.ones(2, 4, dtype=torch.bool)
    assert reconstruction_loss(nothing, patches, everything, True).item() == pytest.approx(47 / 48, rel=1e-5)
    mean, deviation = cell_moments(patches)
    perfect = (patches - mean) / deviation
    assert reconstruction_loss(perfect, patches, everything, True).item() == 0


# ---- decoder ----


@pytest.mark.parametrize(("width", "depth", "expected"), [(512, 2, 6_998_272), (128, 2, 570_496), (512, 8, 25_912_576)])
def test_parameter_counts_of_the_paper_with_the_fixed_table(width: int, depth: int, expected: int) -> None:
    decoder = Decoder(384, width, depth, 16, side=14, prefix=1, patch=16)
    assert sum(p.numel() for p in decoder.parameters()) + decoder.positions.numel() == expected


def test_the_encoder_of_the_paper() -> None:
    with torch.device("meta"):
        encoder = timm.create_model("vit_small_patch16_224", num_classes=0)
    assert sum(p.numel() for p in encoder.parameters()) == 21_665_664


def test_the_decoder_knows_places_by_fixed_codes() -> None:
    decoder = Decoder(8, 16, 1, 4, side=3, prefix=2, patch=2)
    assert torch.equal(decoder.positions[0], sincos_positions(16, 3, prefix=2))
    assert "positions" not in dict(decoder.named_parameters())
    decoder.blocks, decoder.norm, decoder.pixels = nn.Identity(), nn.Identity(), nn.Identity()  # type: ignore[assignment]
    latent, restore = torch.randn(1, 2 + 2, 8), torch.tensor([[2, 0, 3, 4, 1, 5, 6, 7, 8]])
    out = decoder(latent, restore)
    assert out.shape == (1, 9, 16)
    torch.testing.assert_close(out[0, 1], decoder.embed(latent)[0, 2] + decoder.positions[0, 3])
    torch.testing.assert_close(out[0, 8], decoder.mask_token[0, 0] + decoder.positions[0, 10])


# ---- the objective ----


@pytest.mark.parametrize(("ratio", "tokens"), [(0.5, 8), (0.75, 4), (0.9, 1)])
def test_blocks_of_the_encoder_run_on_visible_tokens_only(ratio: float, tokens: int) -> None:
    objective = small(mask_ratio=ratio)
    seen: list[int] = []
    for block in objective.backbone.blocks:
        block.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape[1]))
    objective(batch_of(objective))
    assert seen == [1 + tokens] * len(objective.backbone.blocks)


def test_hidden_pixels_change_the_target_only() -> None:
    objective = small().eval()
    batch = batch_of(objective)
    kept, restore, hidden = random_masking(batch["noise"], 0.75)
    veil = unpatchify(hidden[:, :, None].expand(-1, -1, 768), 16)
    other = torch.where(veil, torch.randn_like(batch["pictures"]), batch["pictures"])
    latent = objective.encode(batch["pictures"], kept)
    assert latent.shape == (4, 5, 64)
    assert torch.equal(objective.encode(other, kept), latent)
    by_hand = (objective.decoder(latent, restore) - patchify(other, 16)).square().mean(2)[hidden].mean()
    loss = objective({"pictures": other, "noise": batch["noise"]})["loss"]
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert loss.item() != pytest.approx(objective(batch)["loss"].item(), rel=1e-3)


def test_positions_are_fixed_from_random_weights_and_kept_otherwise(tmp_path: Any) -> None:
    objective = small()
    table = objective.backbone.pos_embed
    assert torch.equal(table[0], sincos_positions(64, 4, prefix=1)) and not table.requires_grad
    before = table.clone()
    data = PictureViews(np.zeros((4, 3, 64, 64), np.uint8), objective.views(), seed=0)
    train(objective, data, Training.of(objective.recipe, n=4, steps=2, batch_size=4, seed=0))
    assert torch.equal(objective.backbone.pos_embed, before)
    own = load_backbone("test_vit.random").requires_grad_(True)
    own.set_input_size(img_size=(64, 64))
    was = own.pos_embed.clone()
    assert torch.equal(small(own, positions="own").backbone.pos_embed, was) and own.pos_embed.requires_grad
    # weights out of a folder keep their table unless told otherwise
    folder = save_backbone(own, tmp_path / "net")
    given = load_backbone(str(folder)).requires_grad_(True)
    assert torch.equal(small(given).backbone.pos_embed, was)
    assert torch.equal(small(given, positions="sincos").backbone.pos_embed, before)


def test_a_network_that_pools_before_its_norm_gets_one_for_the_decoder() -> None:
    pooled = timm.create_model("test_vit", num_classes=0, img_size=64, global_pool="avg")
    objective = small(pooled)
    assert isinstance(pooled.norm, nn.Identity) and isinstance(objective.norm, nn.LayerNorm)
    latent = objective.encode(batch_of(objective)["pictures"], torch.tensor([[0, 3]]).expand(4, -1))
    torch.testing.assert_close(latent.mean(2), torch.zeros(4, 3), atol=1e-5, rtol=0)
    assert isinstance(small().norm, nn.Identity)


@pytest.mark.parametrize("name", ["vit_small_patch16_rope_224", "vit_small_patch16_dinov3"])
def test_rotary_networks_learn_too(name: str) -> None:
    objective = small(timm.create_model(name, num_classes=0, **ROTARY)).train()
    batch = batch_of(objective)
    objective(batch)["loss"].backward()
    for block in objective.backbone.blocks:
        assert block.attn.qkv.weight.grad.abs().sum() > 0
    assert objective.grid.prefix == objective.backbone.num_prefix_tokens


def test_gradients_reach_everything_and_the_loss_is_determined_by_the_batch() -> None:
    objective = small()
    batch = batch_of(objective)
    loss = objective(batch)["loss"]
    loss.backward()
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    torch.manual_seed(99)
    assert objective(batch)["loss"].item() == loss.item()


def test_bf16() -> None:
    objective = small()
    batch = batch_of(objective)
    exact = objective(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(batch)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.03)


def test_it_compiles() -> None:
    objective = small().eval()
    batch = batch_of(objective)
    compiled = torch.compile(objective, backend="eager")
    assert compiled(batch)["loss"].item() == pytest.approx(objective(batch)["loss"].item(), rel=1e-5)
    again = batch_of(objective, epoch=1)  # other patches are visible
    assert compiled(again)["loss"].item() == pytest.approx(objective(again)["loss"].item(), rel=1e-5)


def test_views_are_the_same_one_by_one_and_pickle() -> None:
    objective = small()
    views = pickle.loads(pickle.dumps(objective.views()))
    table = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 3, 72, 72), dtype=np.uint8))
    together = views(table, Draws(5, 2, [7, 8, 9]))
    assert together["pictures"].shape == (3, 3, 64, 64) and together["noise"].shape == (3, 16)
    for i in range(3):
        alone = views(table[i : i + 1], Draws(5, 2, [7 + i]))
        for key, value in together.items():
            assert torch.equal(value[i : i + 1], alone[key])


def test_tokens_and_tables_do_not_decay() -> None:
    objective = small(positions="own")
    groups = objective.parameter_groups(1e-3, 0.05)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    network = objective.backbone
    for still in (objective.decoder.mask_token, network.pos_embed, network.cls_token, network.norm.weight):
        assert decay[id(still)] == 0
    assert decay[id(objective.decoder.pixels.weight)] == decay[id(network.blocks[0].attn.qkv.weight)] == 0.05


def test_training_lowers_the_loss_and_the_export_is_a_plain_network(tmp_path: Any) -> None:
    objective = small()
    grey = np.random.default_rng(0).integers(0, 256, (32, 1, 1, 1))  # what is hidden is as grey as what is seen
    table = np.broadcast_to(grey, (32, 3, 64, 64))
    data = PictureViews(np.uint8(table), objective.views(), seed=0)
    recipe = replace(objective.recipe, batch_size=32, learning_rate=3e-3)
    told = train(objective, data, Training.of(recipe, n=32, epochs=40, seed=0, log_every=1))
    losses = [record["loss"] for record in told.history]
    one_grey_for_all = (grey / 255 / 0.5).var()
    assert losses[0] > one_grey_for_all and np.mean(losses[-5:]) < 0.3 * one_grey_for_all

    backbone = objective.export()
    plain = timm.create_model("test_vit", num_classes=0, img_size=64)
    plain.load_state_dict(copy.deepcopy(backbone.state_dict()), strict=True)
    assert [type(m) for m in backbone.modules()] == [type(m) for m in plain.modules()]
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone.eval()(x), plain.eval()(x))
    again = load_backbone(str(save_backbone(backbone, tmp_path / "net")))
    assert torch.equal(again(x), plain(x))
    assert objective.train()(batch_of(objective))["loss"].isfinite()  # it may be used on


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_illustrations_keep_what_is_visible(norm_pix_loss: bool) -> None:
    objective = small(norm_pix_loss=norm_pix_loss).eval()
    batch = batch_of(objective)
    with torch.no_grad():
        shown = objective.illustrate(batch)
    assert list(shown) == ["picture", "visible", "painted"]
    kept, restore, hidden = random_masking(batch["noise"], 0.75)
    veil = unpatchify(hidden[:, :, None].expand(-1, -1, 768), 16)
    assert veil.float().mean() == 0.75
    assert (shown["visible"][veil] == 0).all()
    for picture in shown.values():
        assert picture.shape == (4, 3, 64, 64) and picture.min() >= 0 and picture.max() <= 1
    assert torch.equal(shown["visible"][~veil], shown["picture"][~veil])
    assert torch.equal(shown["painted"][~veil], shown["picture"][~veil])
    with torch.no_grad():
        painted = objective.decoder(objective.encode(batch["pictures"], kept), restore)
    if norm_pix_loss:
        mean, deviation = cell_moments(patchify(batch["pictures"], 16))
        painted = painted * deviation + mean
    expected = objective.pictures(unpatchify(painted, 16))
    torch.testing.assert_close(shown["painted"][veil], expected[veil])


# ---- settings and refusals ----


def test_natural_images_are_settings_that_the_command_takes() -> None:
    words = ["mask_ratio=0.75", "crop_scale=0.2,1", "norm_pix_loss=true", "decoder_depth=8"]
    assert settings_of(MAE, words) == NATURAL_IMAGES
    objective = small(**NATURAL_IMAGES)
    assert (objective.mask_ratio, objective.norm_pix_loss, len(objective.decoder.blocks)) == (0.75, True, 8)
    assert objective.views().scale == (0.2, 1.0)


@pytest.mark.parametrize(
    ("size", "told"),
    [(100, "image_size=100.*96 and 112 work"), (8, "image_size=8.*64 works"), (48, "at least 4 x 4 patches; 64 works")],
)
def test_wrong_sizes_name_right_ones(size: int, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        MAE(load_backbone("test_vit.random"), size)


def test_the_verb_refuses_a_picture_smaller_than_a_patch(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="image_size=8.*64 works"):
        pretrain(str(folder), method="mae-thorax", backbone="test_vit.random", image_size=8, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio=0.0"),
        ({"mask_ratio": 1.0}, "mask_ratio=1.0"),
        ({"mask_ratio": 1e-17}, "all 16 patches would be visible"),
        ({"mask_ratio": 0.99}, "image_size=64.*at least 10 x 10 patches; 160 works"),
        ({"decoder_width": 20}, "decoder_width=20.*multiple of 4 x decoder_heads, 16; 16 works"),
        ({"decoder_depth": 0}, "decoder_depth=0"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        small(**settings)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("test_resnet", "ResNet.*spark or selfie"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer.*no slot.*VisionTransformer.*Eva"),
    ],
)
def test_other_networks_are_sent_on(name: str, told: str) -> None:
    with pytest.raises(BackboneError, match=told):
        MAE(timm.create_model(name, num_classes=0), 224)
