"""Layers of B-cos networks: a linear map that is damped by how well its input fits the weight, and what goes with it.

Arya, Rao, Boehle and Schiele: B-cosification, NeurIPS 2024, arXiv 2411.00715. For weight w (not normalised), input x
and exponent B

    out = w . x        scale = (|out| / |x|)^(B - 1)        f(x) = scale * out

so that a layer is, for each input, one linear map: ``scale * w``. The parts that depend on the input (this scale, the
gate of a GELU, the deviation of a layer norm, queries and keys) are *dynamic*. In explanation mode (``detach``) they
pass on no gradient, and the gradient of an output by the input is then that linear map itself.

Every class here is the plain layer's subclass with the same parameters, so a trained layer becomes one by a change of
its class alone (`become`). The values are the same with ``detach`` on and off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from offshelf.engine.collective import joined_moments, world_size
from offshelf.engine.precision import full_precision

STABILISER = 1e-6
"""Added to a window's sum of squares before the root, and to the ratio before a power other than 0 and 1."""


def become(layer: nn.Module, kind: type[nn.Module], **settings: Any) -> nn.Module:
    """Make ``layer`` one of ``kind``, a subclass of its own class in all that it holds, and set what is new in it."""
    layer.__class__ = kind
    for name, value in ({"detach": False} | settings).items():
        setattr(layer, name, value)
    return layer


def damped(out: torch.Tensor, norm: torch.Tensor, b: float, detach: bool) -> torch.Tensor:
    """``(|out| / norm)^(b - 1) * out``; with ``detach`` the first factor is a constant (section 3.2 of the paper).

    out = 3, norm = 1, b = 2 -> 9.
    """
    if b == 1:
        return out
    ratio = out.abs() * norm.reciprocal()  # the norm has one channel: no division over all of them
    scale = ratio if b == 2 else (ratio + STABILISER) ** (b - 1)
    return (scale.detach() if detach else scale) * out


# ---- linear maps -----------------------------------------------------------------------------------------------------


class BCosConv2d(nn.Conv2d):
    """A convolution whose output is damped by the cosine between window and kernel, to the power ``b`` - 1.

    |x| is the length of the window over all its channels (of its group), ``sqrt(sum of squares + 1e-6)``; what is
    padded counts as 0. A bias, where one is kept, is a part of ``out``.
    """

    b: float
    detach: bool

    def __init__(self, *arguments: Any, b: float = 2.0, bias: bool = False, **settings: Any) -> None:
        super().__init__(*arguments, **{"bias": bias} | settings)
        self.b, self.detach = b, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` -> ``(B, out, h, w)``."""
        out = super().forward(x)
        return out if self.b == 1 else damped(out, self.window_norm(x).to(out.dtype), self.b, self.detach)

    def window_norm(self, x: torch.Tensor) -> torch.Tensor:
        """|x| of the window of every output: ``(B, 1, h, w)``, or ``(B, out, h, w)`` with groups."""
        with full_precision(x):  # bf16 keeps eight bits: too few for a sum over hundreds of squares
            squares = x.float().square()
            if self.groups == 1:
                squares = squares.sum(1, keepdim=True)
            else:
                squares = squares.unflatten(1, (self.groups, -1)).sum(2)
            norm = (self._window_sum(squares) + STABILISER).sqrt()
        return norm if self.groups == 1 else norm.repeat_interleave(self.out_channels // self.groups, dim=1)

    def _window_sum(self, squares: torch.Tensor) -> torch.Tensor:
        padding: Any = self.padding
        within = not isinstance(padding, str) and all(2 * p <= k for p, k in zip(padding, self.kernel_size))
        if within and max(self.dilation) == 1:
            return F.avg_pool2d(squares, self.kernel_size, self.stride, padding, divisor_override=1)
        groups = squares.shape[1]
        ones = squares.new_ones(groups, 1, *self.kernel_size)
        return F.conv2d(squares, ones, None, self.stride, padding, self.dilation, groups)


class BCosLinear(nn.Linear):
    """A linear map whose outputs are damped by the cosine between input and weight, to the power ``b`` - 1.

    |x| is ``|x|_2 + 1e-12`` over the last axis.
    """

    b: float
    detach: bool

    def __init__(self, in_features: int, out_features: int, bias: bool = False, b: float = 2.0) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.b, self.detach = b, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., in)`` -> ``(..., out)``."""
        out = super().forward(x)
        if self.b == 1:
            return out
        norm = x.float().norm(dim=-1, keepdim=True) + 1e-12
        return damped(out, norm.to(out.dtype), self.b, self.detach)


class DetachableLinear(nn.Linear):
    """An ordinary linear map; in explanation mode its first ``still`` outputs are constants.

    For attention: queries and keys come first, so that the matrix of attention is a constant and the gradient goes
    through the values alone.
    """

    still: int
    detach: bool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., in)`` -> ``(..., out)``."""
        out = super().forward(x)
        if not self.detach:
            return out
        return torch.cat([out[..., : self.still].detach(), out[..., self.still :]], dim=-1)


# ---- norms -----------------------------------------------------------------------------------------------------------


class UncentredBatchNorm2d(nn.BatchNorm2d):
    """``y = gamma x / sqrt(var + eps)``: no mean is taken away; ``var`` is still the variance about the mean.

    With a bias (only where biases are kept) it is added. `uncentre` makes it of a trained BatchNorm2d.
    """

    detach: bool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` -> the same shape."""
        with full_precision(x):
            wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
            weight: Any = x.new_ones(x.shape[1], dtype=wide.dtype) if self.weight is None else self.weight
            if not self.training:
                var: Any = self.running_var
                y = wide * (weight * torch.rsqrt(var + self.eps))[:, None, None]
            elif world_size() > 1:
                mean, var, count = joined_moments(wide)
                y = wide * (weight * torch.rsqrt(var + self.eps))[:, None, None]
                self._remember(mean.detach(), var.detach(), float(count))
            else:
                y, mean, rstd = _UncentredNorm.apply(wide, weight, self.eps)
                self._remember(mean, rstd**-2 - self.eps, x.numel() / x.shape[1])
            y = y if self.bias is None else y + self.bias[:, None, None]
        return y.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: torch.Tensor, var: torch.Tensor, count: float) -> None:
        """Take the batch's moments into the running ones, as torch does."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((var * count / max(1.0, count - 1)).to(self.running_var.dtype), share)


