"""A recipe: how a network is optimised. A method brings its paper's; a user changes single entries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Optimiser = Literal["adamw", "sgd", "lamb", "rmsprop"]


@dataclass(frozen=True)
class Recipe:
    """How to optimise, for a batch of ``batch_size`` pictures over all processes.

    learning_rate : peak step for ``batch_size`` pictures; scaled linearly when another batch size is asked for.
    warmup : share of all steps with a linearly growing learning rate; then half a cosine down to
        ``final_rate`` x peak.
    betas : of AdamW and LAMB; the first is the momentum of SGD (Nesterov) and RMSProp, the second RMSProp's decay.
    clip : largest norm of the whole gradient, or None.
    adaptive_clip : largest norm of the gradient of an output unit's weights, as a share of their own norm (Brock et
        al. 2021), or None.
    """

    optimiser: Optimiser = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    batch_size: int = 128
    epochs: int = 10
    warmup: float = 0.05
    final_rate: float = 0.0
    clip: float | None = None
    adaptive_clip: float | None = None


def rate_scale(step: int, total: int, warmup: float = 0.05, final: float = 0.0) -> float:
    """Factor of the learning rate at ``step`` (from 0) of ``total``: linear from 0, then half a cosine to ``final``.

    The first step has the rate 1 / (warm-up steps), not 0; the last has ``final`` plus the cosine's last bit.
    """
    warm = round(warmup * total)
    if step < warm:
        return (step + 1) / warm
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
