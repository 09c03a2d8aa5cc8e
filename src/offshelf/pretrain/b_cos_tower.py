"""An image tower (CLIP's, say) becomes a B-cos network that gives the same embeddings, taught by pictures alone.

Arya et al.: B-cosification, NeurIPS 2024, arXiv 2411.00715. The frozen tower is the teacher T, its B-cosified copy the
student S; both embeddings have length 1. Over a batch of n pictures with L = scale S T^T + bias, and labels +1 on the
diagonal and -1 elsewhere,

    loss = - sum over i, j of log sigmoid(label_ij L_ij) / n

which is SigLIP's loss (Zhai et al. 2023, arXiv 2303.15343) with the teacher's picture in the place of a text. No text
is used. The tower's own reading (attention pooling or class token) stays, and no logit offset is added.

Left out: the paper's reading of attention pooling place by place ("unpool") for localising texts, and its zero-shot
tests; the student's embeddings go wherever the teacher's went. Pairs are those of one process's batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from offshelf.backbones.b_cosification import BCosNetwork, bcosify, refresh_statistics
from offshelf.backbones.parameter_groups import parameter_groups
from offshelf.data.augment import random_flip, random_resized_crop
from offshelf.data.picture_views import PictureViews
from offshelf.engine.draws import Draws
from offshelf.engine.precision import full_precision
from offshelf.engine.recipe import Recipe
from offshelf.engine.train import Training, train
from offshelf.errors import UsageError

RECIPE = Recipe(learning_rate=1e-4, weight_decay=0.0, batch_size=64, epochs=10, warmup=0.0, adaptive_clip=0.01)


def siglip_loss(student: torch.Tensor, teacher: torch.Tensor, scale: float = 10.0, bias: float = -10.0) -> torch.Tensor:
    """The loss above of embeddings ``(n, d)``, which need not have length 1.

    Two equal, orthogonal pairs: log 2 + log(1 + e^-10) = 0.693193.
    """
    with full_precision(student):
        logits = scale * F.normalize(student.float(), dim=1) @ F.normalize(teacher.float(), dim=1).T + bias
        labels = 2 * torch.eye(len(logits), device=logits.device) - 1
        return -F.logsigmoid(labels * logits).sum() / len(logits)


@dataclass(frozen=True)
class TowerViews:
    """A random crop of each picture, mirrored or not, in [0, 1]: ``{"picture": float32 (B, 3, size, size)}``."""

    size: int
    crop: float
    flip: bool

    def __call__(self, pixels: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
        """The views of ``uint8 (B, 3, S, S)``."""
        x = random_resized_crop(pixels, draws, self.size, scale=(self.crop, 1.0), interpolation="bilinear")
        return {"picture": (random_flip(x, draws) if self.flip else x).clamp(0, 1)}


class TowerDistillation(nn.Module):
    """The frozen teacher, its B-cosified student, and the loss between them, for `offshelf.engine.train.train`."""

    def __init__(self, teacher: nn.Module, b: float = 2.0) -> None:
        super().__init__()
        self.student = bcosify(teacher, b, swap_head=False, logit_offset=False).requires_grad_(True)
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> TowerDistillation:
        """The student alone; the teacher stays as it is."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``picture`` (B, 3, H, W) in [0, 1] -> ``loss``, and ``cosine``, the mean of student with teacher."""
        pictures = batch["picture"]
        with torch.no_grad():
            wanted = self.teacher((pictures - self.student.pixel_mean) / self.student.pixel_std)
        found = self.student(pictures)
        cosine = F.cosine_similarity(found.detach().float(), wanted.float()).mean()
        return {"loss": siglip_loss(found, wanted), "cosine": cosine}

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Of the student."""
        return parameter_groups(self, self.student, learning_rate, weight_decay)


def b_cosify_tower(
    teacher: nn.Module,
    pictures: np.ndarray,
    *,
    b: float = 2.0,
    image_size: int | None = None,
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    crop: float = 0.5,
    flip: bool = True,
    seed: int = 0,
    told: Callable[[dict[str, Any]], None] = lambda record: None,
) -> BCosNetwork:
    """Train a B-cos copy of an image tower to give the teacher's embeddings, on pictures without labels or texts.

    Parameters
    ----------
    teacher : nn.Module
        A network that `bcosify` takes, with its embedding as output (CLIP's tower with its projection).
    pictures : uint8 (n, 3, S, S)
        As many as can be had, like those that will be looked at.
    image_size : int, optional
        Side in pixels of what both networks see; S by default.
    learning_rate : float
        For a batch of ``batch_size``; Adam, half a cosine, adaptive clipping at 0.01, no weight decay.
    crop, flip : lowest share of the area of a random crop; whether half the pictures are mirrored.
    told : called with every epoch's record: ``loss``, ``cosine``, ...

    Returns
    -------
    BCosNetwork
        In evaluation mode and frozen; save it with `save_backbone`. The teacher stays as it is.

    Raises
    ------
    BackboneError
        As `bcosify`.
    UsageError
        For pictures that are no uint8 table, and for fewer than two.
    """
    if not (isinstance(pictures, np.ndarray) and pictures.dtype == np.uint8 and pictures.ndim == 4):
        raise UsageError("pictures: expected uint8 (n, 3, S, S), as load_pixels gives them.")
    module = TowerDistillation(teacher, b)
    size = image_size or pictures.shape[-1]
    data = PictureViews(pictures, TowerViews(size, crop, flip), seed)
    plan = Training.of(
        Recipe(**{**RECIPE.__dict__, "learning_rate": learning_rate, "batch_size": batch_size}),
        n=len(pictures),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
    )
    first = range(0, min(len(pictures), 1024), plan.batch_size)
    refresh_statistics(
        module.student,
        (
            data.__getitems__([(0, row) for row in range(i, min(i + plan.batch_size, len(data)))])["picture"]
            for i in first
        ),
    )
    train(module, data, plan, log=told)
    return module.student.eval().requires_grad_(False)
