"""MAE with the thorax recipe: a vision transformer learns to paint nine tenths of a picture from the rest.

Xiao, Bai, Yuille, Zhou: Delving into Masked Autoencoders for Multi-Label Thorax Disease Classification, WACV 2023,
arXiv 2210.12843; the method is He, Chen, Xie, Li, Dollar, Girshick: Masked Autoencoders Are Scalable Vision Learners,
CVPR 2022, arXiv 2111.06377. The claim: with in-domain pictures, 90 % masking and gentle crops, a plain ViT becomes as
good on chest X-rays as the convolutional networks that were ahead of it.

Only visible patches enter the encoder (`offshelf.pretrain.tokens`), so that its cost falls with the mask ratio. A
light decoder gets them back in their places, with one learnt token at all others, and paints pixels; the loss is the
squared error over hidden patches.

Departures: the encoder starts as timm draws it, and pictures are normalised as the network's weights expect it; a
learnt table of positions is replaced by fixed codes only in networks that start from random weights; the rate of
learning is given for batches of 128; the mask token does not decay.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from timm.models.vision_transformer import Block
from torch import nn

from offshelf.engine.collective import masked_mean
from offshelf.engine.precision import full_precision
from offshelf.engine.recipe import Recipe
from offshelf.errors import UsageError
from offshelf.pretrain.objective import Batch, Objective
from offshelf.pretrain.patches import CellViews, cell_moments, patchify, unpatchify
from offshelf.pretrain.tokens import encode_visible, fix_positions, sincos_positions, token_grid

NATURAL_IMAGES: dict[str, Any] = {
    "mask_ratio": 0.75,
    "crop_scale": (0.2, 1.0),
    "norm_pix_loss": True,
    "decoder_depth": 8,
}
"""The settings of He et al. 2022 for natural images; the defaults are those for chest X-rays."""

_norm: Any = partial(nn.LayerNorm, eps=1e-6)


# ---- arithmetic ----------------------------------------------------------------------------------------------------


def visible_count(patches: int, mask_ratio: float) -> int:
    """Visible patches, rounded down in floating point: 196 at 0.9 -> 19, at 0.75 -> 49; 64 at 0.9 -> 6."""
    return int(patches * (1 - mask_ratio))


def random_masking(noise: torch.Tensor, mask_ratio: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which patches are visible: those with the smallest of the numbers ``noise`` (B, L).

    Returns
    -------
    kept : (B, K) int64, ids of the visible patches in the order of their numbers.
    restore : (B, L) int64; patch l is entry ``restore[l]`` of visible patches followed by hidden ones.
    hidden : (B, L) bool
    """
    shuffle = noise.argsort(dim=1, stable=True)
    restore = shuffle.argsort(dim=1)
    count = visible_count(noise.shape[1], mask_ratio)
    return shuffle[:, :count], restore, restore >= count


def in_places(visible: torch.Tensor, mask_token: torch.Tensor, restore: torch.Tensor) -> torch.Tensor:
    """Visible tokens (B, K, D) in their places, ``mask_token`` (1, 1, D) at all others: (B, L, D)."""
    b, k, width = visible.shape
    hidden = mask_token.to(visible.dtype).expand(b, restore.shape[1] - k, -1)
    return torch.cat([visible, hidden], dim=1).gather(1, restore[:, :, None].expand(-1, -1, width))


def reconstruction_loss(
    painted: torch.Tensor, patches: torch.Tensor, hidden: torch.Tensor, norm_pix_loss: bool
) -> torch.Tensor:
    """Mean over hidden patches of the squared error of their pixels (He et al. 2022, section 3).

    Parameters
    ----------
    painted, patches : (B, L, 3 p^2)
    hidden : bool (B, L)
    norm_pix_loss : whether the target is each patch less its mean, over its deviation (unbiased, eps 1e-6 within).
    """
    with full_precision(painted):
        target = patches.float()
        if norm_pix_loss:
            mean, deviation = cell_moments(target)
            target = (target - mean) / deviation
        return masked_mean((painted.float() - target).square().mean(-1), hidden)


