from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.convit import GPSA, ConVit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from offshelf.backbones.architectures import OURS, register_architectures
from offshelf.backbones.convit import SIZES, convit, convit_mini, gated_layers, resize_convit, set_locality
from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.backbones.parameter_groups import parameter_groups
from offshelf.data.augment import normalised
from offshelf.errors import BackboneError, UsageError
from offshelf.pretrain.mae_thorax import MAE
from offshelf.transfer.finetune import FineTune

SIGMA_1 = 0.7310585786300049  # 1 / (1 + 1 / e)


def layer_of(side: int, heads: int = 9, width: int = 36, strength: float = 1.0) -> GPSA:
    """One gated layer with a local start on a grid of ``side`` x ``side``, its relative coordinates in place."""
    torch.manual_seed(0)
    layer = GPSA(width, heads, locality_strength=strength).eval()
    nn.init.zeros_(layer.pos_proj.bias)
    layer.local_init()
    layer.rel_indices = layer.get_rel_indices(side * side)
    return layer


def content(layer: GPSA, x: torch.Tensor) -> torch.Tensor:
    """Content attention, a second writing: (B, h, N, N)."""
    b, n, width = x.shape
    q, k = layer.qk(x).reshape(b, n, 2, layer.num_heads, width // layer.num_heads).unbind(2)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(width // layer.num_heads)
    return scores.softmax(dim=-1)


def positions(layer: GPSA, side: int) -> torch.Tensor:
    """Positional attention by loops over all pairs of patches: (h, N, N)."""
    scores = torch.zeros(layer.num_heads, side**2, side**2, dtype=torch.float64)
    for i in range(side**2):
        for j in range(side**2):
            dx, dy = j % side - i % side, j // side - i // side  # key minus query
            scores[:, i, j] = layer.pos_proj.weight.detach().double() @ torch.tensor([dx, dy, dx**2 + dy**2]).double()
    return scores.softmax(dim=-1).float()


# ---- the layer (properties 1 to 7 and 11 of the paper's construction) ------------------------------------------------


@pytest.mark.parametrize("gate", [-30.0, -1.0, 0.0, 1.0, 30.0])
def test_rows_sum_to_one_for_any_gate_and_mix_the_two_maps(gate: float) -> None:
    layer, x = layer_of(4), torch.randn(2, 16, 36)
    layer.gating_param.data.fill_(gate)
    attention = layer.get_attention(x)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 9, 16))
    share = 1 / (1 + math.exp(-gate))
    expected = (1 - share) * content(layer, x) + share * positions(layer, 4)
    torch.testing.assert_close(attention, expected, atol=1e-6, rtol=1e-5)


def test_an_open_gate_is_positions_alone_and_a_shut_one_ordinary_attention() -> None:
    layer, x, other = layer_of(4), torch.randn(2, 16, 36), torch.randn(2, 16, 36)
    layer.gating_param.data.fill_(30.0)
    torch.testing.assert_close(layer.get_attention(x), positions(layer, 4).expand(2, -1, -1, -1))
    torch.testing.assert_close(layer.get_attention(x), layer.get_attention(other))
    layer.gating_param.data.fill_(-30.0)
    torch.testing.assert_close(layer.get_attention(x), content(layer, x))


