from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from offshelf.backbones.load import load_backbone
from offshelf.errors import BackboneError, UsageError
from offshelf.pretrain.patches import cell_moments, patchify, unpatchify
from offshelf.pretrain.tokens import (
    encode_visible,
    fix_positions,
    only_visible,
    sincos_positions,
    token_grid,
)

# Class token with and without a position, registers, distilled, none at all, drawn dropping; rotary of four kinds.
NETWORKS: dict[str, dict[str, Any]] = {
    "test_vit": {},
    "test_vit3": {},
    "vit_tiny_patch16_224": {"patch_drop_rate": 0.5},
    "vit_small_patch16_224": {"class_token": False, "global_pool": "avg", "reg_tokens": 4},
    "vit_little_patch16_reg4_gap_256": {},
    "deit3_small_patch16_224": {"dynamic_img_size": True},
    "deit_tiny_distilled_patch16_224": {},
    "vit_base_patch16_clip_224": {"embed_dim": 96, "num_heads": 3},
    "eva02_tiny_patch14_224": {},
    "vit_small_patch16_rope_224": {},
    "vit_small_patch16_rope_mixed_224": {},
    "vit_small_patch16_rope_mixed_ape_224": {},
    "vit_small_patch16_dinov3": {},
}


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network of two blocks on 4 x 4 patches, and two pictures for it."""
    size = 56 if "patch14" in name else 64
    torch.manual_seed(0)
    depth = {} if name.startswith("test_") else {"depth": 2}
    model = timm.create_model(name, num_classes=0, img_size=size, **depth, **NETWORKS[name]).eval()
    with torch.no_grad():
        for name_of, parameter in model.named_parameters():  # drawn too small, a missing part would not be noticed
            if parameter.ndim == 3:
                parameter.normal_()
            elif parameter.ndim == 2:
                parameter.mul_(4)
            elif "gamma" in name_of:
                parameter.fill_(1)
    return model, torch.randn(2, 3, size, size)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_all_tokens_kept_is_the_plain_network_and_order_does_not_count(name: str) -> None:
    model, pictures = network(name)
    grid = token_grid(model, pictures.shape[-1])
    plain = model.forward_features(pictures)
    assert plain.shape == (2, grid.prefix + 16, grid.width)
    everything = torch.arange(16).expand(2, -1)
    assert torch.equal(encode_visible(model, pictures, everything), plain)
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    shuffled = encode_visible(model, pictures, order)
    place = order[:, :, None].expand(-1, -1, grid.width) + grid.prefix
    torch.testing.assert_close(shuffled[:, grid.prefix :], plain.gather(1, place), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shuffled[:, : grid.prefix], plain[:, : grid.prefix], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_hidden_pixels_never_reach_the_blocks_and_positions_do(name: str) -> None:
    model, pictures = network(name)
    grid = token_grid(model, pictures.shape[-1])
    ids = torch.tensor([[3, 8, 1], [15, 0, 6]])
    seen = torch.zeros(2, 16, dtype=torch.bool).scatter_(1, ids, True)
    patches = patchify(pictures, grid.patch)
    other = unpatchify(torch.where(seen[:, :, None], patches, 7 * torch.randn_like(patches)), grid.patch)
    latent = encode_visible(model, pictures, ids)
    assert latent.shape == (2, grid.prefix + 3, grid.width)
    assert torch.equal(encode_visible(model, other, ids), latent)
    # the same three patches at other places are another thing
    moved = torch.tensor([[4, 9, 2], [14, 1, 7]])
    index = moved[:, :, None].expand(-1, -1, patches.shape[-1])
    elsewhere = patches.scatter(1, index, patches.gather(1, ids[:, :, None].expand_as(index)))
    assert not torch.allclose(encode_visible(model, unpatchify(elsewhere, grid.patch), moved), latent, atol=1e-2)


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_the_network_is_left_as_it_was(name: str) -> None:
    model, pictures = network(name)
    slot, before = model.patch_drop, copy.deepcopy(model.state_dict())
    with pytest.raises(ZeroDivisionError), only_visible(model, torch.zeros(2, 1, dtype=torch.long)):
        1 / 0  # noqa: B018
    assert model.patch_drop is slot
    assert model.state_dict().keys() == before.keys()
    plain = model.forward_features(pictures)
    encode_visible(model.train(), pictures, torch.zeros(2, 1, dtype=torch.long)).sum().backward()
    assert torch.equal(model.eval().forward_features(pictures), plain)


def test_every_block_runs_on_visible_tokens_alone() -> None:
    model, pictures = network("vit_small_patch16_rope_224")
    seen: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape[1]))
    encode_visible(model, pictures, torch.tensor([[0, 1], [5, 2]]))
    assert seen == [2 + model.num_prefix_tokens] * 2


def test_intermediates_of_visible_tokens() -> None:
    model, pictures = network("test_vit")
    ids = torch.tensor([[2, 0, 7], [1, 5, 9]])
    with only_visible(model, ids), torch.no_grad():
        last = model.forward_intermediates(pictures, norm=True, output_fmt="NLC", intermediates_only=True)[-1]
    with torch.no_grad():
        torch.testing.assert_close(last, encode_visible(model, pictures, ids)[:, model.num_prefix_tokens :])


# ---- patches and positions ----


def test_patchify_by_hand_and_back() -> None:
    pictures = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4)
    patches = patchify(pictures, 2)
    assert patches.shape == (2, 4, 12)
    # second patch: upper right; its pixels row by row, the three channels side by side
    assert patches[0, 1].tolist() == [2, 18, 34, 3, 19, 35, 6, 22, 38, 7, 23, 39]
    assert torch.equal(unpatchify(patches, 2), pictures)


def test_moments_are_the_unbiased_ones() -> None:
    mean, deviation = cell_moments(torch.tensor([[[1.0, 3.0], [5.0, 5.0]]]))
    assert mean.flatten().tolist() == [2.0, 5.0]
    assert deviation.flatten().tolist() == pytest.approx([np.sqrt(2 + 1e-6), 1e-3])


def test_codes_of_positions_by_hand() -> None:
    codes = sincos_positions(8, 3, prefix=2)
    assert codes.shape == (11, 8)
    assert (codes[:2] == 0).all()
    # row 1, column 2 is patch 5; rates 1 and 1/100; column first
    s, c = np.sin, np.cos
    by_hand = [s(2), s(0.02), c(2), c(0.02), s(1), s(0.01), c(1), c(0.01)]
    assert codes[2 + 5].tolist() == pytest.approx(by_hand, abs=1e-6)
    with pytest.raises(UsageError, match="width=6"):
        sincos_positions(6, 3)


def test_fixed_positions_leave_prefix_tokens_without_one() -> None:
    model, pictures = network("test_vit")
    assert fix_positions(model, token_grid(model, 64))
    assert not model.pos_embed.requires_grad
    assert torch.equal(model.pos_embed[0], sincos_positions(64, 4, prefix=1))
    no_class, _ = network("deit3_small_patch16_224")  # its class token has no place in the table
    fix_positions(no_class, token_grid(no_class, 64))
    assert torch.equal(no_class.pos_embed[0], sincos_positions(384, 4))
    assert not fix_positions(*_rotary())


def _rotary() -> Any:
    model, _ = network("vit_small_patch16_rope_224")
    return model, token_grid(model, 64)


# ---- refusals ----


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("test_resnet", "ResNet.*no slot.*spark or selfie"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer.*no slot.*VisionTransformer.*Eva"),
        ("convit_tiny", "ConVit"),
        ("cait_xxs24_224", "Cait"),
        ("beit_base_patch16_224", "Beit"),
        ("hiera_tiny_224", "Hiera"),
        ("naflexvit_base_patch16_gap", "NaFlexVit"),
        ("test_vit_relpos", "VisionTransformerRelPos"),
        ("samvit_base_patch16", "VisionTransformerSAM"),
        ("vit_tiny_r_s16_p8_224", "HybridEmbed.*neighbours' pixels"),
    ],
)
def test_other_networks_are_refused_by_name(name: str, told: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    with pytest.raises(BackboneError, match=told):
        token_grid(model, 224)


def test_oblong_patches_are_refused() -> None:
    model = timm.create_model("test_vit", num_classes=0, img_size=64, patch_size=(16, 8))
    with pytest.raises(BackboneError, match="16 x 8"):
        token_grid(model, 64)


@pytest.mark.parametrize(
    ("size", "least", "told"),
    [
        (100, 1, "image_size=100.*16 pixels; 96 and 112 work"),
        (8, 1, "image_size=8.*16 works"),
        (48, 4, "image_size=48.*at least 4 x 4 patches; 64 works"),
        (64, 1, r"image_size=64.*built for 160 x 160.*set_input_size\(img_size=\(64, 64\)\)"),
    ],
)
def test_wrong_sizes_name_right_ones(size: int, least: int, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        token_grid(load_backbone("test_vit.random"), size, least)
