from __future__ import annotations

import math
from itertools import product

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from offshelf.backbones.architectures import register_architectures
from offshelf.backbones.cvt import CvT
from offshelf.backbones.cvt_stages import Block, ConvolutionalAttention
from offshelf.backbones.export import save_backbone
from offshelf.backbones.fold import fold_batch_norms
from offshelf.backbones.load import load_backbone
from offshelf.backbones.parameter_groups import parameter_groups
from offshelf.errors import BackboneError, UsageError

register_architectures()
TINY = {
    "embed_dims": (16, 32, 64),
    "depths": (1, 1, 2),
    "heads": (1, 2, 4),
    "patch_kernels": (3, 3, 3),
    "patch_strides": (2, 2, 2),
    "patch_paddings": (1, 1, 1),
    "num_classes": 5,
}


def tiny(seed: int = 0, **settings: object) -> CvT:
    torch.manual_seed(seed)
    return CvT(**{**TINY, **settings}).eval()  # type: ignore[arg-type]


def restless(model: nn.Module, seed: int = 1) -> nn.Module:
    """The network with norms, statistics and biases that are no longer ones and zeros, and weights that say more."""
    torch.manual_seed(seed)
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if name == "running_var" or (name == "weight" and isinstance(part, nn.LayerNorm | nn.BatchNorm2d)):
                tensor.data.uniform_(0.5, 1.5)
            elif name in ("bias", "running_mean"):
                tensor.data.normal_(std=0.3)
    return model


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---- the paper's networks --------------------------------------------------------------------------------------------


def counted_by_hand(dims: tuple[int, ...], depths: tuple[int, ...], kernels: tuple[int, ...]) -> int:
    """Embeddings k^2 C' C + 3 C; blocks 4 C + 33 C + 4 (C^2 + C) + 8 C^2 + 5 C; class token, norm, 1,000 classes."""
    total, channels = 0, 3
    for dim, depth, kernel in zip(dims, depths, kernels):
        total += channels * dim * kernel**2 + 3 * dim
        total += depth * (4 * dim + 3 * 11 * dim + 4 * (dim**2 + dim) + 8 * dim**2 + 5 * dim)
        channels = dim
    return total + 3 * channels + 1000 * (channels + 1)


@pytest.fixture(scope="module")
def cvt_13() -> CvT:
    """Shapes alone, no weights."""
    with torch.device("meta"):
        return timm.create_model("cvt_13", drop_path_rate=0.1).eval()


@pytest.mark.parametrize(
    ("name", "parameters", "dims", "depths"),
    [
        ("cvt_13", 19_997_480, (64, 192, 384), (1, 2, 10)),
        ("cvt_21", 31_622_696, (64, 192, 384), (1, 4, 16)),
        ("cvt_w24", 277_196_392, (192, 768, 1024), (2, 2, 20)),
    ],
)
def test_the_number_of_parameters(name: str, parameters: int, dims: tuple[int, ...], depths: tuple[int, ...]) -> None:
    with torch.device("meta"):
        assert count(timm.create_model(name)) == parameters == counted_by_hand(dims, depths, (7, 3, 3))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((224, 224), [(64, 56, 56), (192, 28, 28), (384, 14, 14)]),
        ((192, 160), [(64, 48, 40), (192, 24, 20), (384, 12, 10)]),
        ((32, 32), [(64, 8, 8), (192, 4, 4), (384, 2, 2)]),
        ((3, 4), [(64, 1, 1), (192, 1, 1), (384, 1, 1)]),
    ],
)
def test_maps_at_any_size(cvt_13: CvT, size: tuple[int, int], expected: list[tuple[int, ...]]) -> None:
    tokens, maps = cvt_13.forward_intermediates(torch.empty(2, 3, *size, device="meta"))
    assert [tuple(part.shape[1:]) for part in maps] == expected
    assert tokens.shape == (2, 1 + expected[2][1] * expected[2][2], 384)
    assert [(info["num_chs"], info["reduction"]) for info in cvt_13.feature_info] == [(64, 4), (192, 8), (384, 16)]