def test_the_start_of_every_gated_layer() -> None:
    model = convit_mini()
    layers = [layer for _, layer in gated_layers(model)]
    assert len(layers) == 3
    for layer in layers:
        torch.testing.assert_close(layer.gating_param.sigmoid(), torch.full((9,), 0.73106), atol=1e-5, rtol=0)
        assert torch.equal(layer.v.weight, torch.eye(72)) and not layer.pos_proj.bias.any()
        assert float(layer.qk.weight.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_nine_heads_look_at_their_place_of_a_three_by_three_neighbourhood() -> None:
    maps, query = positions_of(14), 7 * 14 + 7  # an inner query
    peak, neighbour = 1 / 1.7726372**2, math.exp(-1) / 1.7726372**2  # sum over all whole k of exp(-k^2)
    for h1 in range(3):
        for h2 in range(3):
            found = maps[h1 + 3 * h2, query].reshape(14, 14)
            row, column = divmod(int(found.argmax()), 14)
            assert (row - 7, column - 7) == (h1 - 1, h2 - 1)
            assert float(found.max()) == pytest.approx(peak, abs=5e-5)
            assert 0.3182 < float(found.max()) < 0.3183
            assert float(found[row, column + 1]) == pytest.approx(neighbour, abs=5e-5)
            assert float(found[row - 1, column]) == pytest.approx(0.1171, abs=5e-5)


def positions_of(side: int, heads: int = 9, strength: float = 1.0) -> torch.Tensor:
    """What timm's layer makes of positions alone: (h, N, N)."""
    layer = layer_of(side, heads, strength=strength)
    layer.gating_param.data.fill_(30.0)
    return layer.get_attention(torch.zeros(1, side**2, 36)).detach()[0]


def test_four_heads_share_their_peak_between_four_patches() -> None:
    found = positions_of(14, heads=4)[:, 7 * 14 + 7].reshape(4, 14, 14)
    for head, (rows, columns) in enumerate([(6, 6), (7, 6), (6, 7), (7, 7)]):  # offsets of half a patch: p = h1 + 2 h2
        window = found[head, rows : rows + 2, columns : columns + 2]
        torch.testing.assert_close(window, torch.full((2, 2), 0.1931), atol=5e-5, rtol=0)
        assert float(found[head].max()) == pytest.approx(0.1931, abs=5e-5)


def test_without_strength_positions_look_everywhere_alike() -> None:
    torch.testing.assert_close(positions_of(5, strength=0.0), torch.full((9, 25, 25), 1 / 25))


def test_a_sharp_open_layer_shifts_each_slice_of_channels() -> None:
    layer, side, width = layer_of(6, strength=50.0), 6, 36
    layer.gating_param.data.fill_(30.0)
    layer.proj.weight.data.copy_(torch.eye(width))
    nn.init.zeros_(layer.proj.bias)
    x = torch.randn(2, side * side, width)
    given, found = x.reshape(2, side, side, width), layer(x).detach().reshape(2, side, side, width)
    for h1 in range(3):
        for h2 in range(3):
            head = h1 + 3 * h2
            part = slice(4 * head, 4 * head + 4)
            shifted = given[:, h1 : h1 + side - 2, h2 : h2 + side - 2, part]  # rows h1 - 1, columns h2 - 1 away
            torch.testing.assert_close(found[:, 1:-1, 1:-1, part], shifted, atol=1e-6, rtol=0)


def test_the_gradient_of_a_gate() -> None:
    layer, x, weight = layer_of(4), torch.randn(2, 16, 36), torch.randn(2, 9, 16, 16)
    layer.gating_param.data.copy_(torch.linspace(-2, 2, 9))
    (weight * layer.get_attention(x)).sum().backward()
    share = layer.gating_param.detach().sigmoid()
    inner = (weight * (positions(layer, 4) - content(layer, x).detach())).sum(dim=(0, 2, 3))
    torch.testing.assert_close(layer.gating_param.grad, share * (1 - share) * inner, atol=1e-4, rtol=1e-4)


# ---- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "parameters", "paper"),
    [
        ("tiny", 5_710_512, 6e6),
        ("small", 27_777_322, 27e6),
        ("base", 86_540_040, 86e6),
        ("tiny_plus", 9_972_912, 10e6),
        ("small_plus", 48_979_882, 48e6),
        ("base_plus", 153_134_856, 152e6),
    ],
)
def test_parameters(size: str, parameters: int, paper: float) -> None:
    with torch.device("meta"):
        model = convit(size=size)
    assert sum(p.numel() for p in model.parameters()) == parameters == pytest.approx(paper, rel=0.06)
    width, heads = model.embed_dim, SIZES[size]["num_heads"]
    block = 4 * width**2 + width + 8 * width**2 + 5 * width + 4 * width  # attention, MLP and norms
    rest = 769 * width + 196 * width + width + 2 * width + 1000 * width + 1000  # patches, positions, class token, head
    assert parameters == 12 * block + 10 * 5 * heads + rest  # a gated layer has 3 + 1 + 1 numbers a head more


def test_the_class_token_joins_after_the_gated_layers() -> None:
    model, tokens = convit_mini(num_classes=5).eval(), []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0].shape[1]))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert tokens == [64, 64, 64, 65]


def test_without_gated_layers_it_is_the_plain_vision_transformer() -> None:
    model = convit_mini(local_up_to_layer=0, num_classes=7).eval()
    plain = VisionTransformer(
        img_size=32,
        patch_size=4,
        embed_dim=72,
        depth=4,
        num_heads=9,
        qkv_bias=False,
        no_embed_class=True,
        num_classes=7,
    ).eval()
    plain.load_state_dict(model.state_dict())  # every name and shape agrees
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(x), plain(x), atol=1e-5, rtol=1e-5)


