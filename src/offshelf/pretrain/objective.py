"""The contract of a pre-training method: a module that turns a batch of views into a loss.

A method knows nothing of Fabric, files or devices. Three promises make it exact under resume and over several
processes, and `tests/contract` holds every listed method to them:

- every random draw is made in the views, from the sample's own `Draws`; ``forward`` draws nothing (but dropout);
- all state lies in parameters and buffers, and is the same in every process (`offshelf.engine.collective`);
- the loss is computed in fp32 (`offshelf.engine.precision.full_precision`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from offshelf.backbones.parameter_groups import parameter_groups
from offshelf.engine.draws import Draws
from offshelf.engine.recipe import Recipe

Batch = dict[str, torch.Tensor]
Views = Callable[[torch.Tensor, Draws], Batch]
"""uint8 pictures ``(B, 3, S, S)`` and their draws -> tensors that all have B rows, row i from picture i alone."""


class Objective(nn.Module, ABC):
    """What a backbone learns from. Subclasses are final and add typed keyword settings with the paper's defaults.

    Parameters
    ----------
    backbone : nn.Module
        A timm network without classifier, built for ``image_size``; trained in place.
    image_size : int
        Side in pixels of the views.

    Raises
    ------
    BackboneError
        For a backbone that lacks what the method needs; names what fits, and methods that fit this backbone.
    UsageError
        For an image size that the patch or stride does not divide, or a setting out of its range.
    """

    recipe: ClassVar[Recipe]
    "How the paper optimises, scaled to what a small machine does."

    def __init__(self, backbone: nn.Module, image_size: int) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.image_size = image_size
        config = getattr(backbone, "pretrained_cfg", {})
        self.mean = tuple(config.get("mean", (0.485, 0.456, 0.406)))
        self.std = tuple(config.get("std", (0.229, 0.224, 0.225)))

    @abstractmethod
    def views(self) -> Views:
        """The transform of a batch of stored pictures, run in data workers; picklable, and holds no tensor of self."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """``batch`` -> ``{"loss": scalar with gradient, NAME: scalar to log, ...}``."""

    def after_step(self, step: int, total: int) -> None:  # noqa: B027 (a hook that most methods leave as it is)
        """Called after optimiser step ``step`` (from 1) of ``total``: momentum averages, queues, schedules."""

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for the optimiser, each with ``lr``, ``weight_decay`` and ``trunk`` (whether it is the backbone)."""
        return parameter_groups(self, self.backbone, learning_rate, weight_decay, exempt=self.no_weight_decay())

    def no_weight_decay(self) -> set[str]:
        """Names of own parameters (beside the backbone's and one-dimensional ones) that must not decay."""
        return set()

    def export(self) -> nn.Module:
        """The plain backbone with what it has learnt, as timm built it; the objective may be used on."""
        return self.backbone

    def illustrate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Pictures for the report, name -> (B, 3, H, W) in [0, 1], in order of display; empty where there is nothing.

        Called in evaluation mode without gradients.
        """
        return {}

    def pictures(self, normalised: torch.Tensor) -> torch.Tensor:
        """Normalised pictures (B, 3, H, W) back to [0, 1]."""
        mean, std = (normalised.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (normalised.float() * std + mean).clamp(0, 1)
