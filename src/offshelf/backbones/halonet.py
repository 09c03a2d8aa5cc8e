"""HaloNet: a residual network whose 3x3 convolutions are blocked local self-attention with haloing.

Vaswani, Ramachandran, Srinivas, Parmar, Hechtman and Shlens 2021, "Scaling Local Self-Attention for Parameter Efficient
Visual Backbones" (arXiv 2103.12731, CVPR 2021), section 3.3 and table 2. Its claims: attention over blocks with a halo
is much faster than over a window of each pixel's own, and the networks are as accurate as convolutional ones with
fewer parameters.

Stem 7x7/2 and a 3x3/2 maximum; four stages of bottlenecks of widths ``c`` = 64, 128, 256, 512, the first of stages 2
to 4 with stride 2; at the end a 1x1 convolution in the larger ones. A bottleneck: 1x1 to ``c``; attention to
``r_v * c``; norm and activation; 1x1 to ``r_b * c``; residual. Queries and keys have ``c`` channels whatever ``r_v``:
only so do the counts of parameters come out as published.

Built from timm's ``ByobNet`` and its blocks; ``halonet_h1`` is timm's own and stays as it is (`halonet` with the same
settings is ours). There are no published weights, and no official code.

Departures: 8 heads everywhere, as timm has it (the paper's number could not be checked); maps that blocks do not divide
are filled with zeros and cropped, so that any picture size works (224 pixels with blocks of 8, say); `halonet_tiny`,
for pictures of 32 to 64 pixels, is ours, and has convolution in its first stage, as the paper's own hybrids.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import make_divisible
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg, SelfAttnBlock
from torch import nn

from offshelf.backbones.halo_attention import Compat, HaloAttention
from offshelf.errors import UsageError

KINDS = ("attention", "convolution")


class WideValueBlock(SelfAttnBlock):
    """timm's bottleneck with self-attention, whose values are ``value_ratio`` times as wide as queries and keys."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int = 1,
        bottle_ratio: float = 1.0,
        value_ratio: float = 1.0,
        layers: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(in_chs, out_chs, stride=stride, bottle_ratio=bottle_ratio, layers=layers, **settings)
        width = make_divisible(out_chs * bottle_ratio)  # as timm rounds it
        wide = round(value_ratio * width)
        factory = {key: settings[key] for key in ("device", "dtype") if key in settings}
        self.self_attn = layers.self_attn(width, dim_out=wide, qk_dim=width, stride=stride, **factory)
        self.post_attn = layers.norm_act(wide, **factory)
        self.conv3_1x1 = layers.conv_norm_act(wide, out_chs, 1, apply_act=False, **factory)


def network(
    depths: Sequence[int] = (3, 3, 10, 3),
    widths: Sequence[int] = (64, 128, 256, 512),
    strides: Sequence[int] = (1, 2, 2, 2),
    stages: str | Sequence[str] = "attention",
    block: int | Sequence[int] = 8,
    halo: int | Sequence[int] = 3,
    heads: int = 8,
    value_ratio: float = 1.0,
    output_ratio: float = 1.0,
    final_width: int = 0,
    stem: str = "7x7",
    stem_pool: str = "maxpool",
    stem_width: int = 64,
    mask: bool = False,
    compat: Compat = "true",
    pad: bool = True,
    **settings: Any,
) -> ByobNet:
    """A HaloNet of any size, (B, 3, H, W) -> logits, as timm's ``ByobNet``.

    Parameters
    ----------
    depths, widths, strides : bottlenecks, inner channels ``c`` and stride of each stage.
    stages : ``"attention"`` or ``"convolution"`` (3x3) for all stages, or one of them for each.
    block, halo : positions, for all stages or one for each.
    heads, mask, compat, pad : of `HaloAttention`.
    value_ratio, output_ratio : ``r_v`` and ``r_b`` of the paper.
    final_width : channels of the last 1x1 convolution ``d_f``; 0 for none.
    stem, stem_pool, stem_width : in timm's names, ``"7x7"`` with ``"maxpool"`` (stride 4) or ``"3x3"`` with ``""`` (2).
    settings : of ``ByobNet``: ``num_classes``, ``in_chans``, ``global_pool``, ``drop_path_rate``, ...

    Raises
    ------
    UsageError
        For settings that do not fit each other.
    """
    n = len(depths)
    for name, given in (("widths", widths), ("strides", strides)):
        if len(given) != n:
            raise UsageError(f"{name}={tuple(given)}: {len(given)} values; expected one for each of {n} stages")
    kinds, blocks, halos = (
        _each(name, given, n) for name, given in (("stages", stages), ("block", block), ("halo", halo))
    )
    if unknown := set(kinds) - set(KINDS):
        raise UsageError(f"stages={stages!r}: {unknown.pop()!r}; expected {' or '.join(map(repr, KINDS))}")
    layer: Any = HaloAttention  # timm takes a class as well as a name
    shared = {"heads": heads, "mask": mask, "compat": compat, "pad": pad}
    rows = zip(kinds, depths, widths, strides, blocks, halos)
    stage = partial(_stage, value_ratio=value_ratio, output_ratio=output_ratio, shared=shared)
    config = ByoModelCfg(
        blocks=tuple(stage(*row) for row in rows),
        stem_chs=stem_width,
        stem_type=stem,
        stem_pool=stem_pool,
        num_features=final_width,
        self_attn_layer=layer,
    )
    return ByobNet(config, **settings)


