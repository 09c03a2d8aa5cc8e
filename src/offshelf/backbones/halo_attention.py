"""Blocked local self-attention with haloing: the queries of a block share one neighbourhood of keys.

Vaswani et al. 2021, "Scaling Local Self-Attention for Parameter Efficient Visual Backbones" (arXiv 2103.12731), section
3. The layer is timm's ``HaloAttn``, whose weights it loads; added to it are attention down-sampling by true offsets,
maps that blocks do not divide, a mask of padded keys, and the paper's two extremes by name.

Where the paper says nothing we keep what timm does: keys beyond the border are zero and take part in the softmax with
their relative position alone, the scale applies to ``q k^T`` and not to the positions, and ``q, k, v`` have no bias.
Departure from timm: with ``stride=2`` its offsets are those of the smaller grid of queries, so that its output is not
the un-strided one at every second position. Ours is; ``compat="timm"`` gives timm's, which weights trained there need.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers.halo_attn import HaloAttn, PosEmbedRel
from torch import nn

from offshelf.errors import UsageError

Compat = Literal["true", "timm"]


class RelativePositions(PosEmbedRel):
    """timm's two tables of relative positions, read at true offsets between strided queries and keys.

    A query at row ``i`` of a block's grid stands at row ``stride * i`` of the block, a key at row ``u`` of the window,
    and their entry is ``u - stride * i + w - 1`` (rows and columns alike). ``hidden`` (blocks, 1, w * w) marks keys
    that get no weight.
    """

    def __init__(self, stride: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.stride = stride
        self.hidden: torch.Tensor | None = None

    def forward(self, q: torch.Tensor) -> torch.Tensor:
        """Logits (B n, blocks, queries, w * w) of queries (B n, blocks, queries, d)."""
        logits = super().forward(q) if self.stride == 1 else self._strided(q)
        return logits if self.hidden is None else logits.masked_fill(self.hidden, -torch.inf)

    def _strided(self, q: torch.Tensor) -> torch.Tensor:
        side, window = self.block_size, (len(self.height_rel) + 1) // 2
        queries, keys = (torch.arange(n, device=q.device) for n in (side, window))
        entries = keys - self.stride * queries[:, None] + window - 1  # (side, w)
        q = q.unflatten(2, (side, side))
        rows = torch.einsum("nbijd,iud->nbiju", q, self.height_rel[entries])
        columns = torch.einsum("nbijd,jvd->nbijv", q, self.width_rel[entries])
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)


class HaloAttention(HaloAttn):
    """Self-attention of ``block`` x ``block`` queries over ``(block + 2 halo)`` x ``(block + 2 halo)`` keys.

    ``(B, dim, H, W) -> (B, dim_out, ceil(H / stride), ceil(W / stride))``. There is no projection of the output: the
    bottleneck's 1x1 convolution follows.

    Parameters
    ----------
    dim : channels that come in.
    dim_out : channels of the values and of the output, ``dim`` by default (``r_v * c`` in the paper).
    qk_dim : channels of queries and keys, ``dim`` by default.
    block, halo : positions. ``block=1`` is a window of its own for every pixel, see `window_attention`.
    stride : 1 or 2; 2 asks only every second position of each block, or averages 2 x 2 where ``block`` is odd.
    heads : must divide ``dim_out`` and ``qk_dim``.
    mask : give keys beyond the border no weight; without it they count as zeros with a position.
    compat : ``"true"`` offsets, or those of ``"timm"``, with ``stride=2``.
    pad : fill maps that blocks do not divide with zeros at the bottom and right, and crop the output. Filled keys are
        treated as those beyond the border.
    scale_position : scale the logits of positions too.
    feat_size : not used; timm's blocks hand it over.

    Raises
    ------
    UsageError
        For settings that do not fit; in ``forward`` without ``pad``, for a map that blocks do not divide.
    """

    pos_embed: RelativePositions

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        qk_dim: int | None = None,
        block: int = 8,
        halo: int = 3,
        stride: int = 1,
        heads: int = 8,
        mask: bool = False,
        compat: Compat = "true",
        pad: bool = False,
        scale_position: bool = False,
        feat_size: tuple[int, int] | None = None,
        **factory: Any,
    ) -> None:
        dim_out, qk_dim = dim_out or dim, qk_dim or dim
        _check(block, halo, stride, heads, dim_out, qk_dim, compat)
        factory = {key: value for key, value in factory.items() if value is not None}  # device and dtype
        super().__init__(
            dim,
            dim_out,
            stride=stride,
            num_heads=heads,
            dim_head=qk_dim // heads,
            block_size=block,
            halo_size=halo,
            scale_pos_embed=scale_position,
            **factory,
        )
        self.stride, self.mask, self.compat, self.pad = stride, mask, compat, pad
        self.pos_embed = RelativePositions(
            self.block_stride if compat == "true" else 1,
            block_size=self.block_size_ds,
            win_size=self.win_size,
            dim_head=self.dim_head_qk,
            scale=self.scale,
            **factory,
        )
        # timm averages before anything could be cropped, and drops the last row of an odd map
        self.average = nn.Identity() if isinstance(self.pool, nn.Identity) else nn.AvgPool2d(2, 2, ceil_mode=True)
        self.pool = nn.Identity()
        self.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend; see the class for shapes."""
        height, width = x.shape[-2:]
        more = [-size % self.block_size for size in (height, width)]
        if any(more):
            if not self.pad:
                raise UsageError(
                    f"a feature map of {height} x {width} positions: blocks of {self.block_size} x {self.block_size} "
                    "do not divide it; choose another picture size or block, or fill the map with pad=True"
                )
            x = F.pad(x, (0, more[1], 0, more[0]))
        self.pos_embed.hidden = self._beyond(x, height, width) if self.mask else None
        out = super().forward(x)
        rows, columns = (-(-size // self.block_stride) for size in (height, width))
        return self.average(out[..., :rows, :columns])

    def _beyond(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Which keys of each block's window lie outside the map: (blocks, 1, w * w) bool."""
        outside = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device)
        outside[:height, :width] = False
        outside = F.pad(outside, [self.halo_size] * 4, value=True)
        windows = outside.unfold(0, self.win_size, self.block_size).unfold(1, self.win_size, self.block_size)
        return windows.reshape(-1, 1, self.win_size**2)


def _check(block: int, halo: int, stride: int, heads: int, dim_out: int, qk_dim: int, compat: str) -> None:
    for name, value, fits, expected in (
        ("block", block, block >= 1, "1 or more positions"),
        ("halo", halo, halo >= 0, "0 or more positions"),
        ("stride", stride, stride in (1, 2), "1 or 2"),
        ("compat", compat, compat in get_args(Compat), "'true' or 'timm'"),
        ("dim_out", dim_out, dim_out % heads == 0, f"a multiple of heads={heads}"),
        ("qk_dim", qk_dim, qk_dim % heads == 0, f"a multiple of heads={heads}"),
    ):
        if not fits:
            raise UsageError(f"{name}={value!r}: expected {expected}")


def window_attention(dim: int, window: int = 7, **settings: Any) -> HaloAttention:
    """A centred window of ``window`` x ``window`` keys for every pixel (stand-alone self-attention).

    One extreme of blocked attention: a block is one pixel, ``halo = (window - 1) / 2``. Nothing is computed in vain,
    and every key is gathered ``window ** 2`` times (Ramachandran et al. 2019, arXiv 1906.05909).

    Raises
    ------
    UsageError
        For an even window, which has no centre.
    """
    if window < 1 or window % 2 == 0:
        raise UsageError(f"window={window}: expected an odd number of positions, which has a centre")
    return HaloAttention(dim, block=1, halo=(window - 1) // 2, **settings)


def global_attention(dim: int, size: int, **settings: Any) -> HaloAttention:
    """All positions of a ``size`` x ``size`` map attend to all: the other extreme, one block without a halo.

    Smaller maps work with ``pad=True``.
    """
    return HaloAttention(dim, block=size, halo=0, **settings)
