from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from offshelf.errors import BackboneError, UsageError
from offshelf.pretrain.tokens import check_patches, encode_visible, only

SMALL: dict[str, Any] = {"img_size": 64, "patch_size": 16, "embed_dim": 96, "depth": 2, "num_heads": 3}
NETWORKS = {
    "class token": ("vit_tiny_patch16_224", {}),
    "registers": ("test_vit2", {}),
    "no class token": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "positions of patches only": ("vit_tiny_patch16_224", {"no_embed_class": True}),
    "norm before": ("vit_tiny_patch16_224", {"pre_norm": True}),
    "any size": ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "rotary": ("eva02_tiny_patch14_224", {}),
    "rotary without table": ("vit_small_patch16_rope_224", {}),
    "rotary, mixed": ("vit_small_patch16_rope_mixed_224", {}),
    "rotary, mixed, with table": ("vit_small_patch16_rope_mixed_ape_224", {}),
    "rotary of dinov3": ("vit_small_patch16_dinov3", {}),
}


def network(kind: str) -> Any:
    name, settings = NETWORKS[kind]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **SMALL | settings).eval()
    for parameter in model.parameters():  # class tokens and layer scales start near zero and would hide mistakes
        nn.init.trunc_normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("kind", NETWORKS)
def test_with_all_patches_it_is_the_plain_forward_and_order_only_reorders(kind: str) -> None:
    model = network(kind)
    keys, x = list(model.state_dict()), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        plain = model.forward_features(x)
        whole = encode_visible(model, x, torch.arange(16).expand(3, -1))
        assert torch.equal(whole, plain)
        order = torch.stack([torch.randperm(16) for _ in range(3)])
        moved = encode_visible(model, x, order)
        assert torch.equal(model.forward_features(x), plain)  # the slot is as it was
    prefix = model.num_prefix_tokens
    expected = plain[:, prefix:].gather(1, order[:, :, None].expand(-1, -1, plain.shape[-1]))
    torch.testing.assert_close(moved[:, :prefix], plain[:, :prefix], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved[:, prefix:], expected, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("kind", NETWORKS)
def test_places_matter_and_left_out_patches_do_not(kind: str) -> None:
    model = network(kind)
    x, seen = torch.randn(2, 3, 64, 64), torch.tensor([[5, 0, 10], [3, 12, 6]])
    with torch.no_grad():
        tokens = encode_visible(model, x, seen)
        assert tokens.shape == (2, model.num_prefix_tokens + 3, 96)
        other = torch.randn(2, 3, 64, 64)
        for row in range(2):
            for number in seen[row].tolist():
                down, right = 16 * (number // 4), 16 * (number % 4)
                other[row, :, down : down + 16, right : right + 16] = x[row, :, down : down + 16, right : right + 16]
        assert torch.equal(encode_visible(model, other, seen), tokens)
        flat = torch.ones(1, 3, 64, 64)  # equal patches are told apart by their places alone
        one, two = (encode_visible(model, flat, torch.tensor([ids])) for ids in ([0, 1], [0, 14]))
    assert (one - two).abs().max() > 1e-3


def test_blocks_get_the_visible_tokens_only() -> None:
    model = network("class token")
    counted: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: counted.append(inputs[0].shape[1]))
    encode_visible(model, torch.randn(1, 3, 64, 64), torch.tensor([[7, 2]]))
    assert counted == [3, 3]


def test_an_own_rate_of_dropped_patches_rests_meanwhile_and_comes_back() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, patch_drop_rate=0.5, **SMALL).train()
    before = model.patch_drop
    assert encode_visible(model, torch.randn(1, 3, 64, 64), torch.arange(16)[None]).shape[1] == 17
    assert model.patch_drop is before
    with pytest.raises(KeyError), only(model, torch.arange(16)[None]):
        raise KeyError
    assert model.patch_drop is before


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("test_resnet", {}, "ResNet: it has no slot.*VisionTransformer.*Eva.*Take another"),
        ("swin_tiny_patch4_window7_224", {}, "SwinTransformer: it has no slot"),
        ("beit_base_patch16_224", {"depth": 1}, "Beit: it has no slot"),
        ("hiera_tiny_224", {}, "Hiera: it has no slot"),
        ("naflexvit_base_patch16_gap", {"depth": 1}, "NaFlexVit: it has no slot"),
        ("samvit_base_patch16", {"depth": 1}, "VisionTransformerSAM: it has no slot"),
        ("vit_tiny_r_s16_p8_224", {"depth": 1}, "VisionTransformer with HybridEmbed: .*overlapping"),
        ("vit_tiny_patch16_224", {"depth": 1, "patch_size": (16, 8)}, "patches are 16 x 8 pixels"),
    ],
)
def test_other_networks_are_refused_by_name(name: str, settings: dict[str, Any], told: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, **settings)
    with pytest.raises(BackboneError, match=told):
        check_patches(model, 224, "Take another")


def test_sizes_that_do_not_fit_name_some_that_do() -> None:
    model = network("class token")
    assert check_patches(model, 64, "") == 16
    with pytest.raises(UsageError, match="image_size=70: .*64 and 80 work"):
        check_patches(model, 70, "")
    with pytest.raises(UsageError, match="image_size=10: smaller than a patch of 16 pixels; 64 or more"):
        check_patches(model, 10, "")
    with pytest.raises(UsageError, match=r"built for 64 x 64 pixels.*set_input_size\(img_size=\(96, 96\)\)"):
        check_patches(model, 96, "")
    assert check_patches(network("any size"), 96, "") == 16
