"""What each layer of a timm network becomes in its B-cos twin: a written list, by exact type.

A network is walked module by module. A type that is on no list is *unknown*: whether its arithmetic is one linear map
for each input is then anybody's guess, so its path and type are reported. Containers are listed as well, since a
network's own block may compute things that no layer in it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm.layers as tl
import torch
from timm.layers.activations import GELU, GELUTanh, HardSwish, Mish, QuickGELU, Swish
from timm.layers.adaptive_avgmax_pool import FastAdaptiveAvgPool
from timm.layers.norm import LayerNorm2dFp32, LayerNormFp32
from timm.models import byobnet, convnext, densenet, resnet, vision_transformer
from torch import nn

from offshelf.backbones import b_cos_layers as layers
from offshelf.backbones.b_cos_layers import become


@dataclass(frozen=True)
class Plan:
    """What a conversion does: the exponent, and which steps are taken."""

    b: float
    keep_bias: bool
    swap_pool: bool
    drop_pool_position: bool


ACTIVATIONS: dict[type, str] = {
    **{nn.GELU: "gelu", GELU: "gelu", GELUTanh: "gelu_tanh", QuickGELU: "quick_gelu"},
    **{nn.SiLU: "silu", Swish: "silu", nn.Hardswish: "hardswish", HardSwish: "hardswish", nn.Mish: "mish"},
    Mish: "mish",
}
UNCHANGED: set[type] = {
    # linear, or linear for each input as they are
    *(
        nn.AdaptiveMaxPool2d,
        nn.Identity,
        nn.Dropout,
        nn.Flatten,
        nn.AvgPool2d,
        nn.AdaptiveAvgPool2d,
        nn.ReLU,
        nn.LeakyReLU,
        nn.PReLU,
    ),
    *(tl.AvgPool2dSame, FastAdaptiveAvgPool, tl.BlurPool2d, tl.DropPath, tl.PatchDropout, tl.LayerScale),
    # ours already
    *(layers.DetachableLinear, layers.DetachableGate),
}
CONTAINERS: set[type] = {
    *(nn.Sequential, nn.ModuleList, tl.SelectAdaptivePool2d, tl.ClassifierHead, tl.NormMlpClassifierHead),
    *(tl.ConvNormAct, tl.Mlp, tl.PatchEmbed, tl.SEModule, tl.Attention, tl.AttentionPool2d, tl.AttentionPoolLatent),
    *(resnet.BasicBlock, resnet.Bottleneck, densenet.DenseBlock, densenet.DenseLayer, densenet.DenseTransition),
    *(convnext.ConvNeXtStage, convnext.ConvNeXtBlock, convnext.Downsample, vision_transformer.Block),
    *(byobnet.Stem, byobnet.BasicBlock, byobnet.BottleneckBlock, byobnet.DarkBlock, byobnet.EdgeBlock),
    byobnet.DownsampleAvg,
}


def _pool(pool: Any, plan: Plan) -> nn.Module | None:
    if not plan.swap_pool:
        return pool
    if pool.dilation not in (1, (1, 1)) or pool.return_indices:
        return None
    return nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode)


def _convolution(layer: Any, plan: Plan) -> nn.Module | None:
    return become(layer, layers.BCosConv2d, b=plan.b) if layer.padding_mode == "zeros" else None


def _batch_norm(norm: Any, plan: Plan) -> nn.Module | None:
    return None if norm.running_mean is None else layers.uncentre(norm)


def _to(kind: type[nn.Module]) -> Callable[[Any, Plan], nn.Module]:
    return lambda layer, plan: become(layer, kind)


RULES: dict[type, Callable[[Any, Plan], nn.Module | None]] = {
    nn.Conv2d: _convolution,
    nn.Linear: lambda layer, plan: become(layer, layers.BCosLinear, b=plan.b),
    nn.MaxPool2d: _pool,
    **dict.fromkeys((nn.BatchNorm2d, tl.BatchNormAct2d), _batch_norm),
    **dict.fromkeys((nn.LayerNorm, tl.LayerNorm, LayerNormFp32), _to(layers.DetachableLayerNorm)),
    **dict.fromkeys((tl.LayerNorm2d, LayerNorm2dFp32), _to(layers.DetachableLayerNorm2d)),
    **dict.fromkeys((nn.GroupNorm, tl.GroupNorm, tl.GroupNorm1), _to(layers.DetachableGroupNorm)),
}
"""Type -> what makes a module of it its twin; None where this one cannot be."""


def convert(module: nn.Module, plan: Plan, path: str = "") -> list[tuple[str, str]]:
    """Convert everything below ``module`` in place; return path and type of what is unknown, which stays as it is."""
    unknown: list[tuple[str, str]] = []
    unknown += [(f"{path}{name}", what) for name, what in _prepare(module, plan)]
    for name, child in list(module.named_children()):
        here, kind = f"{path}{name}", type(child)
        if kind in ACTIVATIONS:
            setattr(module, name, layers.DetachableActivation(ACTIVATIONS[kind]))
        elif kind in RULES:
            twin = RULES[kind](child, plan)
            if twin is None:
                unknown.append((here, kind.__name__))
                continue
            setattr(module, name, twin)
            unknown += convert(twin, plan, f"{here}.")  # a batch norm of timm holds its activation
        elif kind in CONTAINERS:
            unknown += convert(child, plan, f"{here}.")
        elif kind not in UNCHANGED:
            unknown.append((here, f"{kind.__module__}.{kind.__name__}"))
            continue
        changed = getattr(module, name)
        if not plan.keep_bias and isinstance(getattr(changed, "bias", None), nn.Parameter):
            changed.bias = None
    return unknown


def _prepare(module: Any, plan: Plan) -> list[tuple[str, str]]:
    """The layers of attention and of gates that act otherwise than their type says; returns what is unknown in them."""
    kind = type(module)
    if kind in (tl.Attention, tl.AttentionPool2d, tl.AttentionPoolLatent):
        parts = {"qkv": 2 / 3, "kv": 1 / 2, "q": 1.0, "k": 1.0, "v": 0.0}  # queries, keys, values: in this order
        for name, share in parts.items():
            layer = getattr(module, name, None)
            if type(layer) is nn.Linear:
                become(layer, layers.DetachableLinear, still=round(share * layer.out_features))
    if kind is tl.SEModule:
        module.gate = layers.DetachableGate(module.gate)
    if kind is tl.Attention and module.gate is not None:
        return [("gate", "a gate on the output of attention")]
    if kind is tl.AttentionPoolLatent and module.pos_embed is not None:
        return [("pos_embed", "a position table in attention pooling")]
    if kind is tl.AttentionPool2d:
        if module.cls_token is not None:
            return [("cls_token", "a class token in attention pooling")]
        if plan.drop_pool_position:
            empty = torch.zeros_like(module.pos_embed.detach())
            del module.pos_embed
            module.register_buffer("pos_embed", empty, persistent=False)
    return []
