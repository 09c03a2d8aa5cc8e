"""Attention rolled out over the layers of a vision transformer: which patches the answer was mixed from.

Abnar and Zuidema: Quantifying attention flow in transformers, ACL 2020, arXiv 2005.00928. A layer mixes tokens by its
attention W (the mean over heads) and keeps half of each by its residual path; over all layers this is a product:

    A_l = 1/2 W_l + 1/2 I,        R_l = A_l R_(l-1),        R_0 = I

Row t of R_L is what token t at the end was mixed from: the row of the class token, or the mean of the rows that the
network takes the mean of. The map is the same whatever class is asked for: it says where was looked, not for what.

Departures: none. The weights are read where the network itself has them, at the input of its attention drop-out, with
fused attention switched off meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from offshelf.backbones.card import name_of
from offshelf.errors import BackboneError
from offshelf.interpret.attention import attentions, watched


def attention_rollout(model: nn.Module, x: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
    """The share of each patch in what the head of a vision transformer reads.

    Parameters
    ----------
    model : a timm vision transformer whose layers all attend over all tokens; should be in evaluation mode.
    x : float (B, 3, H, W), normalised as the network expects.
    classes : not looked at.

    Returns
    -------
    float32 (B, h, w), 0 or above, over the grid of patches; sums to 1 less what stayed with tokens that are no patch

    Raises
    ------
    BackboneError
        For networks without such layers, or whose head reads something else than a token or the mean of tokens.
    """
    network: Any = model
    refusal = f"{name_of(network)}: attention cannot be rolled out, since "
    layers = [layer for _, layer in attentions(network) if hasattr(layer, "fused_attn")]
    if not layers or not hasattr(network, "forward_intermediates"):
        raise BackboneError(f"{refusal}it has no layers of attention; take a vision transformer, or grad-cam.")
    pool = str(getattr(network, "global_pool", "token"))
    if pool not in ("token", "avg") or getattr(network, "attn_pool", None) is not None:
        raise BackboneError(
            f"{refusal}its head reads neither a class token nor the mean of its tokens; take input-x-gradient."
        )
    rolled: list[torch.Tensor] = []
    with torch.no_grad(), watched(network, _rolling(rolled, len(x), refusal)):
        _, maps = network.forward_intermediates(x, indices=1, output_fmt="NCHW")
    grid, prefix = tuple(maps[-1].shape[-2:]), int(getattr(network, "num_prefix_tokens", 0))
    if rolled[0].shape[-1] != prefix + grid[0] * grid[1]:
        raise BackboneError(
            f"{refusal}its {rolled[0].shape[-1]} tokens are not {prefix} and a grid of {grid[0]} x {grid[1]}; take "
            "grad-cam or input-x-gradient."
        )
    if pool == "avg":
        row = rolled[0][:, 0 if getattr(network, "pool_include_prefix", False) else prefix :].mean(dim=1)
    else:  # DeiT's distilled form reads a second token beside the first, and takes the mean of both answers
        row = rolled[0][:, : 2 if hasattr(network, "head_dist") else 1].mean(dim=1)
    return row[:, prefix:].reshape(len(x), *grid).float()


def _rolling(rolled: list[torch.Tensor], batch: int, refusal: str) -> Callable[[str, torch.Tensor], None]:
    """Roll what each layer gives ``(B, heads, N, N)`` into ``rolled[0]`` (B, N, N)."""

    def roll(_: str, weights: torch.Tensor) -> None:
        tokens = weights.shape[-1]
        alike = not rolled or rolled[0].shape[-1] == tokens
        if weights.ndim != 4 or len(weights) != batch or weights.shape[-2] != tokens or not alike:
            raise BackboneError(
                f"{refusal}not all of its layers attend over all tokens; take grad-cam or input-x-gradient."
            )
        half = 0.5 * (weights.mean(dim=1) + torch.eye(tokens, device=weights.device))
        rolled[:] = [half if not rolled else half @ rolled[0]]

    return roll
