"""How a B-cos network is fine-tuned (Arya et al. 2024, arXiv 2411.00715; Boehle et al. 2022, arXiv 2205.10268).

Binary cross-entropy over all classes, with targets of at least 1 / C, so that the logits of wrong classes are pushed
only down to the chance level; adaptive gradient clipping at 0.01; no weight decay and no label smoothing, since the
length of a weight is a part of the function. Learning rate, length and augmentation are the settings of `FineTune`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from offshelf.backbones.b_cosification import BCosNetwork, bcosify, refresh_statistics
from offshelf.engine.precision import full_precision
from offshelf.errors import UsageError
from offshelf.transfer.classification import Classification

ADAPTIVE_CLIP = 0.01
SETTLING, BATCH = 1024, 128  # pictures that the batch statistics are estimated from, and how many at once


class _Views(Protocol):
    def plain(self, pixels: np.ndarray) -> torch.Tensor: ...


def b_cos_targets(target: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Class numbers (B,) or shares of classes (B, C) -> float (B, C) of at least 1 / C.

    C = 5, class 3 -> [0.2, 0.2, 0.2, 1, 0.2].
    """
    shares = F.one_hot(target, n_classes) if target.ndim == 1 else target
    return shares.float().clamp(min=1 / n_classes)


def b_cos_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of ``(B, C)`` against `b_cos_targets`; log 2 where all logits are 0."""
    with full_precision(logits):
        return F.binary_cross_entropy_with_logits(logits.float(), b_cos_targets(target, logits.shape[1]))


class BCosClassification(Classification):
    """A B-cos network and the loss above; several labels a picture have their own, as without B-cos."""

    def loss(self, logits: torch.Tensor, target: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """The mean loss of ``(B, C)``; nothing is smoothed."""
        return super().loss(logits, target) if self.multi_label else b_cos_loss(logits, target)


def b_cos_network(model: nn.Module, b: float | None) -> nn.Module:
    """``model`` as a B-cos network of exponent ``b``, with its gradients on or off as before; None leaves it.

    Raises
    ------
    BackboneError
        As `bcosify`, naming each layer that it does not know.
    UsageError
        For a network that is B-cos already, with another exponent.
    """
    if b is None:
        return model
    if not isinstance(model, BCosNetwork):
        return bcosify(model, b)
    if model.b != b:
        raise UsageError(
            f"b_cos={b:g}: this backbone is a B-cos network with B = {model.b:g} already; leave b_cos out, or start "
            "from an ordinary network."
        )
    return model


def settle(model: nn.Module, pixels: np.ndarray, rows: np.ndarray, views: _Views) -> None:
    """Estimate the batch statistics of a fresh B-cos network from training pictures, as they are.

    pixels : uint8 (n, 3, S, S), of which ``rows`` are for training; at most 1,024, evenly spaced, are taken.
    """
    chosen = rows[np.linspace(0, len(rows) - 1, min(SETTLING, len(rows))).astype(int)]
    batches = np.array_split(chosen, max(1, len(chosen) // BATCH))
    refresh_statistics(model, (views.plain(pixels[batch]) for batch in batches))


def optimisation(model: Any, weight_decay: float) -> dict[str, Any]:
    """The recipe's settings that differ for a B-cos network."""
    if isinstance(model, BCosNetwork):
        return {"weight_decay": 0.0, "adaptive_clip": ADAPTIVE_CLIP}
    return {"weight_decay": weight_decay, "clip": 1.0}