def test_the_factory_gives_timms_own_network() -> None:
    torch.manual_seed(3)
    ours = convit(size="tiny", img_size=32, num_classes=4)
    torch.manual_seed(3)
    theirs = timm.create_model("convit_tiny", img_size=32, num_classes=4)
    assert type(ours) is type(theirs) is ConVit
    assert all(torch.equal(a, theirs.state_dict()[name]) for name, a in ours.state_dict().items())


def test_no_local_start_draws_values_and_positions_like_other_layers() -> None:
    torch.manual_seed(0)
    plain = convit_mini()
    torch.manual_seed(0)
    drawn = convit_mini(local_init=False)
    for (_, a), (_, b) in zip(gated_layers(plain), gated_layers(drawn)):
        assert torch.equal(a.qk.weight, b.qk.weight) and torch.equal(a.gating_param, b.gating_param)
        assert float(b.v.weight.detach().std()) == pytest.approx(0.02, rel=0.05) and b.v.weight.abs().max() < 0.2
        assert 0.01 < b.pos_proj.weight.std() < 0.03


def test_gates_that_stay_are_no_parameters() -> None:
    fixed = convit_mini(gate=-2.0, fixed_gate=True).requires_grad_(True)
    names = [name for name, _ in fixed.named_parameters()]
    assert not any("gating_param" in name for name in names)
    assert all(torch.equal(layer.gating_param, torch.full((9,), -2.0)) for _, layer in gated_layers(fixed))
    assert sum(p.numel() for p in convit_mini().parameters()) - sum(p.numel() for p in fixed.parameters()) == 27
    loose = set_locality(fixed, fixed_gate=False)
    assert sum("gating_param" in name for name, _ in loose.named_parameters()) == 3
    assert fixed.state_dict().keys() == convit_mini().state_dict().keys()


def test_published_weights_can_be_edited_after_loading() -> None:
    model: Any = load_backbone("convit_tiny.random")
    first = next(layer for _, layer in gated_layers(model))
    nn.init.normal_(first.pos_proj.weight)
    nn.init.normal_(first.v.weight)
    set_locality(model, local_init=True, gate=0.5, fixed_gate=True)
    assert torch.equal(first.v.weight, torch.eye(192)) and torch.equal(first.gating_param, torch.full((4,), 0.5))
    assert first.pos_proj.weight[0].tolist() == [-1.0, -1.0, -1.0]  # 2 Delta = (-1, -1), strength 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_heads": 6}, r"num_heads=6: a local start needs a perfect square.*give 4 or 9, or local_init=False"),
        ({"img_size": (32, 16)}, r"img_size=\(32, 16\): 8 x 4 patches.*as many down as across"),
        ({"img_size": (64, 16)}, r"16 x 4 patches"),  # 64 tokens: a square number, and no square
        ({"local_up_to_layer": 4}, r"local_up_to_layer=4: expected 0 to 3 for 4 layers"),
        ({"gate": float("inf")}, r"gate=inf: expected a finite number"),
        ({"locality_strength": -1}, r"locality_strength=-1: expected a number of 0 or above"),
    ],
)
def test_what_cannot_be_built_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        convit_mini(**settings)


def test_other_refusals() -> None:
    assert convit_mini(num_heads=6, local_init=False).blocks[0].attn.num_heads == 6
    assert convit_mini(num_heads=6, local_up_to_layer=0).blocks[0].attn.num_heads == 6
    with pytest.raises(UsageError, match="size='tiny_pus'.*did you mean 'tiny_plus'"):
        convit(size="tiny_pus")
    with pytest.raises(UsageError, match="no gated positional self-attention"):
        set_locality(convit_mini(local_up_to_layer=0), gate=1.0)
    layer = layer_of(4)
    with pytest.raises(RuntimeError):  # 15 tokens make no square grid: timm itself refuses
        layer(torch.zeros(1, 15, 36))
    with pytest.raises(RuntimeError):
        convit_mini(pretrained=True)


# ---- with the rest of the library ------------------------------------------------------------------------------------


def test_all_are_known_to_timm_and_load_by_name() -> None:
    register_architectures()
    assert all(timm.is_model(name) for name in OURS["convit"])
    model: Any = load_backbone("convit_mini.random", num_classes=3)
    assert model.card.input_size == (32, 32) and model.card.architecture == "convit_mini"
    maps = timm.create_model("convit_mini", features_only=True, out_indices=(0, 3))(torch.zeros(1, 3, 32, 32))
    assert [tuple(found.shape) for found in maps] == [(1, 72, 8, 8)] * 2
    with pytest.raises(BackboneError, match="convit_mini: no pre-trained weights are published"):
        load_backbone("convit_mini")


