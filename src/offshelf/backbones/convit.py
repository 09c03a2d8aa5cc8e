"""ConViT: a vision transformer whose first layers start as soft convolutions and may leave it.

d'Ascoli, Touvron, Leavitt, Morcos, Biroli, Sagun: ConViT: Improving Vision Transformers with Soft Convolutional
Inductive Biases, ICML 2021, arXiv 2103.10697. The claim: the fewer pictures there are to learn from, the further it is
ahead of the same transformer without its gated layers.

The network is timm's; nothing of it is written again. In its first layers (gated positional self-attention, GPSA) a
head h mixes what the pictures say with what positions say, through one learnt number lambda_h:

    A_h = (1 - sigma(lambda_h)) softmax(q k / sqrt(d)) + sigma(lambda_h) softmax(v_h . r)
    r_ij = (dx, dy, dx^2 + dy^2) from query i to key j, in patches; v_h = alpha (2 Delta_x, 2 Delta_y, -1) at the start

so that each of k x k heads starts by looking at its own place Delta_h of a k x k neighbourhood. What timm lacks, and
is set here on its network once that is built: layers without the local start, the gates' start, gates that stay, the
sizes with 64 numbers a head, and another size of the picture.

Departures: the published code draws `v` and the positions' weights anew for ``local_init=False`` as timm does for every
linear layer, and so do we; the paper's text does not say. A network is refused where timm builds one that is silently
not what was asked for: heads that make no k x k neighbourhood, patches that make no square, a class token that never
joins. The coordinates of the positions are computed at once and not in the first pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import resample_abs_pos_embed, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.convit import GPSA, ConVit
from torch import nn

from offshelf.backbones.architectures import register_architectures
from offshelf.errors import UsageError, near

SIZES: dict[str, dict[str, Any]] = {  # embed_dim is a head's, as timm counts it: width = embed_dim * num_heads
    "mini": {"img_size": 32, "patch_size": 4, "embed_dim": 8, "num_heads": 9, "depth": 4, "local_up_to_layer": 3},
    "tiny": {"embed_dim": 48, "num_heads": 4, "local_up_to_layer": 10},
    "small": {"embed_dim": 48, "num_heads": 9, "local_up_to_layer": 10},
    "base": {"embed_dim": 48, "num_heads": 16, "local_up_to_layer": 10},
    "tiny_plus": {"embed_dim": 64, "num_heads": 4, "local_up_to_layer": 10},
    "small_plus": {"embed_dim": 64, "num_heads": 9, "local_up_to_layer": 10},
    "base_plus": {"embed_dim": 64, "num_heads": 16, "local_up_to_layer": 10},
}
"""What timm's class is given for each size; "mini" is ours, for pictures of 32 to 64 pixels."""

_DRAWN = 0.02  # standard deviation of timm's linear layers


def convit(
    pretrained: bool = False,
    *,
    size: str = "tiny",
    local_init: bool = True,
    gate: float = 1.0,
    fixed_gate: bool = False,
    locality_strength: float = 1.0,
    **settings: Any,
) -> ConVit:
    """ConViT of any size, with its locality as asked for; d'Ascoli et al. 2021, section 3.

    It is known to timm and to `load_backbone` as ``convit``, and what it was built with is remembered, so that a saved
    network comes back as it was.

    Parameters
    ----------
    pretrained : bool
        As timm's builders take it; no weights are published under this name. `set_locality` edits published ones.
    size : {"mini", "tiny", "small", "base", "tiny_plus", "small_plus", "base_plus"}
        4 / 9 / 16 heads of 48 numbers for tiny / small / base, of 64 for the plus sizes; mini has 9 of 8.
    local_init, gate, fixed_gate : as `set_locality` takes them.
    locality_strength : float
        alpha, in 1 / patches^2, 0 or above: how narrow each head's look starts. 0 looks everywhere alike.
    settings : anything timm's class takes
        ``img_size``, ``patch_size``, ``num_classes``, ``depth``, ``local_up_to_layer`` (gated layers; 0 is a plain
        vision transformer), ``embed_dim`` (of one head), ``num_heads``, ``drop_path_rate``, ...

    Returns
    -------
    timm.models.convit.ConVit
        (B, 3, H, W) -> class logits.

    Raises
    ------
    UsageError
        For a size there is not, heads that are no k x k for a local start, patches that make no square, a class token
        that would never join, a gate that is no number or a strength below 0.
    """
    if size not in SIZES:
        raise UsageError(f"size={size!r}: expected one of {', '.join(SIZES)}{near(size, SIZES)}")
    return _built("convit", size, pretrained, local_init, gate, fixed_gate, locality_strength, settings)


