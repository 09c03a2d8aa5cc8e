"""Vision transformers that see only some patches of a picture, and fixed codes of positions.

timm's `VisionTransformer` and `Eva` (rotary embeddings, EVA-02, DINOv3) have a slot between embedding and blocks where
patch tokens may be dropped. `only_visible` puts a module of ours there that keeps chosen tokens. Everything before it
(patch embedding, position table, class and register tokens) stays timm's, and `Eva` gathers its rotary table by the ids
that it gets back; so with all tokens kept the output is bit by bit the plain one, and with some the blocks run on these
alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from offshelf.errors import BackboneError, UsageError

FITTING = (
    "expected a plain vision transformer: timm's VisionTransformer (ViT, DeiT, registers or not) or Eva (rotary ViT, "
    "EVA-02, DINOv3). Convolutional networks can be pre-trained with spark or selfie"
)


def sincos_positions(width: int, grid: int, prefix: int = 0) -> torch.Tensor:
    """Fixed codes ``(prefix + grid^2, width)`` of positions on a square grid, row by row; zeros for prefix tokens.

    The first half of a code speaks of the column x, the second of the row y, each as
    ``[sin(x w_i), cos(x w_i)]`` with ``w_i = 10000^(-4 i / width)`` for i = 0 to width / 4 - 1 (He et al. 2022, after
    Vaswani et al. 2017).
    """
    if width % 4:
        raise UsageError(f"width={width}: expected a multiple of 4, since codes of positions have four parts")
    places = torch.arange(grid, dtype=torch.float64)
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = places[:, None] * rates
    one = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, width / 2)
    columns, rows = one[None].expand(grid, -1, -1), one[:, None].expand(-1, grid, -1)
    codes = torch.cat([columns, rows], dim=2).reshape(grid * grid, width)
    return torch.cat([codes.new_zeros(prefix, width), codes]).float()


# ---- visible tokens ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenGrid:
    """How a vision transformer cuts a square picture.

    patch : side of a patch in pixels. side : patches along a side. prefix : class and register tokens before them.
    width : numbers a token.
    """

    patch: int
    side: int
    prefix: int
    width: int

    @property
    def count(self) -> int:
        """Patches of a picture."""
        return self.side**2


def token_grid(backbone: nn.Module, image_size: int, least: int = 1) -> TokenGrid:
    """The grid of a network that `only_visible` takes, built for ``image_size``.

    Parameters
    ----------
    backbone : nn.Module
    image_size : int
    least : int
        Patches that are needed along a side.

    Raises
    ------
    BackboneError
        For a network without the slot, whose tokens overlap or mix before it, or whose patches are not square.
    UsageError
        For an image size that the patch does not divide, that has too few patches, or that the network is not built
        for.
    """
    network: Any = backbone
    name = type(backbone).__name__
    if not isinstance(backbone, (VisionTransformer, Eva)):
        raise BackboneError(f"{name}: it has no slot where patch tokens can be dropped; {FITTING}")
    embed = network.patch_embed
    patch = embed.patch_size
    if type(embed) is not PatchEmbed or tuple(embed.proj.kernel_size) != tuple(patch):
        raise BackboneError(f"{name}: its {type(embed).__name__} lets tokens see their neighbours' pixels; {FITTING}")
    if patch[0] != patch[1]:
        raise BackboneError(f"{name}: its patches are {patch[0]} x {patch[1]} pixels; expected square ones; {FITTING}")
    side = int(patch[0])
    if image_size % side or image_size < least * side:
        below = max(least, image_size // side) * side
        works = f"{below} works" if image_size < least * side else f"{below} and {below + side} work"
        wanted = f", with at least {least} x {least} patches" if least > 1 else ""
        raise UsageError(
            f"image_size={image_size}: expected a multiple of the network's patch, {side} pixels{wanted}; {works}. "
            "For smaller pictures take a network of smaller patches"
        )
    if tuple(embed.img_size) != (image_size, image_size):
        raise UsageError(
            f"image_size={image_size}: this network is built for {embed.img_size[0]} x {embed.img_size[1]} pixels; "
            f"call its set_input_size(img_size=({image_size}, {image_size})) first"
        )
    return TokenGrid(side, image_size // side, int(network.num_prefix_tokens), int(network.embed_dim))


class _Kept(nn.Module):
    """What stands in the slot: class and register tokens, then the kept patch tokens in the order of their ids."""

    def __init__(self, ids: torch.Tensor, prefix: int, tells_ids: bool) -> None:
        super().__init__()
        self.ids, self.prefix, self.tells_ids = ids, prefix, tells_ids

    def forward(self, x: torch.Tensor) -> Any:
        """``x`` (B, P + L, D) -> (B, P + K, D), for `Eva` with the ids (B, K)."""
        chosen = x[:, self.prefix :].gather(1, self.ids[:, :, None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, : self.prefix], chosen], dim=1)
        return (x, self.ids) if self.tells_ids else x


@contextmanager
def only_visible(backbone: nn.Module, ids: torch.Tensor) -> Iterator[None]:
    """Let the network see the patches ``ids`` (B, K), numbered row by row, of its next batch, within the block.

    Order counts for nothing but the order of the output. Ask for token sequences (``forward_features``, or
    ``forward_intermediates(..., output_fmt="NLC")``), since what is left makes no map.
    """
    network: Any = backbone
    before = network.patch_drop
    network.patch_drop = _Kept(ids, network.num_prefix_tokens, isinstance(backbone, Eva))
    try:
        yield
    finally:
        network.patch_drop = before


def encode_visible(backbone: nn.Module, pictures: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Tokens (B, P + K, D) after the last block and norm, of the visible patches ``ids`` (B, K) alone.

    Parameters
    ----------
    backbone : a network that `token_grid` takes.
    pictures : (B, 3, S, S), normalised
    """
    network: Any = backbone
    with only_visible(backbone, ids):
        return network.forward_features(pictures)


def fix_positions(backbone: nn.Module, grid: TokenGrid) -> bool:
    """Write sine-cosine codes into the network's table of positions and stop training it; False if it has none."""
    table: Any = getattr(backbone, "pos_embed", None)
    if table is None:
        return False
    codes = sincos_positions(grid.width, grid.side, table.shape[1] - grid.count)
    with torch.no_grad():
        table.copy_(codes[None])
    table.requires_grad_(False)
    return True