def test_multiplications_of_cvt_13_at_224(cvt_13: CvT) -> None:
    """Counted from the shapes that pass, against the 4.53 billion of the paper's table."""
    total = 0

    def multiplied(part: nn.Module, given: tuple, out: torch.Tensor) -> None:
        nonlocal total
        if isinstance(part, nn.Linear):
            total += out.numel() * part.in_features
        elif isinstance(part, nn.Conv2d):
            total += out.numel() * part.in_channels // part.groups * math.prod(part.kernel_size)
        elif isinstance(part, ConvolutionalAttention):
            height, width = given[1]
            places = out.shape[1]
            keys = places - height * width + math.ceil(height / 2) * math.ceil(width / 2)
            total += 2 * places * keys * out.shape[2]

    hooks = [part.register_forward_hook(multiplied) for part in cvt_13.modules()]
    cvt_13(torch.empty(1, 3, 224, 224, device="meta"))
    for hook in hooks:
        hook.remove()
    assert total / 1e9 == pytest.approx(4.53, abs=0.06)


# ---- convolutional projection ----------------------------------------------------------------------------------------


def test_a_single_head_by_hand() -> None:
    part = ConvolutionalAttention(2, 1, projection="linear", qkv_bias=False)
    for linear in (part.proj_q, part.proj_k, part.proj_v, part.proj):
        nn.init.eye_(linear.weight)
    nn.init.zeros_(part.proj.bias)
    assert part.scale == pytest.approx(0.7071, abs=1e-4)
    out = part(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), (1, 2))
    own = math.exp(0.5**0.5) / (math.exp(0.5**0.5) + 1)  # logits 0.7071 to itself, 0 to the other
    torch.testing.assert_close(out[0], torch.tensor([[own, 1 - own], [1 - own, own]]))


@pytest.mark.parametrize(("scale", "factor"), [("dim", 8**-0.5), ("head", 2**-0.5)])
def test_the_logits_are_scaled_by_the_width_or_by_a_heads(scale: str, factor: float) -> None:
    assert ConvolutionalAttention(8, 4, scale=scale).scale == pytest.approx(factor)


@pytest.mark.parametrize("prefix", [0, 1])
def test_with_a_delta_for_a_convolution_it_is_plain_attention(prefix: int) -> None:
    torch.manual_seed(0)
    part = ConvolutionalAttention(12, 3, kv_stride=1).eval()
    for convolve in (part.conv_proj_q, part.conv_proj_k, part.conv_proj_v):
        convolve.conv.weight.data.zero_()[:, :, 1, 1] = 1.0
        convolve.bn.running_var.fill_(1 - convolve.bn.eps)
    tokens = torch.randn(2, prefix + 20, 12)
    plain = nn.MultiheadAttention(12, 3, batch_first=True)
    joined = torch.cat(
        [part.proj_q.weight * 3**-0.5, part.proj_k.weight, part.proj_v.weight]
    )  # torch scales by a head's
    plain.in_proj_weight.data.copy_(joined)
    plain.in_proj_bias.data.copy_(torch.cat([part.proj_q.bias * 3**-0.5, part.proj_k.bias, part.proj_v.bias]))
    plain.out_proj.load_state_dict(part.proj.state_dict())
    torch.testing.assert_close(part(tokens, (4, 5)), plain(tokens, tokens, tokens)[0], atol=1e-5, rtol=1e-5)