def convit_mini(pretrained: bool = False, **settings: Any) -> ConVit:
    """ConViT for pictures of 32 pixels in patches of 4 (64 also builds): 9 heads of 8, 3 of 4 layers gated."""
    return _named("mini", pretrained, **settings)


def convit_tiny_plus(pretrained: bool = False, **settings: Any) -> ConVit:
    """ConViT-Ti+: 4 heads of 64, about 10 million parameters; settings as for `convit`."""
    return _named("tiny_plus", pretrained, **settings)


def convit_small_plus(pretrained: bool = False, **settings: Any) -> ConVit:
    """ConViT-S+: 9 heads of 64, about 48 million parameters; settings as for `convit`."""
    return _named("small_plus", pretrained, **settings)


def convit_base_plus(pretrained: bool = False, **settings: Any) -> ConVit:
    """ConViT-B+: 16 heads of 64, about 152 million parameters; settings as for `convit`."""
    return _named("base_plus", pretrained, **settings)


def _named(
    size: str,
    pretrained: bool,
    local_init: bool = True,
    gate: float = 1.0,
    fixed_gate: bool = False,
    locality_strength: float = 1.0,
    **settings: Any,
) -> ConVit:
    return _built(f"convit_{size}", size, pretrained, local_init, gate, fixed_gate, locality_strength, settings)


def _cfg(side: int, crop_pct: float) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": None,
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {
        "convit.untrained": _cfg(224, 0.875),
        "convit_mini.untrained": _cfg(32, 1.0),
        "convit_tiny_plus.untrained": _cfg(224, 0.875),
        "convit_small_plus.untrained": _cfg(224, 0.875),
        "convit_base_plus.untrained": _cfg(224, 0.875),
    }
)


def _built(
    name: str,
    size: str,
    pretrained: bool,
    local_init: bool,
    gate: float,
    fixed_gate: bool,
    strength: float,
    settings: dict[str, Any],
) -> ConVit:
    if not (isinstance(strength, (int, float)) and math.isfinite(strength) and strength >= 0):
        raise UsageError(f"locality_strength={strength!r}: expected a number of 0 or above, such as 1")
    register_architectures()  # timm finds the pixels' statistics by the registered name
    network = partial(_network, local_init=local_init, gate=gate, fixed_gate=fixed_gate)
    model = build_model_with_cfg(
        network,
        name,
        pretrained,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        locality_strength=strength,
        **(SIZES[size] | settings),
    )
    asked = {"local_init": local_init, "gate": gate, "fixed_gate": fixed_gate, "locality_strength": strength}
    given = {key: value for key, value in settings.items() if not key.startswith(("pretrained", "features", "out_"))}
    # timm remembers these when its own create_model calls a builder; called by hand they would be lost in save_backbone
    model._model_args = asked | given | ({"size": size} if name == "convit" else {})  # type: ignore[assignment]
    return model


def _network(*, local_init: bool, gate: float, fixed_gate: bool, **arguments: Any) -> ConVit:
    """timm's network with what was asked for set on it, before any weights are read into it."""
    layers, depth = arguments["local_up_to_layer"], arguments.get("depth", 12)
    if not 0 <= layers < depth:
        raise UsageError(
            f"local_up_to_layer={layers}: expected 0 to {depth - 1} for {depth} layers, since the class token joins "
            "after the gated ones and at least one ordinary layer must follow"
        )
    model = ConVit(**arguments)
    _check_grid(model.patch_embed.grid_size, model.patch_embed.img_size)
    if layers and local_init:
        _check_heads(arguments["num_heads"])
    _place(model)
    if layers:
        # timm has made the local start; only another one is drawn, so that equal seeds give timm's own numbers
        set_locality(model, local_init=None if local_init else False, gate=gate, fixed_gate=fixed_gate)
    return model


# ---- what is set on a network ----------------------------------------------------------------------------------------


def gated_layers(model: nn.Module) -> Iterator[tuple[str, GPSA]]:
    """Name and module of every gated positional self-attention of a network, in its order; none in others."""
    return ((name, part) for name, part in model.named_modules() if isinstance(part, GPSA))