@pytest.mark.parametrize("by_name", [True, False])
def test_switches_survive_saving(tmp_path: Path, by_name: bool) -> None:
    settings: dict[str, Any] = {"fixed_gate": True, "gate": -1.5, "local_init": False, "num_classes": 4}
    build = convit_mini if by_name else convit
    if not by_name:
        settings |= {"size": "mini", "depth": 3, "local_up_to_layer": 2}
    model = build(**settings).eval()
    again: Any = load_backbone(save_backbone(model, tmp_path / "saved"), num_classes=None)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model(x))
    assert not any("gating_param" in name for name, _ in again.named_parameters())
    assert len(again.blocks) == (4 if by_name else 3)


def test_resizing_interpolates_absolute_positions_and_keeps_relative_ones() -> None:
    model = convit_mini(num_classes=3).eval()
    table, vectors = model.pos_embed.detach().clone(), model.blocks[0].attn.pos_proj.weight.detach().clone()
    assert torch.equal(resize_convit(model, 32).pos_embed, table)
    resize_convit(model, 64)
    expected = F.interpolate(table.reshape(1, 8, 8, 72).permute(0, 3, 1, 2), (16, 16), mode="bicubic", antialias=True)
    assert torch.equal(model.pos_embed, expected.permute(0, 2, 3, 1).reshape(1, 256, 72))
    assert model.blocks[0].attn.rel_indices.shape == (1, 256, 256, 3)
    assert torch.equal(model.blocks[0].attn.pos_proj.weight, vectors)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3) and model.num_patches == 256
    with pytest.raises(UsageError, match="16 x 8 patches"):
        resize_convit(model, (64, 32))


def test_relative_coordinates_are_there_before_the_first_pass() -> None:
    model = convit_mini()
    assert model.blocks[0].attn.rel_indices.shape == (1, 64, 64, 3)
    assert model.blocks[0].attn.rel_indices[0, 9, 18].tolist() == [1.0, 1.0, 2.0]  # a row down and a column right
    assert model.blocks[0].attn.rel_indices[0, 9, 10].tolist() == [1.0, 0.0, 1.0]


def test_layer_decay_moves_early_layers_more_slowly_and_gates_do_not_decay() -> None:
    model = convit_mini(num_classes=3)
    groups = parameter_groups(model, model, 1.0, 0.05, layer_decay=0.5)
    told = {id(p): group for group in groups for p in group["params"]}
    gates = [told[id(layer.gating_param)] for _, layer in gated_layers(model)]
    assert [group["weight_decay"] for group in gates] == [0.0] * 3
    rates = [group["lr"] for group in gates]
    assert rates[1] == 2 * rates[0] and rates[2] == 4 * rates[0]
    assert told[id(model.cls_token)]["weight_decay"] == 0.0 and told[id(model.head.weight)]["lr"] == 1.0


def test_bfloat16_runs() -> None:
    model = convit_mini(num_classes=3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(torch.randn(2, 3, 32, 32)).float(), torch.tensor([0, 1]))
    loss.backward()
    assert loss.isfinite() and model.blocks[0].attn.gating_param.grad.isfinite().all()


def test_fine_tuning_at_another_size_moves_gates_unless_they_are_fixed(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (12, 3, 32, 32), generator=random, dtype=torch.uint8).numpy()
    labels = [0, 1] * 6
    fixed = save_backbone(convit_mini(fixed_gate=True, num_classes=0), tmp_path / "fixed")
    for backbone, moved in (("convit_mini.random", True), (str(fixed), False)):
        fitted = FineTune(backbone, image_size=24, epochs=1, batch_size=6, precision="fp32").fit(pictures, labels)
        gates = torch.cat([layer.gating_param for _, layer in gated_layers(fitted.model_)])
        assert bool((gates != 1.0).any()) is moved and gates.shape == (27,)
        assert fitted.model_.pos_embed.shape == (1, 36, 72)
        again = load_backbone(save_backbone(fitted.model_, tmp_path / f"again-{moved}"), num_classes=None)
        assert again.card.input_size == (24, 24)
        x = normalised(torch.rand(2, 3, 24, 24), again.card.mean, again.card.std)
        torch.testing.assert_close(
            again(x), fitted.model_(x), atol=1e-5, rtol=1e-5
        )  # kernels may lie otherwise in memory


def test_masked_pre_training_says_that_it_does_not_fit() -> None:
    with pytest.raises(BackboneError, match="ConVit.*no slot where patch tokens can be dropped"):
        MAE(convit_mini(num_classes=0), 32)