class _UncentredNorm(torch.autograd.Function):
    """gamma x r with r = 1 / sqrt(var + eps) of the batch, by torch's fused batch norm: two to three times as fast.

    With h = (x - m) r what the fused one gives, the value is gamma h + gamma m r. For N values a channel and the sums
    of gradients s = sum g, the second part adds ``gamma r s / N (1 - m r h)`` to the fused gradient of x, and ``m r s``
    to that of gamma.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
        y, mean, rstd = torch.native_batch_norm(x, weight, None, None, None, True, 0.0, eps)
        y.add_((weight * mean * rstd)[:, None, None])
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.eps = eps
        return y, mean, rstd

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *unused: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight, mean, rstd = ctx.saved_tensors
        of_x, of_weight, total = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, rstd, True, ctx.eps, [True, True, True]
        )
        share = weight * rstd * total * (x.shape[1] / x.numel())
        of_x.add_((share * (1 + (mean * rstd) ** 2))[:, None, None])
        of_x.sub_(x * (share * mean * rstd**2)[:, None, None])
        return of_x, of_weight + mean * rstd * total, None


class UncentredBatchNormAct2d(UncentredBatchNorm2d):
    """The same for timm's batch norm with an activation inside."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` -> the same shape."""
        return self.act(self.drop(super().forward(x)))


def uncentre(norm: nn.BatchNorm2d) -> nn.Module:
    """Make a BatchNorm2d uncentred, in place, with the function it has in evaluation mode.

    beta' = beta - gamma mean / sqrt(var + eps), by the running moments. Where the norm has no bias, it gets one.
    """
    with torch.no_grad():
        assert norm.running_mean is not None and norm.running_var is not None
        shift = -norm.running_mean * torch.rsqrt(norm.running_var + norm.eps)
        shift = shift if norm.weight is None else shift * norm.weight
        shift = shift if norm.bias is None else shift + norm.bias
    kept = norm.running_mean.requires_grad if norm.bias is None else norm.bias.requires_grad
    norm.bias = nn.Parameter(shift.detach().clone(), requires_grad=kept)
    return become(norm, UncentredBatchNormAct2d if isinstance(norm, BatchNormAct2d) else UncentredBatchNorm2d)


class DetachableLayerNorm(nn.LayerNorm):
    """Layer norm over the last axis; in explanation mode its deviation is a constant."""

    detach: bool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., C)`` -> the same shape."""
        if not self.detach:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        y = _divided(x, [-1], self.eps)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


class DetachableLayerNorm2d(DetachableLayerNorm):
    """Layer norm over the channels of ``(B, C, H, W)``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` -> the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DetachableGroupNorm(nn.GroupNorm):
    """Group norm; in explanation mode its deviations are constants."""

    detach: bool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, ...)`` -> the same shape."""
        if not self.detach:
            return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        y = _divided(x.reshape(len(x), self.num_groups, -1), [-1], self.eps).reshape(x.shape)
        shape = (-1,) + (1,) * (x.ndim - 2)
        y = y if self.weight is None else y * self.weight.view(shape)
        return y if self.bias is None else y + self.bias.view(shape)


def _divided(x: torch.Tensor, axes: list[int], eps: float) -> torch.Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.detach().square().mean(axes, keepdim=True) + eps)


# ---- gates -----------------------------------------------------------------------------------------------------------

GATES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "gelu": (F.gelu, lambda x: 0.5 * (1 + torch.erf(x / 2**0.5))),
    "gelu_tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    ),
    "quick_gelu": (lambda x: x * torch.sigmoid(1.702 * x), lambda x: torch.sigmoid(1.702 * x)),
    "silu": (F.silu, torch.sigmoid),
    "hardswish": (F.hardswish, lambda x: F.relu6(x + 3) / 6),
    "mish": (F.mish, lambda x: torch.tanh(F.softplus(x))),
}
"""Activations of the form gate(x) x: the plain function, and its gate."""


class DetachableActivation(nn.Module):
    """``gate(x) x`` for one of `GATES`; in explanation mode the gate is a constant."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.detach = kind, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        plain, gate = GATES[self.kind]
        return gate(x).detach() * x if self.detach else plain(x)

    def extra_repr(self) -> str:
        """Which one."""
        return self.kind


class DetachableGate(nn.Module):
    """What gates something else (the sigmoid of a squeeze-and-excite): in explanation mode a constant."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.detach = inner, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        return self.inner(x).detach() if self.detach else self.inner(x)


DYNAMIC = (
    *(BCosConv2d, BCosLinear, DetachableLinear, UncentredBatchNorm2d, DetachableLayerNorm, DetachableGroupNorm),
    *(DetachableActivation, DetachableGate),
)
"""The classes with a ``detach``."""