@torch.no_grad()
def set_locality(
    model: ConVit, *, local_init: bool | None = None, gate: float | None = None, fixed_gate: bool | None = None
) -> ConVit:
    """Set how local the gated layers of a ConViT start, and whether their gates may move; what is None stays.

    It also serves weights that were trained elsewhere: ``set_locality(load_backbone("convit_tiny.fb_in1k"),
    fixed_gate=True)``. The product of such an edit carries its numbers when it is saved, but comes back with gates that
    move; a network of `convit` comes back as it was built.

    Parameters
    ----------
    model : timm's ConVit, changed in place.
    local_init : bool, optional
        True: values are the identity and heads look at the places of a k x k neighbourhood, at the network's
        ``locality_strength``. False: both are drawn as every linear layer is (truncated normal, 0.02), from torch's
        global generator.
    gate : float, optional
        lambda of every head: 1 gives positions a share of sigma(1) = 0.731, -30 none and +30 all, up to rounding.
    fixed_gate : bool, optional
        True: gates are no parameters, so that no optimiser moves them and ``requires_grad_`` does not wake them. False:
        they are parameters.

    Raises
    ------
    UsageError
        When the network has no gated layer, a local start has heads that are no k x k, or the gate is not finite.
    """
    layers = [layer for _, layer in gated_layers(model)]
    if not layers:
        raise UsageError(
            f"{type(model).__name__}: no gated positional self-attention to set; expected a ConViT with "
            "local_up_to_layer of 1 or more, such as convit_tiny"
        )
    if gate is not None and not (isinstance(gate, (int, float)) and math.isfinite(gate)):
        raise UsageError(f"gate={gate!r}: expected a finite number, such as 1 (positions weigh 0.731) or -4 (0.018)")
    for layer in layers:
        if local_init is True:
            _check_heads(layer.num_heads)
            layer.local_init()
            nn.init.zeros_(layer.pos_proj.bias)
        elif local_init is False:
            trunc_normal_(layer.v.weight, std=_DRAWN)
            trunc_normal_(layer.pos_proj.weight, std=_DRAWN)
        if gate is not None:
            layer.gating_param.fill_(float(gate))
        if fixed_gate is not None and fixed_gate is not ("gating_param" in layer._buffers):
            value = layer.gating_param.detach().clone()
            del layer.gating_param
            if fixed_gate:
                layer.register_buffer("gating_param", value)
            else:
                layer.gating_param = nn.Parameter(value)
    return model


def resize_convit(model: ConVit, img_size: int | tuple[int, int]) -> ConVit:
    """Bring a ConViT to pictures of another size, in place.

    The table of absolute positions is interpolated (bicubic, timm's); relative positions are counted in patches and
    stay as they were learnt, so that a head goes on looking at its neighbour at any size.

    Parameters
    ----------
    model : timm's ConVit.
    img_size : side in pixels, or height and width, that make as many patches down as across.

    Raises
    ------
    UsageError
        When the patches make no square.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    patch = model.patch_embed.patch_size
    before = tuple(model.patch_embed.grid_size)
    grid = (height // patch[0], width // patch[1])
    _check_grid(grid, (height, width))
    model.patch_embed.set_input_size(img_size=(height, width))
    model.num_patches = model.patch_embed.num_patches
    if model.use_pos_embed and grid != before:
        table = resample_abs_pos_embed(
            model.pos_embed.detach(), new_size=list(grid), old_size=list(before), num_prefix_tokens=0
        )
        model.pos_embed = nn.Parameter(table, requires_grad=model.pos_embed.requires_grad)
    _place(model)
    return model


def _place(model: ConVit) -> None:
    """Compute the relative coordinates now: timm holds a placeholder of one token until the first forward pass."""
    for _, layer in gated_layers(model):
        layer.rel_indices = layer.get_rel_indices(model.patch_embed.num_patches)


def _check_heads(heads: int) -> None:
    if math.isqrt(heads) ** 2 != heads:
        below = math.isqrt(heads) ** 2
        above = (math.isqrt(heads) + 1) ** 2
        raise UsageError(
            f"num_heads={heads}: a local start needs a perfect square, one head for each place of a k x k "
            f"neighbourhood; give {below} or {above}, or local_init=False"
        )


def _check_grid(grid: tuple[int, int], img_size: tuple[int, int]) -> None:
    if grid[0] != grid[1] or not grid[0]:
        raise UsageError(
            f"img_size={tuple(img_size)}: {grid[0]} x {grid[1]} patches; the gated layers of ConViT need as many down "
            "as across, so give a square picture of at least one patch"
        )