# ---- decoder -------------------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """Transformer blocks over all places of a picture, and a linear layer to pixels.

    Parameters
    ----------
    encoder_width, width, depth, heads : int
    side, prefix, patch : int
        Patches along a side, tokens before them (which pass through and have no position), pixels along a patch.
    """

    positions: torch.Tensor

    def __init__(
        self, encoder_width: int, width: int, depth: int, heads: int, side: int, prefix: int, patch: int
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, width), std=0.02))
        self.register_buffer("positions", sincos_positions(width, side, prefix)[None])
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True, norm_layer=_norm) for _ in range(depth)))
        self.norm = _norm(width)
        self.pixels = nn.Linear(width, 3 * patch**2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, latent: torch.Tensor, restore: torch.Tensor) -> torch.Tensor:
        """``latent`` (B, P + K, D) of the encoder, ``restore`` (B, L) -> pixels of every patch (B, L, 3 p^2)."""
        x = self.embed(latent)
        patches = in_places(x[:, self.prefix :], self.mask_token, restore)
        x = torch.cat([x[:, : self.prefix], patches], dim=1) + self.positions.to(x.dtype)
        return self.pixels(self.norm(self.blocks(x)))[:, self.prefix :]


# ---- the objective -------------------------------------------------------------------------------------------------


class MAE(Objective):
    """Masked autoencoder (He et al. 2022) with the settings for chest X-rays (Xiao et al. 2023).

    `NATURAL_IMAGES` holds the settings for natural images.

    Parameters
    ----------
    backbone : nn.Module
        A plain vision transformer of timm, rotary ones included, built for ``image_size``.
    image_size : int
        A multiple of the network's patch. A hundred patches or more should come of it: 160 for patches of 16.
    mask_ratio : float
        Share of hidden patches.
    crop_scale : (float, float)
        Bounds of the share of the area that a crop keeps.
    norm_pix_loss : bool
        Paint each patch less its mean, over its deviation, instead of plain pixels.
    decoder_width, decoder_depth, decoder_heads : int
        The paper's for a ViT-S; it takes 8 blocks for a ViT-B.
    flip : bool
        Mirror half of the pictures; the paper does, although left and right have a meaning in a chest X-ray.
    positions : {"auto", "sincos", "own"}
        The encoder's table of positions: fixed sine-cosine codes, or the network's own. "auto" takes the codes for a
        network with random weights. Networks without a table are left as they are.

    Raises
    ------
    BackboneError
        For any other network.
    UsageError
        For an image size that the patch does not divide, or of which no patch would be visible, and for settings out of
        their range.
    """

    recipe: ClassVar[Recipe] = Recipe(
        learning_rate=1e-3, weight_decay=0.05, betas=(0.9, 0.95), batch_size=128, epochs=100, warmup=0.05
    )
    default_backbone: ClassVar[str] = "vit_tiny_patch16_224.random"

    def __init__(
        self,
        backbone: nn.Module,
        image_size: int,
        *,
        mask_ratio: float = 0.9,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        norm_pix_loss: bool = False,
        decoder_width: int = 512,
        decoder_depth: int = 2,
        decoder_heads: int = 16,
        flip: bool = True,
        positions: Literal["auto", "sincos", "own"] = "auto",
    ) -> None:
        super().__init__(backbone, image_size)
        if not 0 < mask_ratio < 1:
            raise UsageError(f"mask_ratio={mask_ratio}: expected a share between 0 and 1, such as 0.9")
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise UsageError(f"crop_scale={crop_scale}: expected two shares with 0 < smallest <= largest <= 1")
        if decoder_heads < 1 or decoder_width < 1 or decoder_width % (4 * decoder_heads):
            step = 4 * max(1, decoder_heads)
            raise UsageError(
                f"decoder_width={decoder_width}: expected a multiple of 4 x decoder_heads, {step}; "
                f"{max(1, round(decoder_width / step)) * step} works"
            )
        if decoder_depth < 1:
            raise UsageError(f"decoder_depth={decoder_depth}: expected 1 or more blocks")
        self.grid = token_grid(backbone, image_size, least=_least_side(mask_ratio))
        if visible_count(self.grid.count, mask_ratio) == self.grid.count:
            raise UsageError(
                f"mask_ratio={mask_ratio}: all {self.grid.count} patches would be visible; expected more, such as 0.9"
            )
        self.mask_ratio, self.crop_scale, self.flip = mask_ratio, crop_scale, flip
        self.norm_pix_loss = norm_pix_loss
        random = getattr(getattr(backbone, "card", None), "weights", None) == "random"
        if positions == "sincos" or (positions == "auto" and random):
            fix_positions(backbone, self.grid)
        # a network that pools before its last norm has none of its own here
        ends_bare = isinstance(self.backbone.norm, nn.Identity)
        self.norm = _norm(self.grid.width) if ends_bare else nn.Identity()
        self.decoder = Decoder(
            *(self.grid.width, decoder_width, decoder_depth, decoder_heads),
            *(self.grid.side, self.grid.prefix, self.grid.patch),
        )

    def views(self) -> CellViews:
        """Crop, mirror, and the numbers that decide which patches are hidden."""
        return CellViews(self.image_size, self.grid.count, self.mean, self.std, self.crop_scale, self.flip)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """``pictures`` (B, 3, S, S) and ``noise`` (B, L) -> the loss."""
        kept, restore, hidden = random_masking(batch["noise"], self.mask_ratio)
        painted = self.decoder(self.encode(batch["pictures"], kept), restore)
        patches = patchify(batch["pictures"], self.grid.patch)
        return {"loss": reconstruction_loss(painted, patches, hidden, self.norm_pix_loss)}

    def encode(self, pictures: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """What the encoder makes of the patches ``kept`` (B, K) of ``pictures``: (B, P + K, D)."""
        return self.norm(encode_visible(self.backbone, pictures, kept))

    def no_weight_decay(self) -> set[str]:
        """The mask token."""
        return {"decoder.mask_token"}

    def illustrate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The picture, what is visible of it, and the picture with its hidden patches painted."""
        kept, restore, hidden = random_masking(batch["noise"], self.mask_ratio)
        patches = patchify(batch["pictures"].float(), self.grid.patch)
        painted = self.decoder(self.encode(batch["pictures"], kept), restore).float()
        if self.norm_pix_loss:
            mean, deviation = cell_moments(patches)
            painted = painted * deviation + mean
        veil = unpatchify(hidden[:, :, None].expand_as(patches), self.grid.patch)
        picture = self.pictures(batch["pictures"])
        return {
            "picture": picture,
            "visible": picture.masked_fill(veil, 0.0),
            "painted": torch.where(veil, self.pictures(unpatchify(painted, self.grid.patch)), picture),
        }


def _least_side(mask_ratio: float) -> int:
    """Patches along a side from which on at least one is visible."""
    side = 2
    while not visible_count(side**2, mask_ratio):
        side += 1
    return side
