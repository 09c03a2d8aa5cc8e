"""Attention maps of a vision transformer, read where the network itself uses them.

Every attention of timm applies a dropout to its map, at whose input a hook finds it: after gates, masks, relative
positions and the softmax. Fused kernels, which never make the map, are switched off meanwhile. So no arithmetic of a
layer is written a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from offshelf.backbones.card import name_of
from offshelf.errors import NotApplicable


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Inside the block every pass of ``model`` leaves its attention, layer name -> (B, heads, tokens, tokens).

    Works for every attention with timm's ``attn_drop`` (ConViT, ViT, DeiT, BEiT, EVA, DINOv3); a layer's map is that of
    its last pass. Rows sum to 1.

    Raises
    ------
    NotApplicable
        When the network has no such attention.
    """
    maps: dict[str, torch.Tensor] = {}
    with watched(model, lambda name, attention: maps.__setitem__(name, attention)):
        yield maps


@contextmanager
def watched(model: nn.Module, use: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Inside the block ``use(layer name, map)`` is called with every map that a pass makes; else as `attention_maps`.

    Raises
    ------
    NotApplicable
        When the network has no such attention.
    """
    layers = attentions(model)
    if not layers:
        raise NotApplicable(
            f"{name_of(model)} has no attention that can be read; expected a ConViT or another vision transformer of "
            "timm"
        )

    def telling(name: str) -> Callable[..., None]:
        return lambda module, inputs: use(name, inputs[0].detach())

    hooks = [layer.attn_drop.register_forward_pre_hook(telling(name)) for name, layer in layers]
    fused = [(layer, layer.fused_attn) for _, layer in layers if hasattr(layer, "fused_attn")]
    try:
        for layer, _ in fused:
            layer.fused_attn = False
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, before in fused:
            layer.fused_attn = before


def attentions(model: nn.Module) -> list[tuple[str, Any]]:
    """Name and module of every attention whose map can be read, in the order of the network."""
    return [
        (name, part) for name, part in model.named_modules() if isinstance(getattr(part, "attn_drop", None), nn.Module)
    ]