def _stage(
    kind: str, depth: int, width: int, stride: int, block: int, halo: int, *, value_ratio: float, output_ratio: float,
    shared: dict[str, Any],
) -> ByoBlockCfg:  # fmt: skip
    same: dict[str, Any] = {"d": depth, "c": round(width * output_ratio), "s": stride, "gs": 0, "br": 1 / output_ratio}
    if kind == "convolution":
        return ByoBlockCfg(type="bottle", **same)
    same["self_attn_kwargs"] = {"block": block, "halo": halo, **shared}
    if value_ratio == 1.0:
        return ByoBlockCfg(type="self_attn", **same)
    wide: Any = partial(WideValueBlock, value_ratio=value_ratio)  # timm takes a partial as well as a name
    return ByoBlockCfg(type=wide, **same)


def _each(name: str, given: Any, n: int) -> list[Any]:
    """One value for each stage."""
    if isinstance(given, int | str):
        return [given] * n
    if len(given) != n:
        raise UsageError(f"{name}={tuple(given)}: {len(given)} values; expected one, or one for each of {n} stages")
    return list(given)


VARIANTS: dict[str, dict[str, Any]] = {  # table 2 of the paper
    "halonet_h0": {"output_ratio": 0.5, "depths": (3, 3, 7, 3)},
    "halonet_h2": {"output_ratio": 1.25, "depths": (3, 3, 11, 3)},
    "halonet_h3": {"block": 10, "output_ratio": 1.5, "depths": (3, 3, 12, 3), "final_width": 1024},
    "halonet_h4": {"block": 12, "halo": 2, "output_ratio": 3.0, "depths": (3, 3, 12, 3), "final_width": 1280},
    "halonet_h5": {
        "block": 14, "halo": 2, "value_ratio": 2.5, "output_ratio": 2.0, "depths": (3, 3, 23, 3), "final_width": 1536,
    },
    "halonet_h6": {"halo": 4, "value_ratio": 3.0, "output_ratio": 2.75, "depths": (3, 3, 24, 3), "final_width": 1536},
    "halonet_h7": {
        "block": 10, "value_ratio": 4.0, "output_ratio": 3.5, "depths": (3, 3, 26, 3), "final_width": 2048,
    },
    "halonet_tiny": {
        "depths": (1, 2, 2), "widths": (32, 64, 128), "strides": (1, 2, 2),
        "stages": ("convolution", "attention", "attention"), "block": 4, "halo": 1, "heads": 4, "output_ratio": 2.0,
        "stem": "3x3", "stem_pool": "", "stem_width": 32,
    },
}  # fmt: skip
SIDES = {"h0": 256, "h2": 256, "h3": 320, "h4": 384, "h5": 448, "h6": 512, "h7": 600, "tiny": 64}
"""Pixels of the pictures that each was made for."""


def _config(side: int, reduction: int = 32, first: str = "stem.conv1.conv") -> dict[str, Any]:
    pooled = -(-side // reduction)
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": (pooled, pooled),
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first,
        "classifier": "head.fc",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {
        f"halonet_{size}.untrained": _config(side, 8, "stem.conv") if size == "tiny" else _config(side)
        for size, side in SIDES.items()
    }
)


def _build(variant: str, pretrained: bool, settings: dict[str, Any]) -> nn.Module:
    settings = VARIANTS[variant] | settings
    # one map for each stride: timm's default of five is more than three stages have
    maps = sum(stride > 1 for stride in settings.get("strides", (1, 2, 2, 2))) + 1 + bool(settings.get("stem_pool", 1))
    feature_cfg = {"flatten_sequential": True, "out_indices": tuple(range(maps))}
    return build_model_with_cfg(network, variant, pretrained, feature_cfg=feature_cfg, **settings)


def halonet_h0(pretrained: bool = False, **settings: Any) -> nn.Module:
    """HaloNet H0: blocks of 8, halo 3, 5.5 million parameters, 256 pixels."""
    return _build("halonet_h0", pretrained, settings)


def halonet_h2(pretrained: bool = False, **settings: Any) -> nn.Module:
    """HaloNet H2: blocks of 8, halo 3, 9.4 million parameters, 256 pixels."""
    return _build("halonet_h2", pretrained, settings)


def halonet_h3(pretrained: bool = False, **settings: Any) -> nn.Module:
    """HaloNet H3: blocks of 10, halo 3, 11.8 million parameters, 320 pixels."""
    return _build("halonet_h3", pretrained, settings)


def halonet_h4(pretrained: bool = False, **settings: Any) -> nn.Module:
    """HaloNet H4: blocks of 12, halo 2, 19.1 million parameters, 384 pixels."""
    return _build("halonet_h4", pretrained, settings)


def halonet_h5(pretrained: bool = False, **settings: Any) -> nn.Module:
    """HaloNet H5: blocks of 14, halo 2, wide values, 30.7 million parameters, 448 pixels."""
    return _build("halonet_h5", pretrained, settings)


def halonet_h6(pretrained: bool = False, **settings: Any) -> nn.Module:
    """HaloNet H6: blocks of 8, halo 4, wide values, 43.4 million parameters, 512 pixels."""
    return _build("halonet_h6", pretrained, settings)


def halonet_h7(pretrained: bool = False, **settings: Any) -> nn.Module:
    """HaloNet H7: blocks of 10, halo 3, wide values, 67.4 million parameters, 600 pixels."""
    return _build("halonet_h7", pretrained, settings)


def halonet_tiny(pretrained: bool = False, **settings: Any) -> nn.Module:
    """A small HaloNet of ours for pictures of 32 to 64 pixels: blocks of 4, halo 1, convolution in its first stage."""
    return _build("halonet_tiny", pretrained, settings)
