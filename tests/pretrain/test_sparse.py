from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from timm.layers import BlurPool2d
from torch import nn

from offshelf.engine.collective import join_batch_norms
from offshelf.errors import BackboneError, UsageError
from offshelf.pretrain.sparse import Visible, make_dense, make_sparse, repeated

SIDE = 64
CELLS = torch.tensor([[[[True, False], [False, True]]], [[[False, True], [False, False]]]])  # two pictures, 2 x 2
FAMILY: list[tuple[str, dict[str, Any]]] = [
    ("test_resnet", {}),
    ("resnet18", {}),
    ("resnet18", {"aa_layer": BlurPool2d, "block_args": {"attn_layer": "se"}}),
    ("resnet10t", {"block_args": {"attn_layer": "eca"}}),
    ("resnet14t", {"aa_layer": nn.AvgPool2d, "block_args": {"attn_layer": "ese"}}),
    ("test_convnext", {}),  # conv_mlp=False
    ("convnext_atto", {"depths": (1, 1, 2, 1)}),  # conv_mlp=True
    ("convnextv2_atto", {"depths": (1, 1, 2, 1)}),
    ("convnextv2_atto", {"depths": (1, 1, 2, 1), "conv_mlp": False}),
    ("test_efficientnet", {}),
    ("tf_mobilenetv3_small_100", {}),
    ("mobilenetv3_small_050", {}),
    ("mobilenetv4_conv_small_035", {}),
    ("regnety_002", {}),
    ("densenet121", {"block_config": (2, 2, 2, 2)}),
    ("vgg11_bn", {"mlp_ratio": 0.01}),
    ("resnetv2_50", {"layers": (1, 1, 1, 1)}),
    ("test_byobnet", {}),
    ("test_nfnet", {}),
]
IDS = ["-".join([name, *map(str, settings)]) for name, settings in FAMILY]


def lively(name: str, **settings: Any) -> nn.Module:
    """A network whose biases, norms, gains and layer scales are no longer 0 or 1, so that a leak would show."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def maps(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(3)  # drop path, where a network has it
    with torch.no_grad():
        return model.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")


def apart(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("name", "settings"), FAMILY, ids=IDS)
def test_a_family_is_exact(name: str, settings: dict[str, Any]) -> None:
    dense = lively(name, **settings)
    kinds, keys = [type(module) for module in dense.modules()], list(dense.state_dict())
    sparse = copy.deepcopy(dense)
    visible = make_sparse(sparse)
    x = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    big = repeated(CELLS, SIDE, SIDE)
    everywhere = torch.ones_like(CELLS)
    plain = maps(dense, x)

    assert list(sparse.state_dict()) == keys
    assert apart(plain, maps(sparse, x)) == 0  # nothing is shown: dense layers
    with visible.only(everywhere):
        assert apart(plain, maps(sparse, x)) < 1e-5
    for mode in (False, True):
        twin = copy.deepcopy(sparse).train(mode)
        seen = next(m.sparse for m in twin.modules() if hasattr(m, "sparse"))
        states, found = copy.deepcopy(twin.state_dict()), []
        for noise in (0.0, 5.0):  # in hidden cells only; what the picture's own mask removes
            twin.load_state_dict(states)
            with seen.only(CELLS):
                found.append(maps(twin, seen.masked(x + noise * ~big)))
        for first, second in zip(*found, strict=True):
            assert torch.equal(first, second)
            hidden = ~repeated(CELLS, *first.shape[-2:])
            assert (first * hidden == 0).all() and (first != 0).any()

    trained = copy.deepcopy(dense).train()
    wanted = maps(trained, x)
    sparse.train()
    with visible.only(everywhere):
        assert apart(wanted, maps(sparse, x)) < 3e-4
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(sparse.state_dict()[key], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))

    make_dense(sparse)
    assert [type(module) for module in sparse.modules()] == kinds
    assert not any(hasattr(module, "sparse") for module in sparse.modules())
    dense.load_state_dict(sparse.state_dict(), strict=True)
    sparse.eval()
    assert apart(maps(dense, x), maps(sparse, x)) == 0


def test_a_visible_pixel_matters() -> None:
    sparse = lively("test_resnet")
    visible = make_sparse(sparse)
    x = torch.randn(2, 3, SIDE, SIDE)
    changed = x.clone()
    changed[0, :, 3, 3] += 1  # cell (0, 0) of the first picture
    with visible.only(CELLS):
        before, after = maps(sparse, visible.masked(x)), maps(sparse, visible.masked(changed))
    assert not torch.equal(before[-1][0], after[-1][0])
    assert torch.equal(before[-1][1], after[-1][1])


class Tower(nn.Module):
    """One layer, called as a family so that it gets a twin."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


