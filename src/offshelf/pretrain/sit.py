"""SiT: a vision transformer restores corrupted pictures, tells how they were turned, and tells them apart.

Atito, Awais, Kittler: SiT: Self-supervised vIsion Transformer, arXiv 2104.03602, in its first form of 2021. The claim:
a vision transformer that learns the three tasks together, each with a learnt weight, can then be fine-tuned with a few
thousand pictures, where one from scratch cannot.

Two views of a picture are made, each is turned by a multiple of 90 degrees, and each is corrupted on rectangles: one
loses its colour, one is blurred, some are replaced by noise and some by the same place of another picture. A token is
read for the turn and one for the contrast of views; the patches' tokens are painted back to the clean view. For a task
with loss L and learnt s = ln(variance), the total gets ``exp(-s) L + s / 2``, the absolute error ``exp(-s / 2) L +
s / 2`` (Kendall, Gal and Cipolla 2018).

Departures: a network with two prefix tokens (DeiT's distilled form) keeps both; for others the missing ones belong to
the objective, rotation first, and are left behind with it, their row of the position table within them. Other pictures
are copied before they themselves received such copies, so that the order in the batch means nothing, and blocks lie
wholly within the picture. No repeated augmentation, no drop path and no moving average; rates are higher and runs
shorter than the paper's 501 epochs. The later form of the authors' code (masked groups, a momentum teacher, no
rotation) is another method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from offshelf.data.augment import color_jitter, normalised, random_flip, random_resized_crop
from offshelf.engine.collective import gather, rank
from offshelf.engine.draws import Draws
from offshelf.engine.precision import full_precision
from offshelf.engine.recipe import Recipe
from offshelf.errors import BackboneError, UsageError
from offshelf.pretrain.objective import Batch, Objective

SMALLEST, LARGEST_BLOCK = 0.05, 0.25  # sides of rectangles, as shares of the picture's
BLUR_TAPS, BLUR_SIGMA = (3, 15), (0.1, 5.1)
TURNS = 4


# ---- turns and corruption --------------------------------------------------------------------------------------------


def rotated(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Pictures (B, C, S, S), picture i turned clockwise by ``turns[i]`` times 90 degrees."""
    y = x.clone()
    for k in range(1, TURNS):
        y[turns == k] = torch.rot90(x[turns == k], -k, (2, 3))
    return y


def rectangles(draws: Draws, count: int, side: int, most: float) -> np.ndarray:
    """(B, count, 4) int64 as top, left, height, width: sides from 5 % to ``most`` of the picture's, wholly in it."""
    least = math.ceil(SMALLEST * side)
    sides = least + draws.integers(max(least, math.floor(most * side)) - least + 1, count, 2)
    return np.concatenate([np.floor(draws.uniform(count, 2) * (side - sides + 1)).astype(np.int64), sides], axis=2)


