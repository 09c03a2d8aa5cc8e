"""MAE for chest X-rays: a vision transformer reads a tenth of a picture's patches, and a light decoder paints the rest.

Xiao, Bai, Yuille, Zhou: Delving into Masked Autoencoders for Multi-Label Thorax Disease Classification, WACV 2023,
arXiv 2210.12843; the autoencoder is that of He et al. 2022, arXiv 2111.06377. The claim: pre-trained on X-rays with
90 % of the patches hidden and crops of half the area or more, a plain vision transformer reaches a convolutional
network on multi-label chest X-rays.

Hidden patches never enter the encoder, so its cost falls with their share. The decoder gets a learnt token in their
places, and the loss is the squared error of hidden patches' pixels. ``variant="natural"`` is the recipe of He et al.
for photographs: 75 % hidden, crops of a fifth of the area or more, each patch normalised by its own mean and deviation.

Departures: positions in the encoder are fixed sine and cosine codes, as in the paper, only where the backbone starts
from random weights; a trained table is kept and trained on. Register tokens are treated as the class token is. A
backbone without final norm (one that pools by the mean) gets one that is left behind. The recipe's rate, 1e-3, is near
the paper's, but for batches of 128 instead of 2,048, and its length is that of a small machine.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from offshelf.data.augment import normalised, random_flip, random_resized_crop
from offshelf.engine.collective import masked_mean
from offshelf.engine.draws import Draws
from offshelf.engine.precision import full_precision
from offshelf.engine.recipe import Recipe
from offshelf.errors import UsageError
from offshelf.pretrain.objective import Batch, Objective
from offshelf.pretrain.patches import cell_moments, patchify, unpatchify
from offshelf.pretrain.tokens import check_patches, encode_visible

VARIANTS: dict[str, tuple[float, tuple[float, float], bool]] = {
    "thorax": (0.9, (0.5, 1.0), False),
    "natural": (0.75, (0.2, 1.0), True),
}
"""Recipe -> mask ratio, bounds of the crop's area, and whether each target patch is normalised."""

_INSTEAD = "Convolutional networks can be pre-trained with spark, selfie"


# ---- arithmetic ----------------------------------------------------------------------------------------------------


def visible_count(patches: int, mask_ratio: float) -> int:
    """Visible patches, cut off in floating point as the paper does: 196 at 0.9 -> 19, at 0.75 -> 49; 64 at 0.9 -> 6."""
    return int(patches * (1 - mask_ratio))