def twin_of(layer: nn.Module) -> tuple[Any, Visible]:
    tower = Tower(layer)
    tower.__class__ = type("ResNet", (Tower,), {"__module__": "timm.models.resnet"})
    visible = make_sparse(tower)
    return tower.layer, visible


def seen_mean(x: torch.Tensor) -> torch.Tensor:
    """By loop: the mean over visible positions of each picture."""
    big = repeated(CELLS, *x.shape[-2:])
    return torch.stack([x[b, :, big[b, 0]].mean(dim=1) for b in range(len(x))])[:, :, None, None]


@pytest.mark.parametrize("kind", ["se", "se with maximum", "ese", "efficientnet", "eca", "eca with mlp"])
def test_gates_rest_on_the_mean_of_visible_positions(kind: str) -> None:
    from timm.layers import EcaModule, SEModule
    from timm.layers.squeeze_excite import EffectiveSEModule
    from timm.models._efficientnet_blocks import SqueezeExcite

    torch.manual_seed(0)
    layer: Any = {
        "se": lambda: SEModule(16, rd_channels=4),
        "se with maximum": lambda: SEModule(16, rd_channels=4, add_maxpool=True),
        "ese": lambda: EffectiveSEModule(16),
        "efficientnet": lambda: SqueezeExcite(16),
        "eca": lambda: EcaModule(16),
        "eca with mlp": lambda: EcaModule(16, use_mlp=True),
    }[kind]()
    dense = copy.deepcopy(layer)
    twin, visible = twin_of(layer)
    x = (torch.randn(2, 16, 8, 8) - 2) * repeated(CELLS, 8, 8)
    with visible.only(CELLS), torch.no_grad():
        found = twin(x)
    # the dense gate of a picture that consists of its visible positions alone
    for b in range(2):
        own = x[b][:, repeated(CELLS, 8, 8)[b, 0]]  # (16, visible)
        with torch.no_grad():
            wanted = dense(own.reshape(1, 16, -1, 4))[0].reshape(16, -1)
        torch.testing.assert_close(found[b][:, repeated(CELLS, 8, 8)[b, 0]], wanted)
    with torch.no_grad():
        assert not torch.allclose(found, dense(x), atol=1e-3)  # the dense mean is diluted by zeros
    with visible.only(CELLS):
        torch.testing.assert_close(visible.mean(x), seen_mean(x))


@pytest.mark.parametrize("channels_last", [True, False])
def test_response_norm_does_not_count_hidden_positions(channels_last: bool) -> None:
    from timm.layers.grn import GlobalResponseNorm

    torch.manual_seed(0)
    layer = GlobalResponseNorm(4, channels_last=channels_last)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    dense = copy.deepcopy(layer)
    twin, visible = twin_of(layer)
    x, mask = torch.randn(2, 4, 8, 8), repeated(CELLS, 8, 8)  # biases of linear layers have filled hidden positions
    order, back = ((0, 2, 3, 1), (0, 3, 1, 2)) if channels_last else ((0, 1, 2, 3), (0, 1, 2, 3))
    with visible.only(CELLS):
        found = twin(x.permute(order)).permute(back)
    torch.testing.assert_close(found, dense((x * mask).permute(order)).permute(back) * mask)
    assert not torch.allclose(found, dense(x.permute(order)).permute(back) * mask, atol=1e-3)