def needed(boxes: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Bool (B, K): the first of ``boxes`` (B, K, 4) that reach ``area`` (B,) pixels, overlaps counted twice."""
    sizes = boxes[..., 2] * boxes[..., 3]
    return sizes.cumsum(axis=1) - sizes < area[:, None]


def covered(boxes: np.ndarray, used: np.ndarray, side: int) -> torch.Tensor:
    """Bool (B, 1, side, side): where one of the ``used`` (B, K) rectangles lies."""
    most = max(1, int(used.sum(axis=1).max(initial=0)))
    boxes, used = boxes[:, :most], used[:, :most]  # those that are used come first
    places = np.arange(side)
    down = (places >= boxes[..., :1]) & (places < boxes[..., :1] + boxes[..., 2:3]) & used[..., None]
    across = (places >= boxes[..., 1:2]) & (places < boxes[..., 1:2] + boxes[..., 3:])
    rows, columns = (torch.from_numpy(part).float() for part in (down, across))
    return (torch.einsum("bks,bkt->bst", rows, columns) > 0)[:, None]


def one_rectangle(draws: Draws, side: int) -> torch.Tensor:
    """Bool (B, 1, side, side): a rectangle in each picture, up to the whole of it."""
    boxes = rectangles(draws, 1, side, 1.0)
    return covered(boxes, np.ones(boxes.shape[:2], dtype=bool), side)


def blocks(draws: Draws, side: int, most: float) -> torch.Tensor:
    """Bool (B, 1, side, side): blocks that reach a share of the picture drawn from 0 to ``most``."""
    area = draws.uniform(high=most) * side**2
    count = math.ceil(most * side**2 / math.ceil(SMALLEST * side) ** 2)  # enough if all are the smallest
    boxes = rectangles(draws, count, side, LARGEST_BLOCK)
    return covered(boxes, needed(boxes, area), side)


def unit_noise(draws: Draws, shape: torch.Size) -> torch.Tensor:
    """(B, *shape) standard normal; torch's generator is twenty times as quick for whole pictures as the draws are."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in draws.seeds()])


def blurred(x: torch.Tensor, taps: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of (B, C, S, S), edges mirrored, with an own odd number of ``taps`` (B,) and ``sigma`` (B,)."""
    b, c, side, _ = x.shape
    reach = min(BLUR_TAPS[1] // 2, side - 1)
    away = torch.arange(-reach, reach + 1).abs()
    kernel = torch.exp(-0.5 * (away / sigma[:, None]).square()) * (away <= taps[:, None] // 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(x.dtype).repeat_interleave(c, 0)
    flat = F.pad(x.reshape(1, b * c, side, side), (reach,) * 4, mode="reflect")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=b * c)
    return F.conv2d(flat, kernel[:, None, None, :], groups=b * c).view_as(x)


def with_copies(
    pictures: torch.Tensor, others: torch.Tensor, copied: torch.Tensor, donor: torch.Tensor
) -> torch.Tensor:
    """Replace pixels by those at the same place of another picture; of itself, if that one is drawn.

    Parameters
    ----------
    pictures : (B, V, 3, S, S)
        V views of each picture.
    others : (N, V, 3, S, S)
        All pictures that may be copied from, view by view.
    copied : bool (B, V, 1, S, S)
    donor : (B, V) numbers from 0 to 1
        Which of the N.
    """
    chosen = (donor * len(others)).long().clamp(max=len(others) - 1)
    views = torch.arange(pictures.shape[1], device=pictures.device)
    return torch.where(copied, others[chosen, views], pictures)


# ---- losses ----------------------------------------------------------------------------------------------------------


def contrastive_loss(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """NT-Xent (Chen et al. 2020): each of 2B embeddings picks the other view of its picture among 2B - 1 others.

    Parameters
    ----------
    first, second : (B, d)
        Views of the same B pictures; those of all processes are the ones to pick from.
    """
    with full_precision(first):
        one, two = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
        everyone_one, everyone_two = gather(one), gather(two)
        n = len(everyone_one)
        scores = torch.cat([one, two]) @ torch.cat([everyone_one, everyone_two]).T / temperature
        own = torch.arange(len(one), device=one.device) + rank() * len(one)
        itself = F.one_hot(torch.cat([own, own + n]), 2 * n).bool()
        return F.cross_entropy(scores.masked_fill(itself, -math.inf), torch.cat([own + n, own]))


def reconstruction_loss(painted: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Mean absolute error over all pixels, corrupted or not."""
    with full_precision(painted):
        return F.l1_loss(painted.float(), clean.float())


def weighted(loss: torch.Tensor, log_variance: torch.Tensor, absolute: bool = False) -> torch.Tensor:
    """``exp(-s) L + s / 2``, least at s = ln 2L; ``absolute``: ``exp(-s / 2) L + s / 2``, least at s = 2 ln L."""
    with full_precision(loss):
        return torch.exp(-log_variance / 2 if absolute else -log_variance) * loss + log_variance / 2


# ---- the objective ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SiTViews:
    """Two views of each picture, each turned, corrupted but for the copies, and told where to copy from."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rotate: bool
    grey_and_blur: bool
    max_replaced: float
    crop_scale: tuple[float, float]
    jitter: float
    flip: bool

    def __call__(self, pixels: torch.Tensor, draws: Draws) -> Batch:
        """uint8 (B, 3, H, W) -> two views of each.

        ``clean``, ``corrupted`` (B, 2, 3, S, S); ``turns`` (B, 2) from 0 to 3; ``copied`` bool (B, 2, 1, S, S) and
        ``donor`` (B, 2) from 0 to 1: where, and which other picture is to be copied.
        """
        views = [self._view(pixels, draws) for _ in range(2)]
        return {name: torch.stack([view[name] for view in views], dim=1) for name in views[0]}

    def _view(self, pixels: torch.Tensor, draws: Draws) -> Batch:
        x = random_resized_crop(pixels, draws, self.size, self.crop_scale)
        if self.flip:
            x = random_flip(x, draws)
        if self.jitter:
            x = color_jitter(x, draws, self.jitter, self.jitter, self.jitter)
        turns = torch.from_numpy(draws.integers(TURNS)) if self.rotate else torch.zeros(len(x), dtype=torch.long)
        clean = rotated(normalised(x, self.mean, self.std), turns)
        corrupted, copied = clean, torch.zeros(len(x), 1, self.size, self.size, dtype=torch.bool)
        if self.grey_and_blur:
            grey = corrupted.mean(1, keepdim=True)
            corrupted = torch.where(one_rectangle(draws, self.size), grey, corrupted)
            taps = BLUR_TAPS[0] + 2 * torch.from_numpy(draws.integers((BLUR_TAPS[1] - BLUR_TAPS[0]) // 2 + 1))
            sigma = torch.from_numpy(draws.uniform(low=BLUR_SIGMA[0], high=BLUR_SIGMA[1]))
            corrupted = torch.where(one_rectangle(draws, self.size), blurred(corrupted, taps, sigma), corrupted)
        if self.max_replaced:
            noise = unit_noise(draws, corrupted.shape[1:])
            corrupted = torch.where(blocks(draws, self.size, self.max_replaced), noise, corrupted)
            copied = blocks(draws, self.size, self.max_replaced)
        donor = torch.from_numpy(draws.uniform()).float()
        return {"clean": clean, "corrupted": corrupted, "turns": turns, "copied": copied, "donor": donor}


class SiT(Objective):
    """Restore, tell the turn, and contrast, with learnt weights (Atito et al. 2021, section 3).

    Parameters
    ----------
    backbone : nn.Module
        A plain vision transformer of timm. Of its own tokens the class token serves the contrast; DeiT's distilled
        form, such as ``deit_tiny_distilled_patch16_224``, has one for the rotation too and keeps both.
    image_size : int
        A multiple of the patch.
    reconstruct, rotate, contrast : bool
        The tasks; a single one has no weight to learn. Switch ``rotate`` off where pictures have no upright position,
        or all have the same one that is easily told, as chest X-rays.
    max_replaced : float
        Largest share of a picture that noise replaces, and again other pictures; 0 switches both off.
    grey_and_blur : bool
        Take the colour out of one rectangle and blur one.
    temperature : float
        Of the contrast.
    projection_dim : int
        Width of the embedding that is contrasted.
    crop_scale : (float, float)
        Bounds of the share of the area that a view keeps.
    jitter : float
        Strength of changes of brightness, contrast and saturation.
    flip : bool
        Mirror half of the views; switch off where left and right have a meaning.

    Raises
    ------
    BackboneError
        For a network that is no plain vision transformer.
    UsageError
        For an image size that the patch does not divide, or settings out of their range.
    """

    recipe: ClassVar[Recipe] = Recipe(learning_rate=1e-3, weight_decay=0.05, epochs=50, warmup=0.05, final_rate=0.005)
    default_backbone: ClassVar[str] = "deit_tiny_distilled_patch16_224.random"

    def __init__(
        self,
        backbone: nn.Module,
        image_size: int,
        *,
        reconstruct: bool = True,
        rotate: bool = True,
        contrast: bool = True,
        max_replaced: float = 0.3,
        grey_and_blur: bool = True,
        temperature: float = 0.5,
        projection_dim: int = 512,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        jitter: float = 0.4,
        flip: bool = True,
    ) -> None:
        super().__init__(backbone, image_size)
        self.patch_size = _patch_size(backbone, image_size)
        self.grid = image_size // self.patch_size
        chosen = {"reconstruction": reconstruct, "rotation": rotate, "contrast": contrast}
        self.tasks = [task for task, wanted in chosen.items() if wanted]
        if not self.tasks:
            raise UsageError("reconstruct, rotate and contrast are all false: expected at least one task to learn")
        if not 0 <= max_replaced <= 1:
            raise UsageError(f"max_replaced={max_replaced}: expected a share from 0 to 1, such as 0.3")
        if not temperature > 0:
            raise UsageError(f"temperature={temperature}: expected a number above 0, such as 0.5")
        if projection_dim < 1:
            raise UsageError(f"projection_dim={projection_dim}: expected 1 or more, such as 512")
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise UsageError(f"crop_scale={crop_scale}: expected two shares with 0 < smallest <= largest <= 1")
        if not 0 <= jitter <= 1:
            raise UsageError(f"jitter={jitter}: expected a strength from 0 to 1, such as 0.4")
        self.max_replaced, self.grey_and_blur, self.temperature = max_replaced, grey_and_blur, temperature
        self.crop_scale, self.jitter, self.flip = crop_scale, jitter, flip

        width = self.backbone.embed_dim
        self.missing = 2 - (self.backbone.cls_token is not None) - hasattr(backbone, "dist_token")
        self.own_tokens = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(1, self.missing, width), std=0.02)) if self.missing else None
        )
        self.turn_head = nn.Linear(width, TURNS) if rotate else None
        self.contrast_head = nn.Linear(width, projection_dim) if contrast else None
        self.pixel_head = nn.ConvTranspose2d(width, 3, self.patch_size, self.patch_size) if reconstruct else None
        self.log_variances = nn.Parameter(torch.ones(len(self.tasks))) if len(self.tasks) > 1 else None

    def views(self) -> SiTViews:
        """Crop, mirror, jitter, turn, corrupt; twice."""
        return SiTViews(
            self.image_size,
            self.mean,
            self.std,
            "rotation" in self.tasks,
            self.grey_and_blur,
            self.max_replaced,
            self.crop_scale,
            self.jitter,
            self.flip,
        )

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What `SiTViews` makes -> the loss, and the loss and log variance of each task."""
        corrupted, clean = batch["corrupted"], batch["clean"].transpose(0, 1).flatten(0, 1)
        if self.max_replaced:
            corrupted = with_copies(corrupted, gather(corrupted), batch["copied"], batch["donor"])
        turn, contrast, patches = self.encode(corrupted.transpose(0, 1).flatten(0, 1))  # first views, then second ones
        losses: dict[str, torch.Tensor] = {}
        accuracy: dict[str, torch.Tensor] = {}
        if self.pixel_head is not None:
            losses["reconstruction"] = reconstruction_loss(self.paint(patches), clean)
        if self.turn_head is not None:
            scores, turns = self.turn_head(turn), batch["turns"].T.flatten()
            with full_precision(scores):
                losses["rotation"] = F.cross_entropy(scores.float(), turns)
            accuracy["rotation_accuracy"] = (scores.detach().argmax(1) == turns).float().mean()
        if self.contrast_head is not None:
            first, second = self.contrast_head(contrast).chunk(2)
            losses["contrast"] = contrastive_loss(first, second, self.temperature)
        if self.log_variances is None:
            return {"loss": losses[self.tasks[0]], **accuracy}
        log_variances = dict(zip(self.tasks, self.log_variances))
        parts = [weighted(losses[task], s, absolute=task == "reconstruction") for task, s in log_variances.items()]
        return {
            "loss": torch.stack(parts).sum(),
            **{task: loss.detach() for task, loss in losses.items()},
            **accuracy,
            **{f"log_variance_{task}": s.detach() for task, s in log_variances.items()},
        }

    def encode(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 3, S, S) -> the token of the turn (B, D), that of the contrast (B, D), and the patches' (B, N, D)."""
        network = self.backbone
        x = network._pos_embed(network.patch_embed(pictures))
        if self.own_tokens is not None:
            x = torch.cat([self.own_tokens.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        # one of the two norms is the identity: that of the tokens, or that of their mean
        x = network.fc_norm(network.norm(network.blocks(network.norm_pre(x))))
        return x[:, 0], x[:, 1], x[:, self.missing + network.num_prefix_tokens :]

    def paint(self, patches: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, D) -> pictures (B, 3, S, S), each patch from its own token."""
        assert self.pixel_head is not None
        return self.pixel_head(patches.transpose(1, 2).unflatten(2, (self.grid, self.grid)))

    def no_weight_decay(self) -> set[str]:
        """The tokens; the log variances have one dimension."""
        return {"own_tokens"} if self.missing else set()

    def illustrate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """A view, what is left of it, and what is painted from that."""
        corrupted = with_copies(batch["corrupted"], batch["corrupted"], batch["copied"], batch["donor"])[:, 0]
        shown = {"picture": self.pictures(batch["clean"][:, 0]), "corrupted": self.pictures(corrupted)}
        if self.pixel_head is not None:
            shown["reconstruction"] = self.pictures(self.paint(self.encode(corrupted)[2]))
        return shown


def _patch_size(backbone: Any, image_size: int) -> int:
    """The side of a patch, if the network is a plain vision transformer that takes pictures of this size."""
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    plain = isinstance(backbone, VisionTransformer) and isinstance(backbone.patch_embed, PatchEmbed)
    if not plain or type(backbone).forward_features is not VisionTransformer.forward_features:
        raise BackboneError(
            f"{type(backbone).__name__}: sit needs a plain vision transformer of timm, such as "
            "deit_tiny_distilled_patch16_224 or vit_small_patch16_224; for convolutional networks take spark or selfie"
        )
    if not isinstance(backbone.patch_drop, nn.Identity):
        raise BackboneError(
            f"{type(backbone).__name__}: drops patches at random, and sit reads all of them; load it without "
            "patch_drop_rate"
        )
    height, width = backbone.patch_embed.patch_size
    if height != width:
        raise BackboneError(f"{type(backbone).__name__}: patches of {height} x {width} pixels; sit needs square ones")
    if image_size % height or image_size < height:
        below = max(1, image_size // height) * height
        near = f"{below} works" if image_size < height else f"{below} and {below + height} work"
        raise UsageError(f"image_size={image_size}: expected a multiple of the patch, {height} pixels; {near}")
    built = backbone.patch_embed.img_size
    if not backbone.dynamic_img_size and tuple(built) != (image_size, image_size):
        raise UsageError(
            f"image_size={image_size}: this network is built for {built[0]} pixels; call "
            f"set_input_size(({image_size}, {image_size})) on it, or take {built[0]}"
        )
    return height
