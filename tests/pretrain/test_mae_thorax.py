from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch

from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.data.picture_views import PictureViews
from offshelf.engine.draws import Draws
from offshelf.engine.train import Training, train
from offshelf.errors import BackboneError, UsageError
from offshelf.pretrain.mae_thorax import (
    MAE,
    Decoder,
    reconstruction_loss,
    shuffled,
    sincos_positions,
    visible_count,
)
from offshelf.pretrain.patches import patchify, unpatchify

SMALL: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def small(
    seed: int = 0, name: str = "vit_tiny_patch16_224", network: dict[str, Any] | None = None, **settings: Any
) -> MAE:
    """An objective at 64 pixels, 64 patches of 8 pixels, of which 6 are visible."""
    torch.manual_seed(seed)
    backbone = timm.create_model(name, num_classes=0, **SMALL | (network or {}))
    return MAE(backbone, 64, **{"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2} | settings)


def batch_of(objective: MAE, n: int = 4, epoch: int = 0) -> dict[str, torch.Tensor]:
    table = np.random.default_rng(0).integers(0, 256, (n, 3, 70, 70), dtype=np.uint8)
    return objective.views()(torch.from_numpy(table), Draws(0, epoch, range(n)))


# ---- masks ----


@pytest.mark.parametrize(
    ("patches", "ratio", "visible"),
    [(196, 0.5, 98), (196, 0.75, 49), (196, 0.8, 39), (196, 0.9, 19), (196, 0.95, 9), (64, 0.9, 6), (144, 0.9, 14)],
)
def test_visible_patches_are_cut_off_in_floating_point(patches: int, ratio: float, visible: int) -> None:
    assert visible_count(patches, ratio) == visible
    seen, back, hidden = shuffled(torch.rand(30, patches), visible)
    assert seen.shape == (30, visible) and back.shape == (30, patches)
    assert (hidden.sum(1) == patches - visible).all()
    assert len({tuple(sorted(row)) for row in seen.tolist()}) == 30  # drawn for each picture
    for row in range(30):
        assert not hidden[row, seen[row]].any()


def test_the_order_is_undone() -> None:
    seen, back, hidden = shuffled(torch.tensor([[0.9, 0.1, 0.5, 0.3]]), 2)
    assert (seen.tolist(), back.tolist(), hidden.tolist()) == ([[1, 3]], [[3, 0, 2, 1]], [[True, False, True, False]])
    noise = torch.rand(5, 64)
    _, back, _ = shuffled(noise, 6)
    order = noise.argsort(1)
    assert torch.equal(order.gather(1, back), torch.arange(64).expand(5, -1))


def test_the_decoder_puts_every_token_at_its_place() -> None:
    torch.manual_seed(0)
    decoder: Any = Decoder(8, 1, 4, 16, 1, 2, 5).eval()
    decoder.blocks = torch.nn.Sequential()
    decoder.norm = torch.nn.Identity()
    decoder.pixels = torch.nn.Identity()
    tokens = torch.randn(3, 1 + 4, 8)
    seen, back, hidden = shuffled(torch.rand(3, 16), 4)
    placed = decoder(tokens, back) - decoder.positions
    expected = decoder.embed(tokens[:, 1:])
    for row in range(3):
        torch.testing.assert_close(placed[row, seen[row]], expected[row])
        torch.testing.assert_close(placed[row, hidden[row]], decoder.mask_token[0].expand(12, -1))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_rope_mixed_ape_224"])
def test_cost_falls_with_the_mask_ratio(name: str) -> None:
    """Only K visible patches, and the prefix tokens, reach the blocks; all reach the decoder's."""
    for ratio, visible in ((0.9, 6), (0.75, 16), (0.5, 32)):
        objective = small(name=name, mask_ratio=ratio)
        counted: dict[str, int] = {}
        objective.backbone.blocks[1].register_forward_hook(lambda _, i, o, c=counted: c.update(encoder=o.shape[1]))
        objective.decoder.blocks[0].register_forward_hook(lambda _, i, o, c=counted: c.update(decoder=o.shape[1]))
        objective(batch_of(objective))
        assert counted == {"encoder": 1 + visible, "decoder": 65}


def test_hidden_pixels_never_reach_the_encoder_and_visible_targets_not_the_loss() -> None:
    objective = small().eval()
    batch = batch_of(objective)
    seen, back, hidden = shuffled(batch["noise"], objective.visible)
    patches = patchify(batch["pictures"], 8)
    other = unpatchify(torch.where(hidden[:, :, None], torch.randn_like(patches), patches), 8)
    tokens = objective.encode(batch["pictures"], seen)
    assert torch.equal(objective.encode(other, seen), tokens)
    painted = objective.decoder(tokens, back)
    turned = torch.where(hidden[:, :, None], patches, torch.randn_like(patches))
    assert torch.equal(reconstruction_loss(painted, turned, hidden), reconstruction_loss(painted, patches, hidden))
    assert objective(batch)["loss"].item() == pytest.approx(reconstruction_loss(painted, patches, hidden).item())


# ---- the loss ----


def test_a_loss_by_hand() -> None:
    painted = torch.tensor([[[0.0, 0], [1, 1], [2, 2], [3, 3]]])
    target = torch.tensor([[[1.0, 1], [1, 3], [2, 2], [3, 0]]])
    hidden = torch.tensor([[True, True, False, False]])
    assert reconstruction_loss(painted, target, hidden).item() == 1.5  # over all patches it would be 1.875


def test_targets_are_pixels_or_patches_normalised_by_themselves() -> None:
    raw, own = small(), small(variant="natural")
    pictures = torch.zeros(1, 3, 64, 64)
    pictures[0, :, :8, 8:16] = torch.tensor([1.0, 3.0, 5.0])[
        :, None, None
    ]  # patch 1: means of 3 numbers, 64 times each
    assert raw.target(pictures)[0, 1, :6].tolist() == [1, 3, 5, 1, 3, 5]  # row, column, channel
    deviation = (192 * 8 / 3 / 191 + 1e-6) ** 0.5  # unbiased
    assert own.target(pictures)[0, 1, :3].tolist() == pytest.approx([-2 / deviation, 0, 2 / deviation], abs=1e-6)
    assert (own.target(pictures)[0, 0] == 0).all()


def test_the_recipes() -> None:
    thorax, natural = small(), small(variant="natural")
    assert (thorax.mask_ratio, thorax.crop_scale, thorax.normalised_target, thorax.visible) == (0.9, (0.5, 1), False, 6)
    assert (natural.mask_ratio, natural.crop_scale, natural.normalised_target, natural.visible) == (
        0.75,
        (0.2, 1),
        True,
        16,
    )
    mixed = small(variant="natural", mask_ratio=0.5, crop_scale=(0.4, 0.9), normalised_target=False)
    assert (mixed.mask_ratio, mixed.views().scale, mixed.normalised_target) == (0.5, (0.4, 0.9), False)
    assert (MAE.recipe.betas, MAE.recipe.weight_decay, MAE.recipe.warmup) == ((0.9, 0.95), 0.05, 0.05)


# ---- positions and sizes of the paper ----


def test_codes_of_places() -> None:
    codes = sincos_positions(8, 3).view(3, 3, 8)  # row, column
    assert codes[0, 0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    s, c = np.sin([2, 0.02]), np.cos([2, 0.02])
    assert codes[0, 2].tolist() == pytest.approx([*s, *c, 0, 0, 1, 1], abs=1e-6)  # the column stands first
    assert codes[2, 0].tolist() == pytest.approx([0, 0, 1, 1, *s, *c], abs=1e-6)
    with pytest.raises(UsageError, match="width 6: .*such as 8"):
        sincos_positions(6, 2)


def test_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        backbone = timm.create_model("vit_small_patch16_224", num_classes=0)
    assert sum(p.numel() for p in backbone.parameters()) == 21_665_664

    def count(encoder: int, width: int, depth: int) -> int:
        decoder = Decoder(encoder, 1, 14, width, depth, 16, 768)
        return sum(p.numel() for p in decoder.parameters()) + 197 * width  # and the paper's table with a class token

    assert count(384, 512, 2) == 6_998_272
    assert count(384, 128, 2) == 570_496
    with torch.device("meta"):
        decoder = Decoder(768, 1, 14, 512, 8, 16, 768)
    assert sum(p.numel() for p in decoder.parameters()) + 197 * 512 == 26_109_184


def test_fixed_positions_belong_to_random_weights_and_do_not_learn() -> None:
    random: Any = load_backbone("test_vit.random", num_classes=0).requires_grad_(True)
    random.set_input_size(img_size=(96, 96))
    objective = MAE(random, 96, mask_ratio=0.5, decoder_width=32, decoder_heads=2)
    codes = torch.cat([torch.zeros(1, 64), sincos_positions(64, 6)])[None]
    assert torch.equal(random.pos_embed, codes) and not random.pos_embed.requires_grad
    data = PictureViews(np.random.default_rng(0).integers(0, 256, (8, 3, 96, 96), dtype=np.uint8), objective.views())
    train(objective, data, Training.of(objective.recipe, n=8, steps=2, batch_size=4))
    assert torch.equal(random.pos_embed, codes)
    assert torch.equal(objective.decoder.positions[0], sincos_positions(32, 6))
    assert objective.export().pos_embed.requires_grad  # fine-tuning trains them

    given = small()  # of a network that is not known to be random the table is kept
    before = given.backbone.pos_embed.detach().clone()
    assert given.backbone.pos_embed.requires_grad
    assert (before[0, 1] != sincos_positions(48, 8)[0]).any()
    given(batch_of(given))["loss"].backward()
    assert given.backbone.pos_embed.grad.abs().sum() > 0
    assert not small(fixed_positions=True).backbone.pos_embed.requires_grad
    assert not small(name="vit_small_patch16_rope_224", fixed_positions=True).fixed  # it has no table


# ---- the objective ----


def test_the_product_is_the_network_and_a_pooled_one_gets_a_norm(tmp_path: Any) -> None:
    settings = {"global_pool": "avg"}
    objective = small(network=settings)
    assert isinstance(objective.norm, torch.nn.LayerNorm) and isinstance(small().norm, torch.nn.Identity)
    data = PictureViews(np.random.default_rng(0).integers(0, 256, (8, 3, 64, 64), dtype=np.uint8), objective.views())
    train(objective, data, Training.of(objective.recipe, n=8, steps=2, batch_size=4))
    plain = objective.export().eval()
    again = load_backbone(str(save_backbone(plain, tmp_path / "net", model_args=SMALL | settings)))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again(x), plain(x))
    torch.testing.assert_close(objective.backbone.eval()(x), plain(x))
    assert type(plain.patch_drop) is torch.nn.Identity


def test_bf16_and_views_one_by_one() -> None:
    objective = small()
    batch = batch_of(objective)
    exact = objective(batch)["loss"].item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(batch)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact, rel=0.03)
    views = pickle.loads(pickle.dumps(objective.views()))
    table = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 3, 70, 70), dtype=np.uint8))
    together = views(table, Draws(5, 2, [7, 8, 9]))
    for i in range(3):
        for key, value in views(table[i : i + 1], Draws(5, 2, [7 + i])).items():
            assert torch.equal(value, together[key][i : i + 1])


