from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from offshelf import register_architectures
from offshelf.backbones.inception_v4 import inception_resnet
from offshelf.backbones.residual_scale import residual_blocks, residual_scales, set_residual_scale
from offshelf.errors import BackboneError, UsageError

SMALL = {
    "test_resnet": 64,
    "test_convnext": 64,
    "test_vit": 160,
    "mobilenetv3_small_050": 64,
    "inception_resnet_mini": 32,
}


def made(name: str) -> nn.Module:
    register_architectures()
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=4).eval()


@pytest.mark.parametrize("name", SMALL)
def test_one_changes_nothing_and_zero_leaves_the_shortcut(name: str) -> None:
    model, x = made(name), torch.randn(2, 3, SMALL[name], SMALL[name])
    before = set_residual_scale(model, 1.0)
    if name != "inception_resnet_mini":
        assert before == [1.0] * len(residual_blocks(model))
        with torch.no_grad():
            assert torch.equal(model(x), made(name)(x))
    set_residual_scale(model, 0.0)
    seen: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
    for block in residual_blocks(model).values():
        block.register_forward_hook(lambda m, a, y: seen.append((m, a[0].clone(), y.clone())))
    with torch.no_grad():
        model(x)
    same = [(b, a, y) for b, a, y in seen if a.shape == y.shape and not _projects(b)]
    assert same
    for block, a, y in same:
        after = torch.relu if _ends_in_relu(block) else (lambda value: value)
        assert torch.allclose(y, after(a), atol=1e-6), type(block).__name__


def _projects(block: nn.Module) -> bool:
    shortcut = getattr(block, "downsample", getattr(block, "shortcut", None))
    return isinstance(shortcut, nn.Module) and not isinstance(shortcut, nn.Identity)


def _ends_in_relu(block: nn.Module) -> bool:
    return type(block).__name__ in ("BasicBlock", "Bottleneck", "ResidualBlock")


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_the_branch_is_scaled_and_nothing_else(name: str) -> None:
    """The first branch of a block without a ReLU after its sum: y_s - x = s (y_1 - x)."""
    model = made(name)
    block = next(b for b in residual_blocks(model).values() if not _projects(b))
    x = torch.randn(1, 5, block.norm1.weight.numel()) if name == "test_vit" else None  # type: ignore[union-attr]
    if x is None:
        x = torch.randn(1, block.conv_dw.in_channels, 8, 8)  # type: ignore[union-attr]
    if name == "test_vit":
        block.drop_path2 = nn.Module()
        block.drop_path2.forward = lambda value: 0 * value  # type: ignore[method-assign]
    with torch.no_grad():
        plain = block(x) - x
        set_residual_scale(block, 0.3) if name == "test_convnext" else setattr(block, "drop_path1", _Scaled())
        assert torch.allclose(block(x) - x, 0.3 * plain, atol=1e-6)


class _Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.3 * x


def test_one_a_block_and_back_again() -> None:
    model = made("test_resnet")
    n = len(residual_blocks(model))
    assert n > 1 and residual_scales(model) == [1.0] * n
    wanted = [0.1 * (k + 1) for k in range(n)]
    before = set_residual_scale(model, wanted)
    assert residual_scales(model) == wanted
    assert set_residual_scale(model, before) == wanted and residual_scales(model) == [1.0] * n
    assert set(model.state_dict()) == set(made("test_resnet").state_dict())  # weights fit as before


def test_drop_path_stays_in_its_place() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", drop_path_rate=0.9).train()
    set_residual_scale(model, 0.5)
    assert any(type(m).__name__ == "DropPath" and m.drop_prob > 0.8 for m in model.modules())


@pytest.mark.parametrize("name", ["inception_mini", "test_efficientnet", "densenet121"])
def test_a_network_without_residual_blocks_is_named(name: str) -> None:
    with pytest.raises(BackboneError, match="has no residual blocks, so there is no residual scale to set"):
        set_residual_scale(made(name), 0.1)


def test_wrong_scales_are_refused() -> None:
    model = inception_resnet("mini", num_classes=2)
    with pytest.raises(UsageError, match="2 scales for 12 residual blocks"):
        set_residual_scale(model, [0.1, 0.2])
    with pytest.raises(UsageError, match="expected finite numbers"):
        set_residual_scale(model, float("nan"))


def test_timms_inception_resnet_has_its_scales_and_gives_the_same_with_them() -> None:
    torch.manual_seed(0)
    model = timm.create_model("inception_resnet_v2", num_classes=3).eval()
    assert residual_scales(model) == [0.17] * 10 + [0.10] * 20 + [0.20] * 9 + [1.0]
    x = torch.randn(1, 3, 75, 75)
    with torch.no_grad():
        own = model(x)
        before = set_residual_scale(model, 0.5)
        assert not torch.allclose(model(x), own, atol=1e-3)
        set_residual_scale(model, before)
        assert torch.equal(model(x), own)
