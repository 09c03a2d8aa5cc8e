"""From a rule to the filters of one layer: the bank that the rule gives, and how a layer takes its filters from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from offshelf.backbones.load import load_backbone
from offshelf.engine.undisturbed import same_random_states
from offshelf.errors import UsageError, near
from offshelf.interpret.filter_banks import (
    coloured,
    dct_filters,
    edge_filters,
    gabor_filters,
    haar_filters,
    random_sign_filters,
)
from offshelf.interpret.filter_rules import RANDOM_RULES, random_filters
from offshelf.interpret.layer_inputs import convolutions
from offshelf.interpret.patch_filters import LEARNED_RULES, learned_filters

Fill = Literal["he", "rotate", "refuse"]
BANKS = ("dct", "gabor", "edges", "haar", "random-sign")
COPIED = "copied:"
RULES = (*RANDOM_RULES, *BANKS, *LEARNED_RULES)
BLIND = {"gabor", "edges", *LEARNED_RULES}  # their filters have mean 0 and do not see brightness


@dataclass
class DesignedLayer:
    """What was done to one layer.

    shape : (O, I / groups, kh, kw). from_rule, filled : filters by the rule, and those that it could not give.
    patches : learned from so many. variance : of the layer's output on the pictures, with ``scale="lsuv"``.
    """

    name: str
    shape: tuple[int, int, int, int]
    groups: int
    from_rule: int
    filled: int = 0
    patches: int | None = None
    variance: float | None = None
    notes: list[str] = field(default_factory=list)


def untouched(model: nn.Module, name: str) -> DesignedLayer:
    """The account of a layer that keeps its filters."""
    conv = model.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    return DesignedLayer(name, _shape(conv), conv.groups, 0)


def check_rule(rule: str) -> None:
    """Refuse a rule that is none, with near names (UsageError)."""
    if rule not in RULES and not (rule.startswith(COPIED) and len(rule) > len(COPIED)):
        raise UsageError(
            f"rule {rule!r} is unknown{near(rule, RULES) or '.'} Rules: {', '.join(RULES)}, copied:BACKBONE."
        )


def layer_filters(
    rule: str,
    name: str,
    conv: nn.Conv2d,
    seen: torch.Tensor | None,
    contrast: float | None,
    fill: Fill,
    brightness: bool,
    patches: int,
    seed: int,
) -> tuple[DesignedLayer, torch.Tensor]:
    """New weights of one layer, not yet scaled."""
    out, channels, height, width = shape = _shape(conv)
    layer = DesignedLayer(name, shape, conv.groups, out)
    if rule in RANDOM_RULES:
        return layer, random_filters(rule, shape, conv.groups, seed)
    each = out // conv.groups
    blind = brightness and rule in BLIND
    if rule in LEARNED_RULES:
        assert seen is not None
        apart = seen.reshape(-1, channels, *seen.shape[2:])  # each group's channels are an input of their own
        # with groups a filter may serve several of them, so as many as there are directions will do
        wanted = out if conv.groups == 1 else max(each, min(out, channels * height * width))
        wanted = max(1, wanted - blind)
        dilation = (int(conv.dilation[0]), int(conv.dilation[1]))
        bank, layer.patches = learned_filters(
            rule, apart, (height, width), wanted, contrast=contrast, patches=patches, dilation=dilation, seed=seed
        )
    elif rule.startswith(COPIED):
        bank = _copied(rule.removeprefix(COPIED), shape)
    else:
        bank = torch.from_numpy(_bank(rule, shape, seed)).float()
    if blind:
        constant = torch.full((1, channels, height, width), (channels * height * width) ** -0.5)
        bank = torch.cat([constant, bank])
    lacking = max(0, each - len(bank))
    if lacking and fill == "refuse":
        raise UsageError(
            f"{name}: {rule} gives {len(bank)} filters for {each}; expected fill='he' or 'rotate', or another rule."
        )
    layer.filled, layer.from_rule = lacking * conv.groups, out - lacking * conv.groups
    if lacking:
        said = "drawn by He's rule" if fill == "he" else "random orthogonal mixtures of them"
        layer.notes.append(f"{rule} gives {len(bank)} filters for {each}; {lacking} others are {said}")
    if not lacking and conv.groups > 1:
        layer.notes.append(f"{len(bank)} filters dealt out over {conv.groups} groups")
    return layer, _dealt(bank, each, conv.groups, fill, seed)


def _shape(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    out, channels, height, width = conv.weight.shape
    return int(out), int(channels), int(height), int(width)


def _bank(rule: str, shape: tuple[int, int, int, int], seed: int) -> np.ndarray:
    out, channels, height, width = shape
    if rule == "random-sign":
        return random_sign_filters(out, channels, height, width, seed)
    if rule == "gabor":  # all of its orientations in grey before any colour
        return coloured(gabor_filters(height, width), channels, by_filter=False)
    spatial = {"dct": dct_filters, "edges": edge_filters, "haar": haar_filters}[rule](height, width)
    return coloured(spatial, channels)


def _copied(source: str, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """Filters of another backbone's convolution, the largest first, brought to this layer's kernel and channels."""
    from timm.models import adapt_input_conv

    backbone, _, layer = source.partition("#")
    with same_random_states():
        model = load_backbone(backbone)
    conv = model.get_submodule(convolutions(model, layer or None)[0])
    assert isinstance(conv, nn.Conv2d)
    weight = conv.weight.detach().float()
    if weight.shape[1] != shape[1]:
        if weight.shape[1] != 3:
            raise UsageError(
                f"copied:{source}: its filters see {weight.shape[1]} channels and this layer's {shape[1]}; expected as "
                "many. Name another layer of it as copied:BACKBONE#LAYER."
            )
        weight = adapt_input_conv(shape[1], weight)
    if tuple(weight.shape[2:]) != shape[2:]:
        weight = F.interpolate(weight, shape[2:], mode="bicubic", antialias=True, align_corners=False)
    return weight[weight.flatten(1).norm(dim=1).argsort(descending=True, stable=True)]


def _dealt(bank: torch.Tensor, each: int, groups: int, fill: Fill, seed: int) -> torch.Tensor:
    """``each`` filters for every group: the next ones of the bank, round and round, or all of it and what it lacks."""
    n, parts = len(bank), []
    for group in range(groups):
        if n >= each:
            parts.append(bank[(group * each + torch.arange(each)) % n])
            continue
        parts.append(bank)
        missing = each - n
        for block in range(-(-missing // n) if fill == "rotate" else 0):
            mixed = torch.tensordot(_rotation(n, seed + 31 * group + block), bank, dims=1)
            parts.append(mixed[: missing - block * n])
        if fill == "he":
            parts.append(random_filters("he", (missing, *bank.shape[1:]), 1, seed + 31 * group))
    return torch.cat(parts)


def _rotation(n: int, seed: int) -> torch.Tensor:
    with same_random_states():
        torch.manual_seed(seed)
        return nn.init.orthogonal_(torch.empty(n, n))
