"""Several processes as one: sums and gathers with the right gradient, and batch norms over the joined batch.

Data-parallel training averages gradients over processes. With these two functions the average is the gradient of one
process on the joined batch; without their backward passes losses look right and gradients are not. In one process they
are the identity. No loss may skip a call on one rank, and every rank's batch has the same size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def world_size() -> int:
    """Processes that train together; 1 when there is no group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them."""
    return dist.get_rank() if world_size() > 1 else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        first = dist.get_rank() * ctx.rows
        return gradient[first : first + ctx.rows]


class _ReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


def gather(x: torch.Tensor) -> torch.Tensor:
    """``(B, ...)`` of every process, joined along the first axis in the order of ranks, with gradient."""
    return _Gather.apply(x) if world_size() > 1 else x


def reduce_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum over processes, with gradient."""
    return _ReduceSum.apply(x) if world_size() > 1 else x


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of ``values`` where ``mask`` is 1, over the joined batch of all processes; 0 when it is nowhere.

    Each process returns its part times the number of processes, so that the average over processes, which
    data-parallel training takes of losses and gradients, is the mean over the joined batch.
    """
    mask = mask.to(values.dtype)
    count = reduce_sum(mask.sum().detach())
    return (values * mask).sum() * world_size() / count.clamp(min=1e-8)


def joined_moments(
    x: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and biased variance per channel of ``(B, C, H, W)`` over the joined batch, and how many values they rest on.

    Two passes: ``E[x^2] - E[x]^2`` in fp32 would lose most digits for activations far from zero.

    Parameters
    ----------
    mask : (B, 1, H, W) of 0 and 1; positions with 0 do not count.
    """
    axes = (0, 2, 3)
    if mask is None:
        count = reduce_sum(x.new_tensor(float(x.numel() // x.shape[1])))
        mean = reduce_sum(x.sum(axes)) / count
        var = reduce_sum((x - mean[:, None, None]).square().sum(axes)) / count
        return mean, var, count
    mask = mask.to(x.dtype)
    count = reduce_sum(mask.sum()).clamp(min=1.0)
    mean = reduce_sum((x * mask).sum(axes)) / count
    var = reduce_sum(((x - mean[:, None, None]) * mask).square().sum(axes)) / count
    return mean, var, count


def batch_normalised(x: torch.Tensor, norm: Any, mask: torch.Tensor | None = None) -> torch.Tensor:
    """What ``norm`` (a BatchNorm2d) makes of ``x``, with moments over the joined batch; updates its running ones.

    Parameters
    ----------
    x : (B, C, H, W), or (B, C).
    mask : (B, 1, H, W); hidden positions count neither in the moments nor in the output, where they are 0.
    """
    if x.ndim == 2:
        return batch_normalised(x[:, :, None, None], norm, mask)[:, :, 0, 0]
    dtype = x.dtype
    with torch.autocast(x.device.type, enabled=False):
        x = x.float() if dtype in (torch.bfloat16, torch.float16) else x
        if norm.training or norm.running_mean is None:
            mean, var, count = joined_moments(x, mask)
            if norm.training and norm.running_mean is not None:
                _remember(norm, mean.detach(), var.detach(), count)
        else:
            mean, var = norm.running_mean, norm.running_var
        scale = torch.rsqrt(var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight.to(x.dtype)
        x = (x - mean[:, None, None]) * scale[:, None, None]
        if norm.bias is not None:
            x = x + norm.bias.to(x.dtype)[:, None, None]
        if mask is not None:
            x = x * mask
    return x.to(dtype)


def _remember(norm: Any, mean: torch.Tensor, var: torch.Tensor, count: torch.Tensor) -> None:
    with torch.no_grad():
        norm.num_batches_tracked += 1
        share = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
        unbiased = var * count / (count - 1).clamp(min=1.0)
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share)


def join_batch_norms(module: nn.Module) -> list[str]:
    """Let every plain batch norm in ``module`` take its moments over the joined batch; return their names.

    The class is swapped, so parameters, buffers and names stay. `part_batch_norms` undoes it.
    """
    changed = []
    for name, child in module.named_modules():
        if type(child) in _JOINED:
            child.__class__ = _JOINED[type(child)]
            changed.append(name)
    return changed


def part_batch_norms(module: nn.Module) -> None:
    """Undo `join_batch_norms`."""
    plain = {joined: kind for kind, joined in _JOINED.items()}
    for child in module.modules():
        if type(child) in plain:
            child.__class__ = plain[type(child)]


class JoinedBatchNorm1d(nn.BatchNorm1d):
    """A BatchNorm1d over (B, C) whose moments are those of all processes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return batch_normalised(x, self)


class JoinedBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d whose moments are those of all processes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return batch_normalised(x, self)


def _timm_norm() -> tuple[Any, Any]:
    from timm.layers import BatchNormAct2d

    class JoinedBatchNormAct2d(BatchNormAct2d):
        """timm's batch norm with an activation inside."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.drop(batch_normalised(x, self)))

    JoinedBatchNormAct2d.__qualname__ = "JoinedBatchNormAct2d"
    return BatchNormAct2d, JoinedBatchNormAct2d


_plain_act, JoinedBatchNormAct2d = _timm_norm()
_JOINED: dict[type, type] = {
    nn.BatchNorm1d: JoinedBatchNorm1d,
    nn.BatchNorm2d: JoinedBatchNorm2d,
    _plain_act: JoinedBatchNormAct2d,
}