def test_it_learns_to_paint() -> None:
    """Pictures of one grey each: a tenth of the patches tells the rest."""
    objective = small(flip=False, crop_scale=(1.0, 1.0))
    greys = np.linspace(0, 255, 64).astype(np.uint8)[:, None, None, None]
    data = PictureViews(np.broadcast_to(greys, (64, 3, 64, 64)).copy(), objective.views(), seed=0)
    recipe = replace(objective.recipe, learning_rate=1e-2)
    told = train(objective, data, Training.of(recipe, n=64, steps=60, batch_size=32, log_every=10)).history
    assert told[0]["loss"] > 0.4 and told[-1]["loss"] < 0.2, told


@pytest.mark.parametrize("variant", ["thorax", "natural"])
def test_illustrations_keep_visible_patches(variant: Any) -> None:
    objective = small(variant=variant).eval()
    batch = batch_of(objective)
    twin = copy.deepcopy(objective)
    with torch.no_grad():
        shown = objective.illustrate(batch)
        seen, back, hidden = shuffled(batch["noise"], objective.visible)
        painted = twin.decoder(twin.encode(batch["pictures"], seen), back)
    picture, visible, filled = (patchify(one, 8) for one in shown.values())
    assert list(shown) == ["picture", "visible", "painted"]
    assert torch.equal(visible[~hidden], picture[~hidden]) and (visible[hidden] == 0).all()
    torch.testing.assert_close(filled[~hidden], picture[~hidden])
    patches = patchify(batch["pictures"], 8)
    if variant == "natural":
        painted = painted * (patches.var(-1, keepdim=True) + 1e-6).sqrt() + patches.mean(-1, keepdim=True)
    expected = patchify(objective.pictures(unpatchify(painted, 8)), 8)
    torch.testing.assert_close(filled[hidden], expected[hidden])


# ---- what is refused ----


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mask_ratio": 0.99}, "mask_ratio=0.99: of 64 patches 0 would be visible.*0.984"),
        ({"mask_ratio": 0.0}, "mask_ratio=0.0: of 64 patches 64"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"variant": "x-ray"}, "variant='x-ray': expected one of thorax, natural"),
        ({"decoder_width": 50, "decoder_heads": 3}, "decoder_width=50.*such as 96"),
        ({"decoder_depth": 0}, "decoder_depth=0"),
    ],
)
def test_wrong_settings_name_right_ones(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        small(**settings)


def test_wrong_networks_and_sizes_name_right_ones() -> None:
    with pytest.raises(BackboneError, match="ResNet: .*spark, selfie"):
        MAE(load_backbone("test_resnet.random"), 64)
    with pytest.raises(UsageError, match="image_size=100: .*96 and 112 work"):
        MAE(load_backbone("test_vit.random"), 100)