def shuffled(noise: torch.Tensor, visible: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The patches with the smallest of ``noise`` (B, L) are visible.

    Returns
    -------
    seen : int64 (B, K)
        Numbers of visible patches, in the shuffled order.
    back : int64 (B, L)
        Where in the shuffled order each patch stands.
    hidden : bool (B, L)
    """
    order = noise.argsort(dim=1, stable=True)
    back = order.argsort(dim=1, stable=True)
    return order[:, :visible], back, back >= visible


def sincos_positions(width: int, grid: int) -> torch.Tensor:
    """Fixed codes (grid^2, width), row by row: a half for the column and a half for the row, each sines then cosines.

    Frequencies are ``10000^(-i / (width / 4))``; the first code, of row and column 0, is zeros and ones.
    """
    if width % 4:
        raise UsageError(
            f"width {width}: sine and cosine codes of two axes need a multiple of 4, such as {width + -width % 4}"
        )
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, width / 2)
    column, row = axis.repeat(grid, 1), axis.repeat_interleave(grid, dim=0)
    return torch.cat([column, row], dim=1).float()


def reconstruction_loss(painted: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Mean over hidden patches of their mean squared error, in fp32; visible patches do not count.

    Parameters
    ----------
    painted, target : (B, L, N)
    hidden : bool (B, L)
    """
    with full_precision(painted):
        return masked_mean((painted.float() - target.float()).square().mean(-1), hidden)


# ---- the decoder ---------------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """Visible tokens and a learnt token for every hidden patch, through a few blocks, to the pixels of all patches.

    Parameters
    ----------
    prefix : class and register tokens of the encoder; they get no position and are dropped at the end.
    pixels : numbers of a patch, 3 p^2.
    """

    positions: torch.Tensor

    def __init__(
        self, encoder_width: int, prefix: int, grid: int, width: int, depth: int, heads: int, pixels: int
    ) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.prefix = prefix
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.register_buffer("positions", sincos_positions(width, grid)[None], persistent=False)
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)))
        self.norm = LayerNorm(width)
        self.pixels = nn.Linear(width, pixels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        """``tokens`` (B, prefix + K, D) in shuffled order, ``back`` (B, L) -> pixels (B, L, 3 p^2) row by row."""
        tokens = self.embed(tokens)
        first, x = tokens[:, : self.prefix], tokens[:, self.prefix :]
        blank = self.mask_token.to(x.dtype).expand(len(x), back.shape[1] - x.shape[1], -1)
        x = torch.cat([x, blank], dim=1).gather(1, back[:, :, None].expand(-1, -1, x.shape[-1]))
        x = self.blocks(torch.cat([first, x + self.positions.to(x.dtype)], dim=1))
        return self.pixels(self.norm(x)[:, self.prefix :])


class LayerNorm(nn.LayerNorm):
    """With the epsilon of vision transformers."""

    def __init__(self, width: int, **settings: Any) -> None:
        super().__init__(width, **{"eps": 1e-6} | settings)


# ---- the objective ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MAEViews:
    """One crop, half of them mirrored, and a number for every patch, which decides what is hidden."""

    size: int
    patches: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: tuple[float, float]
    flip: bool

    def __call__(self, pixels: torch.Tensor, draws: Draws) -> Batch:
        """uint8 (B, 3, H, W) -> ``pictures`` (B, 3, size, size) and ``noise`` (B, patches)."""
        pictures = random_resized_crop(pixels, draws, self.size, self.scale)
        if self.flip:
            pictures = random_flip(pictures, draws)
        noise = torch.from_numpy(draws.uniform(self.patches)).float()
        return {"pictures": normalised(pictures, self.mean, self.std), "noise": noise}


class MAE(Objective):
    """Masked autoencoder with the recipe for chest X-rays (Xiao et al. 2023) or for photographs (He et al. 2022).

    Parameters
    ----------
    backbone : nn.Module
        A timm vision transformer of `offshelf.pretrain.tokens.KINDS`, built for ``image_size``.
    image_size : int
        A multiple of the patch.
    variant : {"thorax", "natural"}
        Whose mask ratio, crops and target are taken where they are not given.
    mask_ratio : float, optional
        Share of hidden patches: 0.9, or 0.75 for photographs. Small grids have few patches left; keep 10 or more.
    crop_scale : (float, float), optional
        Bounds of the share of the area that a crop keeps: 0.5 to 1, or 0.2 to 1 for photographs.
    normalised_target : bool, optional
        Paint each patch less its own mean and over its deviation: off for X-rays, on for photographs.
    decoder_width, decoder_depth, decoder_heads : int
        512, 2 and 16 as the paper takes beside ViT-S (depth 8 beside ViT-B).
    fixed_positions : bool, optional
        Put sine and cosine codes in the backbone's position table and hold them; by default where its weights are
        random. Rotary networks without a table have nothing to hold.
    flip : bool
        Mirror half of the pictures, as the paper does in spite of the heart's side.

    Raises
    ------
    BackboneError
        For a network that patches cannot be left out of.
    UsageError
        For an image size that the patch does not divide, and for settings out of their range.
    """

    recipe: ClassVar[Recipe] = Recipe(learning_rate=1e-3, weight_decay=0.05, betas=(0.9, 0.95), epochs=100, warmup=0.05)
    default_backbone: ClassVar[str] = "vit_tiny_patch16_224.random"

    def __init__(
        self,
        backbone: nn.Module,
        image_size: int,
        *,
        variant: Literal["thorax", "natural"] = "thorax",
        mask_ratio: float | None = None,
        crop_scale: tuple[float, float] | None = None,
        normalised_target: bool | None = None,
        decoder_width: int = 512,
        decoder_depth: int = 2,
        decoder_heads: int = 16,
        fixed_positions: bool | None = None,
        flip: bool = True,
    ) -> None:
        super().__init__(backbone, image_size)
        self.patch = check_patches(backbone, image_size, _INSTEAD)
        if variant not in VARIANTS:
            raise UsageError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
        ratio, scale, by_patch = VARIANTS[variant]
        self.mask_ratio = ratio if mask_ratio is None else mask_ratio
        self.crop_scale = scale if crop_scale is None else crop_scale
        self.normalised_target = by_patch if normalised_target is None else normalised_target
        self.grid, self.flip = image_size // self.patch, flip
        patches = self.grid**2
        self.visible = visible_count(patches, self.mask_ratio)
        if not 0 < self.visible < patches:
            raise UsageError(
                f"mask_ratio={self.mask_ratio}: of {patches} patches {self.visible} would be visible; expected one or "
                f"more, and one that is hidden: a share between 0 and {1 - 1 / patches:.3f}. For small pictures take "
                "smaller patches"
            )
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UsageError(f"crop_scale={self.crop_scale}: expected two shares with 0 < smallest <= largest <= 1")
        if decoder_depth < 1 or decoder_heads < 1 or decoder_width < 4 or decoder_width % math.lcm(4, decoder_heads):
            raise UsageError(
                f"decoder_width={decoder_width}, decoder_depth={decoder_depth}, decoder_heads={decoder_heads}: "
                "expected one block or more, and a width that 4 and the heads divide, such as "
                f"{32 * max(1, decoder_heads)}"
            )
        width, prefix = self.backbone.embed_dim, self.backbone.num_prefix_tokens
        self.norm = LayerNorm(width) if isinstance(self.backbone.norm, nn.Identity) else nn.Identity()
        self.decoder = Decoder(width, prefix, self.grid, decoder_width, decoder_depth, decoder_heads, 3 * self.patch**2)
        if fixed_positions is None:
            fixed_positions = getattr(getattr(backbone, "card", None), "weights", None) == "random"
        table = self.backbone.pos_embed
        self.fixed = bool(fixed_positions) and table is not None
        if self.fixed:
            codes = sincos_positions(width, self.grid)
            with torch.no_grad():
                table.zero_()  # class and register tokens have no position
                table[:, -patches:] = codes.to(table)
            table.requires_grad_(False)

    def views(self) -> MAEViews:
        """Crop, mirror, and the numbers that decide which patches are hidden."""
        return MAEViews(self.image_size, self.grid**2, self.mean, self.std, self.crop_scale, self.flip)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """``pictures`` (B, 3, S, S) and ``noise`` (B, L) -> the loss."""
        seen, back, hidden = shuffled(batch["noise"], self.visible)
        painted = self.decoder(self.encode(batch["pictures"], seen), back)
        return {"loss": reconstruction_loss(painted, self.target(batch["pictures"]), hidden)}

    def encode(self, pictures: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Normed tokens (B, prefix + K, D) of the patches ``seen`` (B, K); no other patch enters the network."""
        return self.norm(encode_visible(self.backbone, pictures, seen))

    def target(self, pictures: torch.Tensor) -> torch.Tensor:
        """What is to be painted, (B, L, 3 p^2) in fp32."""
        patches = patchify(pictures.float(), self.patch)
        if self.normalised_target:
            mean, deviation = cell_moments(patches)
            patches = (patches - mean) / deviation
        return patches

    def no_weight_decay(self) -> set[str]:
        """The mask token."""
        return {"decoder.mask_token"}

    def export(self) -> nn.Module:
        """A copy of the backbone, all of it free to be trained; the decoder is left behind."""
        backbone = copy.deepcopy(self.backbone)
        if self.fixed:
            backbone.pos_embed.requires_grad_(True)
        return backbone

    def illustrate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The picture, what is visible of it, and the picture with its hidden patches painted."""
        pictures = batch["pictures"]
        seen, back, hidden = shuffled(batch["noise"], self.visible)
        painted = self.decoder(self.encode(pictures, seen), back).float()
        patches = patchify(pictures.float(), self.patch)
        if self.normalised_target:
            mean, deviation = cell_moments(patches)
            painted = painted * deviation + mean
        filled = unpatchify(torch.where(hidden[:, :, None], painted, patches), self.patch)
        shown = unpatchify((~hidden)[:, :, None].expand_as(patches).to(patches), self.patch)
        return {
            "picture": self.pictures(pictures),
            "visible": self.pictures(pictures) * shown,
            "painted": self.pictures(filled),
        }
