"""What fine-tuning trains: a network with a classifier, the views it sees, and the pictures as the loop reads them.

Mixed pictures follow Zhang et al. (2018, mixup) and Yun et al. (2019, CutMix), each picture with an own share and a
partner of its own batch; a frozen trunk at the start is the first half of Kumar et al. (2022, LP-FT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import nn

from offshelf.backbones.parameter_groups import parameter_groups
from offshelf.data.augment import (
    normalised,
    rand_augment,
    random_affine,
    random_flip,
    random_resized_crop,
    random_shift,
    resized,
)
from offshelf.engine.collective import masked_mean
from offshelf.engine.draws import Draws
from offshelf.engine.precision import full_precision

# ---- losses --------------------------------------------------------------------------------------


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy of ``(B, K)`` against class numbers (B,) or shares of classes (B, K).

    With smoothing the target is ``(1 - s) target + s / K`` (Szegedy et al. 2016).
    """
    with full_precision(logits):
        return F.cross_entropy(logits.float(), target, label_smoothing=label_smoothing)


def binary_cross_entropy(logits: torch.Tensor, target: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean binary cross-entropy of ``(B, K)`` over the known entries of ``target`` (B, K); NaN is unknown.

    With smoothing a target is ``(1 - s) target + s / 2``.
    """
    with full_precision(logits):
        known = ~target.isnan()
        smooth = (1 - label_smoothing) * target.nan_to_num(0.0).float() + label_smoothing / 2
        return masked_mean(F.binary_cross_entropy_with_logits(logits.float(), smooth, reduction="none"), known)


# ---- views ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassificationViews:
    """One augmented view of each picture: ``uint8 (B, 3, S, S)`` -> ``{"image": float32 (B, 3, size, size)}``.

    In this order: shift and mirror, RandAugment, crop (or the whole picture) to ``size``, turn, scale and move,
    normalise. What is off draws nothing and changes nothing.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: float = 0.0
    flip: bool = False
    rand_augment: str | None = None
    crop: float | None = None
    rotation: float = 0.0
    scale: float = 0.0
    translation: float = 0.0

    def __call__(self, pixels: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
        """The views of a batch."""
        if self.shift:
            pixels = random_shift(pixels, draws, self.shift)
        if self.flip:
            pixels = random_flip(pixels, draws)
        if self.rand_augment is not None:
            pixels = rand_augment(pixels, draws, self.rand_augment)
        if self.crop is None:
            x = resized(pixels, self.size, "bilinear")
        else:
            x = random_resized_crop(pixels, draws, self.size, scale=(self.crop, 1.0), interpolation="bilinear")
        if self.rotation or self.scale or self.translation:
            x = random_affine(x, draws, self.rotation, self.translation, (1 - self.scale, 1 + self.scale))
        return {"image": normalised(x, self.mean, self.std)}

    def plain(self, pixels: np.ndarray) -> torch.Tensor:
        """``uint8 (B, 3, S, S)`` as the trained network takes it: resized and normalised, nothing drawn."""
        table = torch.from_numpy(np.ascontiguousarray(pixels))
        return normalised(resized(table, self.size, "bilinear"), self.mean, self.std)


@dataclass(frozen=True)
class Mixing:
    """Mix every picture of a batch, and its target, with another one of it.

    mixup, cutmix : parameter of the symmetric beta distribution that a picture's own share of itself comes from; 0
    switches either off, and with both each picture takes one or the other with equal chance.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, x: torch.Tensor, target: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """``(B, C, H, W)`` and shares or multi-hot labels ``(B, K)``, mixed; unknown (NaN) in either stays unknown."""
        order = draws.uniform().argsort(kind="stable")  # each one's partner is the next in a drawn order: never itself
        partner = np.empty_like(order)
        partner[order] = np.roll(order, -1)
        cut = draws.uniform() < (0.5 if self.mixup and self.cutmix else float(self.cutmix > 0))
        alpha = np.where(cut, self.cutmix, self.mixup)
        own = betaincinv(alpha, alpha, draws.uniform())
        inside, area = boxes(1 - own, draws.uniform(2), (int(x.shape[-2]), int(x.shape[-1])))
        own = np.where(cut, 1 - area, own)
        share = torch.from_numpy(own).to(x.dtype).view(-1, 1, 1, 1)
        whole = torch.from_numpy(cut).view(-1, 1, 1, 1)
        weight = torch.where(whole, 1 - torch.from_numpy(inside).to(x.dtype)[:, None], share)
        share = share.view(-1, 1).to(target.dtype)
        return weight * x + (1 - weight) * x[partner], share * target + (1 - share) * target[partner]


def boxes(share: np.ndarray, centre: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles of about ``share`` (B,) of the area about ``centre`` (B, 2), cut off at the border.

    Returns
    -------
    inside : bool (B, H, W)
    area : (B,), the true share of what lies inside
    """
    height, width = shape
    side = np.sqrt(share)
    sides, place = [], []
    for axis, length in enumerate((height, width)):
        middle, extent = np.floor(centre[:, axis] * length), np.floor(side * length)
        first = np.clip(middle - extent // 2, 0, length)
        last = np.clip(middle - extent // 2 + extent, 0, length)
        number = np.arange(length)[None]
        place.append((number >= first[:, None]) & (number < last[:, None]))
        sides.append(last - first)
    inside = place[0][:, :, None] & place[1][:, None, :]
    return inside, sides[0] * sides[1] / (height * width)


# ---- pictures ------------------------------------------------------------------------------------


class LabelledPictures(torch.utils.data.Dataset):
    """Stored pictures with labels, as the training loop reads them.

    Parameters
    ----------
    table : uint8 (n, 3, S, S)
    labels : (n,) class numbers from 0, or (n, K) multi-hot floats, NaN unknown
    views : ``(uint8 (B, 3, S, S), Draws) -> {"image": ...}``
    n_classes : int
    balanced : show every class equally often; n pictures an epoch all the same.
    rows : of ``table`` and ``labels``, those to read; all by default.
    """

    def __init__(
        self,
        table: np.ndarray,
        labels: np.ndarray,
        views: ClassificationViews,
        n_classes: int,
        *,
        seed: int = 0,
        mixing: Mixing | None = None,
        balanced: bool = False,
        rows: np.ndarray | None = None,
    ) -> None:
        self.table, self.views, self.n_classes = table, views, n_classes
        self.seed, self.mixing, self.balanced = seed, mixing or Mixing(), balanced
        self.rows = np.arange(len(table)) if rows is None else np.asarray(rows)
        self.labels = torch.from_numpy(np.asarray(labels)[self.rows])
        self._drawn: tuple[int, np.ndarray] = (-1, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """The batch of ``(epoch, place)`` keys, all of one epoch as the loop gives them."""
        epoch = keys[0][0]
        places = np.array([place for _, place in keys])
        shown = self._order(epoch)[places] if self.balanced else places
        draws = Draws(self.seed, epoch, places)  # by place: a picture shown twice in an epoch is not drawn twice alike
        pixels = torch.from_numpy(np.ascontiguousarray(self.table[self.rows[shown]]))
        batch = self.views(pixels, draws)
        target = self.labels[torch.from_numpy(shown)]
        if self.mixing:
            if target.ndim == 1:
                target = F.one_hot(target, self.n_classes).float()
            batch["image"], target = self.mixing(batch["image"], target, draws)
        return batch | {"target": target}

    def _order(self, epoch: int) -> np.ndarray:
        if self._drawn[0] != epoch:
            self._drawn = epoch, balanced_rows(self.labels.numpy(), self.seed, epoch)
        return self._drawn[1]


def balanced_rows(codes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Rows (n,) to show in an epoch: every class n / K times (one more for some), its own rows as evenly as it goes."""
    draws = np.random.default_rng([seed, epoch, 1])
    classes = np.unique(codes)
    classes = classes[draws.permutation(len(classes))]  # which classes get the one more changes from epoch to epoch
    sizes = np.full(len(classes), len(codes) // len(classes))
    sizes[: len(codes) % len(classes)] += 1
    shown = []
    for code, size in zip(classes, sizes):
        rows = np.flatnonzero(codes == code)
        passes = [draws.permutation(rows) for _ in range(-(-size // len(rows)))]
        shown.append(np.concatenate(passes)[:size])
    return np.concatenate(shown)


# ---- the module ----------------------------------------------------------------------------------


class Classification(nn.Module):
    """A network with its classifier and the loss it is trained by.

    Parameters
    ----------
    backbone : a timm network with a classifier of K outputs
    multi_label : K independent yes-or-no answers instead of one of K classes.
    layer_decay, trunk_scale : as `offshelf.backbones.parameter_groups.parameter_groups` takes them.
    frozen_steps : first steps in which the trunk stays as it is. The training loop keeps its parameters still; here it
        is left in evaluation mode, so that its batch statistics stay as well.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        multi_label: bool = False,
        label_smoothing: float = 0.0,
        layer_decay: float | None = None,
        trunk_scale: float = 1.0,
        frozen_steps: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.multi_label, self.label_smoothing = multi_label, label_smoothing
        self.layer_decay, self.trunk_scale = layer_decay, trunk_scale
        self.frozen_steps = frozen_steps
        self.steps: torch.Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``image`` (B, 3, H, W) and ``target`` ((B,) class numbers or (B, K)) -> ``loss``."""
        return {"loss": self.loss(self.backbone(batch["image"]), batch["target"], self.label_smoothing)}

    def loss(self, logits: torch.Tensor, target: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """The mean loss of ``(B, K)``."""
        return (binary_cross_entropy if self.multi_label else cross_entropy)(logits, target, label_smoothing)

    def train(self, mode: bool = True) -> Classification:
        """Switch to training, the trunk only once it moves."""
        super().train(mode)
        if mode and self.steps < self.frozen_steps:
            self.backbone.eval()
        return self

    def after_step(self, step: int, total: int) -> None:
        """Wake the trunk when its time has come."""
        self.steps.fill_(step)
        if step == self.frozen_steps and self.training:
            self.train()

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for the optimiser, each with ``lr``, ``weight_decay``, ``trunk`` and ``layer``."""
        return parameter_groups(
            self,
            self.backbone,
            learning_rate,
            weight_decay,
            layer_decay=1.0 if self.layer_decay is None else self.layer_decay,
            trunk_scale=self.trunk_scale,
        )
