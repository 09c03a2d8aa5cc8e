"""SparK: a convolutional network learns to paint hidden cells of a picture from features of several scales.

Tian, Jiang, Diao, Lin, Wang, Yuan: Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling,
ICLR 2023, arXiv 2301.03580. The claim: an ordinary convolutional network, unchanged, gains more from masked
pre-training than from contrastive pre-training, if its layers never see hidden cells (`offshelf.pretrain.sparse`) and
its decoder paints from several scales.

A cell has the side of the network's stride r. Of L cells, round(L (1 - mask_ratio)) are visible. A U-Net decoder takes
the stages from the coarsest on, each with a learnt mask token at hidden positions, and the loss is the squared error of
hidden cells' pixels, each cell normalised by its own mean and deviation.

Departures: the recipe is AdamW for batches of 128 instead of LAMB for 4,096, with a constant weight decay instead of a
growing one; at most the four coarsest stages are used (the paper's networks have four), chosen by stride, the last of
equal stride; weights of the decoder start as torch draws them.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import nn

from offshelf.engine.collective import batch_normalised, masked_mean
from offshelf.engine.precision import full_precision
from offshelf.engine.recipe import Recipe
from offshelf.errors import BackboneError, UsageError
from offshelf.pretrain.objective import Batch, Objective
from offshelf.pretrain.patches import CellViews, cell_moments, patchify, unpatchify
from offshelf.pretrain.sparse import Visible, make_dense, make_sparse, repeated

MOST_STAGES = 4


# ---- arithmetic ----------------------------------------------------------------------------------------------------


def visible_count(cells: int, mask_ratio: float) -> int:
    """Visible cells of ``cells``, half to even: 49 at 0.6 -> 20, 16 at 0.6 -> 6, 144 at 0.75 -> 36."""
    return round(cells * (1 - mask_ratio))


def visible_cells(noise: torch.Tensor, mask_ratio: float) -> torch.Tensor:
    """Bool (B, 1, g, g): the cells with the smallest of the numbers ``noise`` (B, g * g) are visible."""
    side = math.isqrt(noise.shape[1])
    kept = noise.argsort(dim=1, stable=True)[:, : visible_count(noise.shape[1], mask_ratio)]
    seen = torch.zeros(noise.shape, dtype=torch.bool, device=noise.device)
    return seen.scatter_(1, kept, True).view(-1, 1, side, side)


def reconstruction_loss(painted: torch.Tensor, pictures: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Mean over hidden cells of the squared error against their normalised pixels (section 3.3).

    An all-zero painting scores (N - 1) / N for N = 3 r^2, and visible cells give no gradient.

    Parameters
    ----------
    painted, pictures : (B, 3, S, S)
    seen : bool (B, 1, g, g)
    """
    side = pictures.shape[-1] // seen.shape[-1]
    with full_precision(painted):
        target = patchify(pictures.float(), side)
        mean, deviation = cell_moments(target)
        error = (patchify(painted.float(), side) - (target - mean) / deviation).square().mean(-1)
        return masked_mean(error, ~seen.flatten(1))


# ---- from stages to pixels -----------------------------------------------------------------------------------------