def test_running_mean_counts_visible_positions_only() -> None:
    torch.manual_seed(0)
    norm, visible = twin_of(nn.BatchNorm2d(4))
    norm.train()
    x = (torch.randn(2, 4, 8, 8) + 3) * repeated(CELLS, 8, 8)
    with visible.only(CELLS):
        y = norm(x)
    rows = x.permute(0, 2, 3, 1)[repeated(CELLS, 8, 8)[:, 0]]  # (48, 4)
    assert len(rows) == 3 * 16
    torch.testing.assert_close(norm.running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * rows.var(0))
    assert (norm.running_mean > 0.25).all()  # 0.11 if the zeros counted
    gathered = nn.BatchNorm1d(4)(rows)
    torch.testing.assert_close(y.permute(0, 2, 3, 1)[repeated(CELLS, 8, 8)[:, 0]], gathered)


def test_a_copy_has_a_mask_of_its_own_and_pickles() -> None:
    sparse = lively("test_resnet")
    visible = make_sparse(sparse)
    twin = copy.deepcopy(sparse)
    own = {id(module.sparse) for module in twin.modules() if hasattr(module, "sparse")}
    assert len(own) == 1 and id(visible) not in own
    x = torch.randn(2, 3, SIDE, SIDE)
    again = pickle.loads(pickle.dumps(sparse))
    with visible.only(CELLS):
        assert apart(maps(twin, x), maps(again, x)) == 0  # neither sees the mask
        assert not torch.equal(maps(sparse, x)[-1], maps(twin, x)[-1])
    assert visible.cells is None


def test_the_mask_is_repeated_exactly() -> None:
    fine, coarse = repeated(CELLS, 8, 8), repeated(CELLS, 4, 4)
    assert torch.equal(fine[:, :, ::2, ::2], coarse) and torch.equal(fine[:, :, 1::2, 1::2], coarse)
    assert fine[0, 0, :4, :4].all() and not fine[0, 0, :4, 4:].any()
    with pytest.raises(BackboneError, match="5 x 8 positions"):
        repeated(CELLS, 5, 8)


@pytest.mark.parametrize("shown", [True, False])
def test_all_or_nothing_visible_gives_finite_numbers(shown: bool) -> None:
    sparse = lively("resnet10t", block_args={"attn_layer": "se"}).train()
    visible = make_sparse(sparse)
    with visible.only(torch.full_like(CELLS, shown)):
        found = maps(sparse, visible.masked(torch.randn(2, 3, SIDE, SIDE)))
    assert all(stage.isfinite().all() for stage in found)
    assert bool(found[-1].any()) is shown
    assert all(value.isfinite().all() for value in sparse.state_dict().values())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mambaout_femto", "MambaOut"),
        ("resnetv2_50d_gn", "GroupNormAct"),
        ("test_vit", "VisionTransformer.*mae-thorax or sit"),
        ("resnest14d", "ResNestBottleneck"),
        ("gcresnet33ts", "GlobalContext"),
        ("mobilenetv4_hybrid_medium", "MultiQueryAttention2d"),
        ("resnet10t-sigmoid", "Sigmoid"),
    ],
)
def test_what_has_no_twin_is_refused_by_name_and_left_alone(name: str, told: str) -> None:
    settings: dict[str, Any] = {}
    if name == "resnet10t-sigmoid":  # half in every hidden cell
        name, settings = "resnet10t", {"act_layer": "sigmoid"}
    model = timm.create_model(name, num_classes=0, **settings)
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(BackboneError, match=told):
        make_sparse(model)
    assert [type(module) for module in model.modules()] == kinds


def test_twice_is_refused() -> None:
    model = timm.create_model("test_resnet", num_classes=0)
    make_sparse(model)
    with pytest.raises(UsageError, match="sparse already"):
        make_sparse(model)


def test_joined_batch_norms_come_back_as_twins() -> None:
    model = timm.create_model("test_resnet", num_classes=0)
    assert join_batch_norms(model)
    make_sparse(model)
    assert {type(m).__name__ for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {"SparseBatchNorm2d"}
    assert join_batch_norms(model) == []
