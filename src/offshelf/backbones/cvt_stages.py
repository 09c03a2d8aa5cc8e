"""What a stage of CvT is made of: convolutional tokens, and attention whose queries, keys and values are convolved.

Wu et al. 2021 (CvT, arXiv 2103.15808), sections 3.1 and 3.2. Tokens are ``(B, P + h w, C)``: P prefix tokens (a class
token, or none), then the map row by row. Names of weights are those of the paper's own code.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, get_act_layer, trunc_normal_
from timm.models import checkpoint
from torch import nn

from offshelf.errors import UsageError

PROJECTIONS = ("dw_bn", "avg", "linear")
SCALES = ("dim", "head")

# ---- blocks ----------------------------------------------------------------------------------------------------------


def convolution(dim: int, kernel: int, stride: int, projection: str) -> nn.Module:
    """What stands before the linear map of queries, keys or values: ``(B, C, h, w)`` -> ``(B, C, h', w')``.

    ``"dw_bn"``: a depth-wise convolution and batch norm, with no activation, so that with the linear map it is a
    separable convolution. ``"avg"``: a mean over windows, the last ones cut short. ``"linear"``: nothing.
    """
    if projection == "linear":
        return nn.Identity()
    if projection == "avg":
        return nn.AvgPool2d(kernel, stride, kernel // 2, ceil_mode=True)
    depthwise = nn.Conv2d(dim, dim, kernel, stride, kernel // 2, groups=dim, bias=False)
    return nn.Sequential(OrderedDict(conv=depthwise, bn=nn.BatchNorm2d(dim)))


class ConvolutionalAttention(nn.Module):
    """Multi-head attention over convolved tokens; prefix tokens pass by the convolutions.

    Parameters
    ----------
    dim, heads : width C and number of heads, which divides it.
    kernel : odd, of the convolutions before queries, keys and values.
    kv_stride : keys and values are this much sparser along both axes: 7 x 7 tokens have 4 x 4 keys at 2.
    projection : "dw_bn", "avg" (keys and values only, as in the paper's code) or "linear" (``kv_stride`` is not used).
    scale : "dim" multiplies the logits by C^-1/2, as the paper's code does; "head" by (C / heads)^-1/2, as is usual.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kernel: int = 3,
        kv_stride: int = 2,
        projection: str = "dw_bn",
        scale: str = "dim",
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim if scale == "dim" else dim // heads) ** -0.5
        self.conv_proj_q = convolution(dim, kernel, 1, "linear" if projection == "avg" else projection)
        self.conv_proj_k = convolution(dim, kernel, kv_stride, projection)
        self.conv_proj_v = convolution(dim, kernel, kv_stride, projection)
        self.proj_q = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj_k = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj_v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def project(self, tokens: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries ``(B, heads, P + h w, C / heads)``, and keys and values ``(B, heads, P + h' w', C / heads)``."""
        places = size[0] * size[1]
        prefix, grid = tokens.split([tokens.shape[1] - places, places], dim=1)
        grid = grid.transpose(1, 2).unflatten(2, size)  # (B, C, h, w), channels last in memory

        def seen(convolve: nn.Module, linear: nn.Module) -> torch.Tensor:
            convolved = convolve(grid).flatten(2).transpose(1, 2)
            joined = torch.cat([prefix, convolved], dim=1) if prefix.shape[1] else convolved
            return linear(joined).unflatten(2, (self.heads, -1)).transpose(1, 2)

        return (
            seen(self.conv_proj_q, self.proj_q),
            seen(self.conv_proj_k, self.proj_k),
            seen(self.conv_proj_v, self.proj_v),
        )

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """``(B, P + h w, C)`` -> the same shape."""
        q, k, v = self.project(tokens, size)
        attended = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """``x + DropPath(Attention(LN(x)))``, then ``x + DropPath(MLP(LN(x)))``: branches are dropped, never ``x``."""

    def __init__(
        self, dim: int, heads: int, *, mlp_ratio: float, act_layer: str, drop_path: float, **attention: Any
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ConvolutionalAttention(dim, heads, **attention)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=get_act_layer(act_layer))
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Tokens ``(B, P + h w, C)`` of a map of ``size`` -> the same shape."""
        x = x + self.drop_path1(self.attn(self.norm1(x), size))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def recomputing(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """For gradient checkpointing: the second pass must not count its batch in the running statistics again."""
        return nullcontext(), _statistics_at_rest(self)


@contextmanager
def _statistics_at_rest(module: nn.Module) -> Iterator[None]:
    norms: list[Any] = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


# ---- the stage -------------------------------------------------------------------------------------------------------


class ConvolutionalEmbedding(nn.Module):
    """Tokens from a map: a strided convolution whose windows overlap, then layer norm (equation 1)."""

    def __init__(self, channels: int, dim: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Of the map that comes out of one of (height, width): floor((H + 2 p - k) / s) + 1 along each axis."""
        kernel, stride, padding = self.proj.kernel_size[0], self.proj.stride[0], int(self.proj.padding[0])
        down, right = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
        if min(down, right) < 1:
            raise UsageError(
                f"a map of {height} x {width} is too small for windows of {kernel} with a padding of {padding}; give "
                "larger pictures, or smaller patch_kernels and patch_strides."
            )
        return down, right

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """``(B, channels, H, W)`` -> tokens ``(B, h w, dim)`` and (h, w)."""
        size = self.size(*x.shape[-2:])
        return self.norm(self.proj(x).flatten(2).transpose(1, 2)), size


class Stage(nn.Module):
    """Embedding, optional position embedding and class token, and blocks.

    Parameters
    ----------
    positions : (h, w) of a learned table of positions, resized to the map where that has another size; None: no table.
    """

    def __init__(
        self,
        embedding: ConvolutionalEmbedding,
        blocks: Sequence[Block],
        dim: int,
        class_token: bool,
        positions: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self.patch_embed = embedding
        self.pos_embed = None if positions is None else nn.Parameter(torch.empty(1, dim, *positions))
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False
        for table in (self.pos_embed, self.cls_token):
            if table is not None:
                trunc_normal_(table, std=0.02)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """``(B, channels, H, W)`` -> tokens ``(B, P + h w, dim)``, the class token first where there is one; (h, w)."""
        x, size = self.patch_embed(x)
        if self.pos_embed is not None:
            same = tuple(self.pos_embed.shape[-2:]) == size
            table = self.pos_embed if same else F.interpolate(self.pos_embed, size, mode="bilinear")
            x = x + table.flatten(2).transpose(1, 2).to(x.dtype)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        for block in self.blocks:
            if self.grad_checkpointing:
                x = checkpoint(block, x, size, use_reentrant=False, context_fn=block.recomputing)
            else:
                x = block(x, size)
        return x, size