class Densify(nn.Module):
    """Normalise a stage over its visible positions, put a learnt token at the others, bring it to the decoder's width.

    Parameters
    ----------
    channels, width : of the stage and of the decoder at its level.
    kernel : 1 for the coarsest stage, 3 for the others.
    by_layer : layer norm instead of batch norm, for ConvNeXt.
    """

    def __init__(self, channels: int, width: int, kernel: int, by_layer: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6) if by_layer else nn.BatchNorm2d(channels)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, channels, 1, 1), std=0.02, a=-0.02, b=0.02))
        same = kernel == 1 and channels == width
        self.project = nn.Identity() if same else nn.Conv2d(channels, width, kernel, padding=kernel // 2)

    def forward(self, stage: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``stage`` (B, C, h, w), ``mask`` bool (B, 1, h, w) -> (B, width, h, w)."""
        if isinstance(self.norm, nn.LayerNorm):
            normed = self.norm(stage.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        else:
            normed = batch_normalised(stage, self.norm, mask.to(stage.dtype))
        return self.project(torch.where(mask, normed, self.mask_token.to(normed.dtype)))


def decoder_block(channels: int, width: int) -> nn.Sequential:
    """(B, channels, h, w) -> (B, width, 2h, 2w)."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(inplace=True),
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
    )


class Decoder(nn.Module):
    """A light U-Net of log2(stride) blocks that halve the width from ``width`` on; stages are added, not joined."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        widths = [width >> i for i in range(stride.bit_length())]
        self.blocks = nn.ModuleList(decoder_block(a, b) for a, b in zip(widths, widths[1:]))
        self.pixels = nn.Conv2d(widths[-1], 3, 1)

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        """Stages from the coarsest on, each of twice the size of the last -> (B, 3, S, S)."""
        h: Any = 0
        for i, block in enumerate(self.blocks):
            h = block(h + stages[i] if i < len(stages) else h)
        return self.pixels(h)


# ---- the objective ---------------------------------------------------------------------------------------------------


class SparK(Objective):
    """Sparse and hierarchical masked modelling (Tian et al. 2023, section 3).

    Parameters
    ----------
    backbone : nn.Module
        A convolutional network of timm of `offshelf.pretrain.sparse.FAMILIES`; its layers become sparse in place, and
        outside of ``forward`` act as before.
    image_size : int
        A multiple of the network's stride r, at least 2 r: 64 or more for stride 32.
    mask_ratio : float
        Share of hidden cells; the paper takes 0.6 at 224 pixels and 0.75 at 384.
    decoder_width : int
        At the coarsest stage; a multiple of r. 768 as in the paper has 23 million parameters; a small network on small
        pictures does with 64 or 128.
    crop_scale : (float, float)
        Bounds of the share of the area that a crop keeps.
    flip : bool
        Mirror half of the pictures; switch off where left and right have a meaning.

    Raises
    ------
    BackboneError
        For a network without sparse twins, or whose stages do not halve.
    UsageError
        For an image size that the stride does not divide or that has fewer than 2 x 2 cells, and for settings out of
        their range.
    """

    recipe: ClassVar[Recipe] = Recipe(
        learning_rate=1e-3, weight_decay=0.04, betas=(0.9, 0.95), epochs=20, warmup=0.05, final_rate=0.001, clip=5.0
    )

    def __init__(
        self,
        backbone: nn.Module,
        image_size: int,
        *,
        mask_ratio: float = 0.6,
        decoder_width: int = 768,
        crop_scale: tuple[float, float] = (0.67, 1.0),
        flip: bool = True,
    ) -> None:
        super().__init__(backbone, image_size)
        self.visible: Visible = make_sparse(backbone)
        try:
            self.stride = _stride(backbone, image_size)
            self.stages, channels = _stages(backbone, image_size, self.stride)
        except Exception:
            make_dense(backbone)
            raise
        self.grid = image_size // self.stride
        self.mask_ratio, self.crop_scale, self.flip = mask_ratio, crop_scale, flip
        if not 0 < visible_count(self.grid**2, mask_ratio) < self.grid**2:
            raise UsageError(
                f"mask_ratio={mask_ratio}: of {self.grid**2} cells none or all would be visible; expected a share "
                f"between {0.5 / self.grid**2:.3f} and {1 - 0.5 / self.grid**2:.3f}, such as 0.6"
            )
        if decoder_width < self.stride or decoder_width % self.stride:
            raise UsageError(
                f"decoder_width={decoder_width}: expected a multiple of the network's stride, {self.stride}, since the "
                f"width is halved down to it; {max(1, round(decoder_width / self.stride)) * self.stride} works"
            )
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise UsageError(f"crop_scale={crop_scale}: expected two shares with 0 < smallest <= largest <= 1")
        self.densify = nn.ModuleList(
            Densify(c, decoder_width >> i, 3 if i else 1, by_layer=type(backbone).__name__ == "ConvNeXt")
            for i, c in enumerate(channels)
        )
        self.decoder = Decoder(decoder_width, self.stride)

    def views(self) -> CellViews:
        """A large crop, mirrored or not, and the numbers that hide cells; colour jitter harms this method."""
        return CellViews(self.image_size, self.grid**2, self.mean, self.std, self.crop_scale, self.flip)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """``pictures`` (B, 3, S, S) and ``noise`` (B, L) -> the loss; painting nothing scores 1."""
        seen = visible_cells(batch["noise"], self.mask_ratio)
        return {"loss": reconstruction_loss(self.paint(batch["pictures"], seen), batch["pictures"], seen)}

    def encode(self, pictures: torch.Tensor, seen: torch.Tensor) -> list[torch.Tensor]:
        """Stages of the sparse network from the coarsest on, exactly zero at hidden positions.

        Parameters
        ----------
        pictures : (B, 3, S, S)
        seen : bool (B, 1, g, g)
        """
        with self.visible.only(seen):
            maps = _maps(self.backbone, self.visible.masked(pictures))
        return [maps[i] for i in self.stages]

    def paint(self, pictures: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Normalised pixels of every cell (B, 3, S, S), from the visible ones."""
        filled = [
            densify(stage, repeated(seen, *stage.shape[-2:]))
            for densify, stage in zip(self.densify, self.encode(pictures, seen))
        ]
        return self.decoder(filled)

    def no_weight_decay(self) -> set[str]:
        """The mask tokens."""
        return {name for name, _ in self.named_parameters() if name.endswith("mask_token")}

    def export(self) -> nn.Module:
        """A copy of the backbone as a plain dense network; decoder and tokens are left behind."""
        import copy

        return make_dense(copy.deepcopy(self.backbone))

    def illustrate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The picture, what is visible of it, and the picture with its hidden cells painted."""
        pictures = batch["pictures"]
        seen = visible_cells(batch["noise"], self.mask_ratio)
        mean, deviation = cell_moments(patchify(pictures.float(), self.stride))
        painted = patchify(self.paint(pictures, seen).float(), self.stride) * deviation + mean
        clear = repeated(seen, self.image_size, self.image_size)
        return {
            "picture": self.pictures(pictures),
            "visible": self.pictures(pictures) * clear,
            "painted": self.pictures(torch.where(clear, pictures.float(), unpatchify(painted, self.stride))),
        }


def _maps(backbone: Any, x: torch.Tensor) -> list[torch.Tensor]:
    return backbone.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")


def _stride(backbone: Any, image_size: int) -> int:
    """The network's total stride, if it cuts the picture into at least 2 x 2 cells."""
    info = backbone.feature_info
    stride = int(max(stage["reduction"] for stage in (info if isinstance(info, list) else info.info)))
    if image_size % stride or image_size < 2 * stride:
        below = max(2, image_size // stride) * stride
        near = f"{below} works" if image_size < 2 * stride else f"{below} and {below + stride} work"
        raise UsageError(
            f"image_size={image_size}: expected a multiple of the network's stride, {stride}, with at least 2 x 2 "
            f"cells of that side; {near}. For smaller pictures take a network of smaller stride"
        )
    return stride


def _stages(backbone: Any, image_size: int, stride: int) -> tuple[list[int], list[int]]:
    """Which maps are painted from, the coarsest first, and their channels; found by one pass, moments untouched."""
    was = {module: module.training for module in backbone.modules()}
    parameter = next(backbone.parameters())
    with torch.no_grad():
        maps = _maps(backbone.eval(), parameter.new_zeros(1, 3, image_size, image_size))
    for module, training in was.items():
        module.training = training
    last_of = {image_size / found.shape[-1]: number for number, found in enumerate(maps)}
    wanted = [stride / 2**i for i in range(min(MOST_STAGES, stride.bit_length() - 1))]
    chosen = [last_of[s] for s in wanted if s in last_of]
    if max(last_of) != stride or [s for s in wanted if s in last_of] != wanted[: len(chosen)]:
        raise BackboneError(
            f"{type(backbone).__name__}: its stages have strides {sorted(last_of)}; expected each to be half of the "
            f"next, up to {stride}; choose a network such as a ResNet or ConvNeXt"
        )
    return chosen, [maps[number].shape[1] for number in chosen]
