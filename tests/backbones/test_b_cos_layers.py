"""Layers of B-cos networks: worked numbers, second writings, and the linear map in explanation mode."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, GroupNorm, LayerNorm2d
from torch import nn

from offshelf.backbones import b_cos_layers as layers
from offshelf.backbones.b_cos_layers import BCosConv2d, BCosLinear, DetachableActivation, become, damped, uncentre


def test_the_worked_numbers_of_one_unit() -> None:
    linear = BCosLinear(2, 1)
    linear.weight.data = torch.tensor([[3.0, 4.0]])
    assert linear(torch.tensor([[1.0, 0.0]])).item() == pytest.approx(9.0)
    assert linear(torch.tensor([[2.0, 0.0]])).item() == pytest.approx(18.0)  # homogeneous of degree 1
    linear.weight.data = torch.tensor([[0.6, 0.8]])
    assert linear(torch.tensor([[1.0, 0.0]])).item() == pytest.approx(0.36)
    convolution = BCosConv2d(2, 1, 1)
    convolution.weight.data = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    assert convolution(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)).item() == pytest.approx(9.0, rel=1e-5)
    assert damped(torch.tensor(-3.0), torch.tensor(1.0), 2.0, False).item() == -9.0
    assert damped(torch.tensor(3.0), torch.tensor(2.0), 3.0, False).item() == pytest.approx(6.75, rel=1e-5)
    assert damped(torch.tensor(3.0), torch.tensor(2.0), 1.0, False).item() == 3.0


@pytest.mark.parametrize(
    "shape",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
        {"kernel_size": (3, 1), "padding": 2, "groups": 4},  # more padding than average pooling takes
        {"kernel_size": 1},
    ],
)
@pytest.mark.parametrize("b", [1.5, 2.0])
def test_a_convolution_is_the_slow_loop_over_windows(shape: dict[str, object], b: float) -> None:
    torch.manual_seed(0)
    layer = BCosConv2d(4, 8, b=b, **shape).double().requires_grad_(False)
    x = torch.randn(2, 4, 7, 6, dtype=torch.double)
    found = layer(x)
    # each group's windows as columns, each one's length by itself
    group, outs = 4 // layer.groups, 8 // layer.groups
    padding = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
    expected = torch.empty_like(found)
    for g in range(layer.groups):
        part = x[:, g * group : (g + 1) * group]
        windows = F.unfold(part, layer.kernel_size, layer.dilation, padding, layer.stride)
        for picture in range(2):
            for place in range(windows.shape[2]):
                window = windows[picture, :, place]
                for o in range(g * outs, (g + 1) * outs):
                    out = float(layer.weight[o].flatten() @ window)
                    ratio = abs(out) / float((window.square().sum() + 1e-6).sqrt())
                    scale = ratio if b == 2 else (ratio + 1e-6) ** (b - 1)
                    expected[picture, o].view(-1)[place] = scale * out
    torch.testing.assert_close(found, expected)


def test_in_explanation_mode_the_gradient_is_the_linear_map_and_otherwise_not() -> None:
    weight, x = torch.tensor([[3.0, 4.0, -1.0]]), torch.tensor([[1.0, -2.0, 0.5]], requires_grad=True)
    layer = BCosLinear(3, 1)
    layer.weight.data = weight
    out = (weight @ x[0]).detach()
    length = x.detach().norm()
    by_map = (out.abs() / length) * weight
    by_slope = 2 * by_map - out.abs() * out * x.detach() / length**3
    (plain,) = torch.autograd.grad(layer(x), x)
    layer.detach = True
    (mapped,) = torch.autograd.grad(layer(x), x)
    torch.testing.assert_close(mapped, by_map)
    torch.testing.assert_close(plain, by_slope)
    assert (mapped - plain).abs().max() > 1
    # both complete: Euler's identity, by which completeness alone proves nothing
    torch.testing.assert_close((plain * x).sum(), (mapped * x).sum())


def test_a_convolutions_map_is_its_scaled_kernel() -> None:
    torch.manual_seed(0)
    layer = BCosConv2d(2, 3, 3).double()
    layer.detach = True
    x = torch.randn(1, 2, 3, 3, dtype=torch.double, requires_grad=True)
    out = (layer.weight * x).sum((1, 2, 3))
    for o in range(3):
        (gradient,) = torch.autograd.grad(layer(x)[0, o, 0, 0], x)
        length = (x.square().sum() + 1e-6).sqrt()
        torch.testing.assert_close(gradient[0], (out[o].abs() / length * layer.weight[o]).detach())


def test_an_uncentred_norm_is_batch_norm_in_evaluation_and_only_leaves_the_mean_in_training() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5).double()
    for tensor in (norm.running_mean, norm.bias.data, norm.weight.data):
        tensor.normal_(std=3)
    norm.running_var.uniform_(0.1, 9)
    x = torch.randn(4, 5, 3, 3, dtype=torch.double) * 2 + 7
    expected = norm.eval()(x)
    twin = uncentre(norm).eval()
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=1e-10)
    twin.bias = None
    scale = norm.weight / (x.var((0, 2, 3), correction=0) + norm.eps).sqrt()
    before = norm.running_mean.clone(), norm.running_var.clone()
    torch.testing.assert_close(twin.train()(x), x * scale[:, None, None])
    torch.testing.assert_close(twin.running_mean, 0.9 * before[0] + 0.1 * x.mean((0, 2, 3)))
    torch.testing.assert_close(twin.running_var, 0.9 * before[1] + 0.1 * x.var((0, 2, 3)))
    assert int(twin.num_batches_tracked) == 1


def test_the_fused_gradient_of_an_uncentred_norm_is_the_written_out_one() -> None:
    torch.manual_seed(0)
    norm = uncentre(nn.BatchNorm2d(3).double()).train()
    norm.bias = None
    norm.weight.data.uniform_(0.5, 2)
    x = (torch.randn(4, 3, 2, 5, dtype=torch.double) + 3).requires_grad_()
    upstream = torch.randn(4, 3, 2, 5, dtype=torch.double)
    found = torch.autograd.grad(norm(x), [x, norm.weight], upstream)
    plain = x * (norm.weight / (x.var((0, 2, 3), correction=0) + norm.eps).sqrt())[:, None, None]
    torch.testing.assert_close(found, torch.autograd.grad(plain, [x, norm.weight], upstream))
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # over several processes the moments are joined: the same by another way
        patch.setattr(layers, "world_size", lambda: 2)
        before = norm.running_var.clone(), norm.running_mean.clone()
        joined = torch.autograd.grad(norm(x), [x, norm.weight], upstream)
    torch.testing.assert_close(joined, found)
    torch.testing.assert_close(norm.running_var, 0.9 * before[0] + 0.1 * x.detach().var((0, 2, 3)))
    torch.testing.assert_close(norm.running_mean, 0.9 * before[1] + 0.1 * x.detach().mean((0, 2, 3)))
    fixed = norm.eval()(x)  # and no batch in evaluation: each picture by itself
    torch.testing.assert_close(fixed[:1], norm(x[:1]))


@pytest.mark.parametrize(
    ("plain", "kind", "shape"),
    [
        (nn.LayerNorm(6), layers.DetachableLayerNorm, (2, 5, 6)),
        (LayerNorm2d(6), layers.DetachableLayerNorm2d, (2, 6, 3, 3)),
        (GroupNorm(6, 3), layers.DetachableGroupNorm, (2, 6, 3, 3)),
    ],
)
def test_norms_have_the_same_values_and_a_constant_deviation(
    plain: nn.Module, kind: type[nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(*shape) * 3 + 2
    expected = plain(x)
    twin = become(plain, kind)
    torch.testing.assert_close(twin(x), expected)
    twin.detach = True
    torch.testing.assert_close(twin(x), expected, rtol=1e-5, atol=1e-5)
    twin.bias = None
    x.requires_grad_()
    out, direction = twin(x), torch.randn(*shape)
    (gradient,) = torch.autograd.grad((out * direction).sum(), x)
    # a linear map of x: its gradient times x gives the value; with a moving deviation it would be near 0
    torch.testing.assert_close((gradient * x).sum(), (out * direction).sum(), rtol=1e-4, atol=1e-4)
    twin.detach = False
    (moving,) = torch.autograd.grad((twin(x) * direction).sum(), x)
    assert (moving * x).sum().abs() < 0.01 * (gradient * x).sum().abs()


@pytest.mark.parametrize("kind", layers.GATES)
def test_gates_times_input_are_the_activations(kind: str) -> None:
    x = torch.linspace(-5, 5, 41, requires_grad=True)
    layer = DetachableActivation(kind)
    plain = layer(x)
    layer.detach = True
    torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    torch.testing.assert_close(gradient * x, plain)
    assert kind in repr(layer)


def test_a_half_precision_norm_keeps_its_type_and_sums_in_full_precision() -> None:
    torch.manual_seed(0)
    layer = BCosConv2d(64, 4, 3, padding=1)
    x = torch.randn(2, 64, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
        norm = uncentre(nn.BatchNorm2d(4)).train()(half)
    assert half.dtype == norm.dtype == torch.bfloat16
    assert layer.window_norm(x.bfloat16()).dtype == torch.float32
    assert (half.float() - layer(x)).abs().mean() / layer(x).abs().mean() < 0.03


def test_timms_norm_keeps_its_activation() -> None:
    norm = BatchNormAct2d(3)
    x = torch.randn(2, 3, 4, 4)
    expected = norm.eval()(x)
    torch.testing.assert_close(uncentre(norm).eval()(x), expected)
    assert (expected == 0).any()