def slow_projection(tokens: torch.Tensor, convolve: nn.Module, linear: nn.Linear, size: tuple[int, int], stride: int):
    """The same by loops over places, windows and channels, for one picture with a class token."""
    norm, rows = convolve.bn, [tokens[0]]
    grid = tokens[1:].view(*size, -1)
    for top, left in product(range(0, size[0], stride), range(0, size[1], stride)):
        total = torch.zeros(tokens.shape[1])
        for down, right in product(range(3), range(3)):
            row, column = top + down - 1, left + right - 1
            if 0 <= row < size[0] and 0 <= column < size[1]:
                total += convolve.conv.weight[:, 0, down, right] * grid[row, column]
        rows.append((total - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias)
    return linear(torch.stack(rows))


def test_queries_keys_and_values_against_loops() -> None:
    torch.manual_seed(0)
    part = restless(ConvolutionalAttention(6, 2)).eval()
    tokens, size = torch.randn(1, 1 + 7 * 6, 6), (7, 6)
    q, k, v = part.project(tokens, size)
    assert q.shape == (1, 2, 43, 3) and k.shape == v.shape == (1, 2, 1 + 4 * 3, 3)
    for found, letter, stride in ((q, "q", 1), (k, "k", 2), (v, "v", 2)):
        convolve, linear = getattr(part, f"conv_proj_{letter}"), getattr(part, f"proj_{letter}")
        by_hand = slow_projection(tokens[0], convolve, linear, size, stride)
        torch.testing.assert_close(found[0].transpose(0, 1).flatten(1), by_hand, atol=1e-5, rtol=1e-5)


def test_odd_maps_have_keys_for_the_last_row_too() -> None:
    _, k, _ = ConvolutionalAttention(4, 1).project(torch.randn(1, 49, 4), (7, 7))
    assert k.shape[2] == 16


def test_the_class_token_passes_by_the_convolutions() -> None:
    torch.manual_seed(0)
    part = ConvolutionalAttention(8, 2).eval()
    nn.init.normal_(part.proj_k.bias)
    tokens, size = torch.randn(2, 1 + 30, 8), (5, 6)
    q, k, _ = part.project(tokens, size)
    before = (q[:, :, 0] * k[:, :, 0]).sum(-1) * part.scale
    for convolve in (part.conv_proj_q, part.conv_proj_k, part.conv_proj_v):
        nn.init.zeros_(convolve.conv.weight)
    q, k, v = part.project(tokens, size)
    torch.testing.assert_close((q[:, :, 0] * k[:, :, 0]).sum(-1) * part.scale, before)
    assert before.abs().min() > 1e-4
    for found, linear in ((q, part.proj_q), (k, part.proj_k), (v, part.proj_v)):
        bias = linear.bias.view(1, 2, 1, 4).expand_as(found[:, :, 1:])
        torch.testing.assert_close(found[:, :, 1:], bias)


def test_means_in_place_of_convolutions_leave_queries_alone() -> None:
    part = ConvolutionalAttention(4, 1, projection="avg")
    tokens = torch.randn(1, 16, 4)
    q, k, _ = part.project(tokens, (4, 4))
    torch.testing.assert_close(q[0, 0], part.proj_q(tokens[0]))
    grid = tokens[0].view(4, 4, 4)
    corner = grid[:2, :2].sum((0, 1)) / 9  # the window hangs over the border, where there are zeros
    torch.testing.assert_close(k[0, 0, 0], part.proj_k(corner))
    assert k.shape[2] == 9  # windows cut short at the end count


# ---- the network -----------------------------------------------------------------------------------------------------


def test_shuffled_patches_are_told_apart_without_position_embedding() -> None:
    """A plain vision transformer cannot: its tokens are a set. Convolutions see which patches are neighbours."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32)
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).reshape(1, 3, 64, 4, 4)[:, :, torch.randperm(64)]
    shuffled = patches.view(1, 3, 8, 8, 4, 4).permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 32, 32)
    plain = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=32, depth=2, num_heads=2, pos_embed="none"
    ).eval()  # fmt: skip
    ours = restless(tiny())
    with torch.inference_mode():
        torch.testing.assert_close(plain(shuffled), plain(x), atol=1e-5, rtol=1e-4)
        change = (ours(shuffled) - ours(x)).abs().max() / ours(x).abs().max()
    assert change > 0.05


def test_a_shift_by_all_strides_moves_the_last_map_by_one_cell() -> None:
    torch.manual_seed(0)
    model = CvT(depths=(0, 0, 0), num_classes=0).eval()
    wide = torch.randn(1, 3, 160, 176)
    with torch.inference_mode():
        (here,), (there,) = (
            model.forward_intermediates(x, indices=1, intermediates_only=True)
            for x in (wide[..., :160], wide[..., 16:])
        )
    a, b = here[..., 2:-2, 3:-2], there[..., 2:-2, 2:-3]
    assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.99
    assert torch.corrcoef(torch.stack([a.flatten(), there[..., 2:-2, 3:-2].flatten()]))[0, 1] < 0.5


def test_a_learned_table_is_added_after_each_embedding_and_resized_with_the_picture() -> None:
    plain, with_table = tiny(), tiny(pos_embed="learned", pos_embed_size=32)
    assert [tuple(stage.pos_embed.shape) for stage in with_table.stages] == [
        (1, 16, 16, 16), (1, 32, 8, 8), (1, 64, 4, 4),
    ]  # fmt: skip
    state = with_table.state_dict() | plain.state_dict()
    with_table.load_state_dict(state)
    x, larger = torch.randn(2, 3, 32, 32), torch.randn(1, 3, 50, 37)
    for stage in with_table.stages:
        nn.init.zeros_(stage.pos_embed)
    torch.testing.assert_close(with_table(x), plain(x))
    nn.init.constant_(with_table.stages[0].pos_embed, 0.7)  # the same everywhere: so it stays when it is resized
    for stage in (plain.stages[0], with_table.stages[0]):
        stage.blocks = nn.ModuleList()
    there, here = with_table.stages[0](larger)[0], plain.stages[0](larger)[0]
    assert there.shape == (1, 25 * 19, 16)
    torch.testing.assert_close(there, here + 0.7)
    with_table.stages[0].pos_embed.data[..., :8, :] = 0.0
    moved = (with_table.stages[0](larger)[0] - here).view(25, 19, 16)
    assert moved[0].abs().max() < 1e-6 and (moved[-1] - 0.7).abs().max() < 1e-6


def test_without_a_class_token_the_classifier_reads_the_mean_of_the_normalised_map() -> None:
    model = restless(tiny(class_token=False))
    x = torch.randn(2, 3, 40, 32)
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 5 * 4, 64)
    torch.testing.assert_close(model(x), model.head(tokens.mean(1)))
    (last,) = model.forward_intermediates(x, indices=[2], norm=True, intermediates_only=True)
    torch.testing.assert_close(last.mean((2, 3)), model.forward_head(tokens, pre_logits=True))


def test_intermediates_agree_with_the_pass_and_stop_early() -> None:
    model = restless(tiny())
    x = torch.randn(2, 3, 36, 52)
    with torch.inference_mode():
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x))
        assert [tuple(part.shape) for part in maps] == [(2, 16, 18, 26), (2, 32, 9, 13), (2, 64, 5, 7)]
        ran = []
        model.stages[1].register_forward_hook(lambda *_: ran.append(1))
        (first,) = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
        assert torch.equal(first, maps[0]) and not ran
        early, _ = model.forward_intermediates(x, indices=[1], stop_early=True)
        torch.testing.assert_close(early, maps[1].flatten(2).transpose(1, 2))
        (last,) = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        torch.testing.assert_close(last.flatten(2).transpose(1, 2), final[:, 1:])


def test_features_only_gives_the_pyramid() -> None:
    model = timm.create_model("cvt_tiny", features_only=True, out_indices=(0, 1))
    assert model.feature_info.reduction() == [2, 4] and model.feature_info.channels() == [32, 64]
    assert [tuple(part.shape) for part in model(torch.zeros(1, 3, 64, 48))] == [(1, 32, 32, 24), (1, 64, 16, 12)]
    assert not any(name.startswith(("model.stages.2", "model.norm")) for name in model.state_dict())
    whole = timm.create_model("cvt_tiny", features_only=True, feature_cls="getter", out_indices=(2,))
    assert whole.feature_info.reduction() == [8] and whole(torch.zeros(1, 3, 64, 48))[0].shape == (1, 128, 8, 6)


# ---- stochastic depth ------------------------------------------------------------------------------------------------


def rates(model: CvT) -> list[list[float]]:
    return [[getattr(block.drop_path1, "drop_prob", 0.0) for block in stage.blocks] for stage in model.stages]


def test_the_rates_rise_over_the_blocks_of_the_last_stage(cvt_13: CvT) -> None:
    found = rates(cvt_13)
    assert found[:2] == [[0.0], [0.0, 0.0]]
    assert found[2] == pytest.approx([0.1 * i / 9 for i in range(10)])
    for block in tiny(drop_path_rate=0.3).stages[2].blocks:
        assert getattr(block.drop_path1, "drop_prob", 0) == getattr(block.drop_path2, "drop_prob", 0)


def test_dropping_every_branch_leaves_the_stream_as_it_is() -> None:
    block = Block(8, 2, mlp_ratio=4.0, act_layer="quick_gelu", drop_path=0.5)
    restless(block)
    tokens = torch.randn(3, 1 + 12, 8)
    kept = block.eval()(tokens, (3, 4))
    assert (kept - tokens).abs().max() > 0.01
    for part in block.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 1.0
    assert torch.equal(block(tokens, (3, 4)), kept)  # nothing is dropped in evaluation mode
    assert torch.equal(block.train()(tokens, (3, 4)), tokens)


def test_a_dropped_picture_keeps_its_stream_and_the_others_branches_are_doubled() -> None:
    block = restless(Block(8, 2, mlp_ratio=4.0, act_layer="gelu", drop_path=0.5)).train()
    block.attn.eval()  # batch norms as in evaluation mode: pictures do not see each other
    block.mlp = nn.Identity()
    block.norm2 = nn.Identity()
    block.drop_path2.drop_prob = 1.0
    tokens = torch.randn(200, 5, 8)
    branch = block.attn(block.norm1(tokens), (2, 2))
    torch.manual_seed(0)
    out = block(tokens, (2, 2))
    still = (out == tokens).all(dim=(1, 2))
    assert 70 < still.sum() < 130
    torch.testing.assert_close(out[~still], (tokens + 2 * branch)[~still])


# ---- timm's doors ----------------------------------------------------------------------------------------------------


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    """Gradients, and running statistics: the second pass through a block must not count its batch again."""
    x, found = torch.randn(4, 3, 32, 32), []
    for checkpointing in (False, True):
        model = restless(tiny(drop_path_rate=0.5)).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(3)
        model(x).square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        found.append((model.state_dict(), [parameter.grad for parameter in model.parameters()]))
    for name, tensor in found[0][0].items():
        assert torch.equal(tensor, found[1][0][name]), name
    for one, other in zip(found[0][1], found[1][1]):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert int(found[1][0]["stages.0.blocks.0.attn.conv_proj_q.bn.num_batches_tracked"]) == 1


def test_layers_for_layer_decay() -> None:
    model = tiny(pos_embed="learned", pos_embed_size=32)
    groups = parameter_groups(model, model, 1.0, 0.1, layer_decay=0.5)
    by_name = {id(parameter): name for name, parameter in model.named_parameters()}
    layer = {by_name[id(p)]: group["layer"] for group in groups for p in group["params"]}
    assert len(layer) == len(list(model.parameters()))
    chosen = [
        *("stages.0.patch_embed.proj.weight", "stages.0.pos_embed", "stages.0.blocks.0.attn.proj.weight"),
        *("stages.1.patch_embed.norm.bias", "stages.1.blocks.0.mlp.fc1.weight", "stages.2.cls_token"),
        *("stages.2.blocks.0.norm1.weight", "stages.2.blocks.1.attn.conv_proj_k.bn.weight", "norm.weight"),
    ]
    assert [layer[name] for name in chosen] == [
        0,
        0,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
    ]  # as timm has it, the norm with the last block
    decays = {by_name[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert [decays[name] for name in ("stages.2.cls_token", "stages.1.pos_embed", "norm.weight")] == [0.0] * 3
    assert decays["stages.1.blocks.0.attn.conv_proj_q.conv.weight"] == 0.1
    coarse = parameter_groups(model, model, 1.0, 0.1, layer_decay=0.5, coarse=True)
    assert {group["layer"] for group in coarse} == {-1, 0, 1, 2, 3, 4}  # stem, three stages, the norm; the head is -1


def test_a_new_classifier_and_another_pooling() -> None:
    model = tiny()
    x = torch.randn(2, 3, 32, 32)
    tokens = model.forward_features(x)
    model.reset_classifier(7, "avg")
    assert model.num_classes == 7 and model.get_classifier().out_features == 7
    torch.testing.assert_close(model(x), model.head(tokens[:, 1:].mean(1)))
    model.reset_classifier(0)
    assert isinstance(model.head, nn.Identity) and model(x).shape == (2, 64)


def test_the_trunk_does_not_depend_on_the_classifier() -> None:
    with_head, without = tiny().state_dict(), tiny(num_classes=0).state_dict()
    assert all(torch.equal(with_head[name], tensor) for name, tensor in without.items())
    assert with_head["head.weight"].std() == pytest.approx(0.02, rel=0.2)
    assert not with_head["head.bias"].any()


def test_saved_and_loaded_it_gives_the_same(tmp_path) -> None:
    settings = {"embed_dims": [16, 32, 64], "pos_embed": "learned", "pos_embed_size": 24, "act_layer": "gelu"}
    torch.manual_seed(0)
    model = restless(timm.create_model("cvt_tiny", num_classes=4, **settings)).eval()
    save_backbone(model, tmp_path / "kept")
    again = load_backbone(tmp_path / "kept", num_classes=None)
    x = torch.randn(2, 3, 41, 32)
    with torch.inference_mode():
        assert torch.equal(again(x), model(x))
    assert again.card.architecture == "cvt_tiny" and again.card.input_size == (32, 32)


def test_load_backbone_makes_it_by_name() -> None:
    model = load_backbone("cvt_tiny.random_3", drop_path=0.2)
    assert (model.card.width, model.card.input_size, model.card.parameters) == (128, (32, 32), 564_928)
    assert rates(model)[2] == pytest.approx([0.0, 0.2])
    with pytest.raises(BackboneError, match="no pre-trained weights are published.*cvt_13.random"):
        load_backbone("cvt_13")
    with pytest.raises(BackboneError, match="did you mean 'cvt_21' or 'cvt_13'"):
        load_backbone("cvt_31.random")


def test_half_precision_and_folded_norms_agree() -> None:
    model = restless(tiny(num_classes=0))
    x = torch.randn(8, 3, 32, 32)
    with torch.inference_mode():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x).float()
        assert fold_batch_norms(model, x[:2]) == 3 * 4
        torch.testing.assert_close(model(x), exact, atol=1e-5, rtol=1e-4)
    centred = [part - part.mean(0) for part in (exact, rough)]
    assert torch.cosine_similarity(*centred).min() > 0.98


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"heads": (1, 2)}, "have .3, 3, 2, 3, 3, 3. entries; expected one a stage"),
        ({"heads": (1, 3, 4)}, "width 32 has 3 heads"),
        ({"projection": "conv"}, "projection='conv': expected 'dw_bn' or 'avg' or 'linear'"),
        ({"scale": "width"}, "scale='width': expected 'dim' or 'head'"),
        ({"pos_embed": "sine"}, "pos_embed='sine': expected None or 'learned'"),
        ({"qkv_kernel": 2}, "qkv_kernel=2: expected an odd number"),
        ({"class_token": False, "global_pool": "token"}, "there is no class token"),
        ({"pos_embed": "learned", "pos_embed_size": 0}, "a map of 0 x 0 is too small"),
        ({"global_pool": "max"}, "global_pool='max': expected 'token', 'avg' or ''"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tiny(**settings)


def test_pictures_that_are_too_small_and_other_layouts_are_refused() -> None:
    model = CvT(depths=(0, 0, 0), num_classes=0)
    with pytest.raises(UsageError, match="a map of 2 x 40 is too small for windows of 7 with a padding of 2"):
        model(torch.zeros(1, 3, 2, 40))
    with pytest.raises(UsageError, match="output_fmt='NLC': expected 'NCHW'"):
        model.forward_intermediates(torch.zeros(1, 3, 32, 32), output_fmt="NLC")
