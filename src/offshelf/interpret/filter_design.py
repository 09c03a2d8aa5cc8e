"""Design the filters of a convolution: by a random rule, from a fixed bank, or learned from unlabelled patches.

Hirani and Abdulla, On filter design in deep convolutional neural network (2024, arXiv 2410.21644), survey how filters
are started, sized, shaped, counted and learned. A survey has no algorithm: this is the tool it calls for, one door to
all of its rules for any convolution of any backbone. What size, shape and number do is for
`offshelf.evaluate.filter_study` to measure.

Ours, where the survey leaves it open: the order of each bank; one constant filter beside those that cannot see
brightness; filters that a bank lacks are drawn by He's rule unless asked otherwise, and counted; grouped layers deal
the bank out over their groups, and learn from the patches of all groups together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from offshelf.errors import UsageError
from offshelf.interpret.filter_choice import DesignedLayer, Fill, check_rule, layer_filters
from offshelf.interpret.filter_rules import RANDOM_RULES
from offshelf.interpret.layer_inputs import (
    CALIBRATION,
    as_seen,
    convolutions,
    in_forward_order,
    inputs_of,
    picture_contrast,
)
from offshelf.interpret.patch_filters import LEARNED_RULES, PATCHES

Scale = Literal["own", "he", "unit", "lsuv"]
HE_NORM = 2.0  # expected squared norm of a filter under He's rule: fan_in times 2 / fan_in
LSUV_ROUNDS, LSUV_TOLERANCE = 10, 0.05


@dataclass
class Design:
    """What `design_filters` changed. ``frozen_epochs``: 0 trains at once, None never."""

    rule: str
    scale: Scale
    frozen_epochs: int | None
    layers: list[DesignedLayer]

    def release(self, model: nn.Module, epoch: int) -> bool:
        """Let the designed layers train from ``epoch`` (from 0) on, if it has come to that; whether they do."""
        free = self.frozen_epochs is not None and epoch >= self.frozen_epochs
        for layer in self.layers:
            model.get_submodule(layer.name).requires_grad_(free)
        return free

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def design_filters(
    model: nn.Module,
    rule: str,
    layers: Sequence[str] | str | None = None,
    pictures: Any = None,
    *,
    scale: Scale | None = None,
    train: Literal["train", "freeze"] | int = "train",
    fill: Fill = "he",
    brightness: bool = True,
    patches: int = PATCHES,
    seed: int = 0,
) -> Design:
    """Give convolutions of a network new filters, in place; nothing else in it changes.

    Parameters
    ----------
    model
        Any network with convolutions.
    rule
        One of `RULES`, or ``"copied:BACKBONE"``, the first convolution of another backbone, resized where the kernels
        differ (``"copied:BACKBONE#layer"`` for another one of it).
    layers
        Names of convolutions, or patterns such as ``"layer1.*"``; the first convolution by default. Several are treated
        in the order in which the network uses them, each on what the ones before make of the pictures.
    pictures
        uint8 ``(n, 3, S, S)``, or a float tensor as the network takes it; needed to learn, and for LSUV.
    scale
        Of a filter's norm: ``"he"`` its square is 2, ``"unit"`` 1, ``"lsuv"`` the layer's output has variance 1,
        ``"own"`` as the rule gives it. By default random rules keep their own and others take ``"he"``.
    train
        ``"train"``, ``"freeze"``, or freeze for so many epochs; for those call `Design.release` in your loop.
    fill
        Where the rule gives fewer filters than the layer has: draw the others by He's rule, ``"rotate"`` random
        orthogonal mixtures of those there are, or ``"refuse"``.
    brightness
        Put one constant filter first where the rule's own cannot see brightness.
    patches
        How many to learn from.

    Returns
    -------
    Design
        What was done, layer by layer. Biases stay as they are.

    Raises
    ------
    UsageError
        For an unknown rule or layer (near names are offered), a network without convolutions, a rule that needs
        pictures without any, filters that cannot be scaled, or fewer filters than the layer has under ``"refuse"``.
    DataError
        For pictures that are too small, too few or flat.
    """
    _check(rule, scale, train, fill, pictures)
    names = convolutions(model, layers)
    table = None if pictures is None else as_seen(model, pictures, seed)
    if len(names) > 1:
        names = in_forward_order(model, names, table)
    chosen: Scale = scale or ("lsuv" if rule == "lsuv" else "own" if rule in RANDOM_RULES else "he")
    done = []
    with torch.no_grad():
        for place, name in enumerate(names):
            conv = model.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            seen = None
            if table is not None and (rule in LEARNED_RULES or chosen == "lsuv"):
                seen = inputs_of(model, conv, table)
            contrast = picture_contrast(model, pictures) if seen is not None and _are_pictures(seen, table) else None
            layer, weight = layer_filters(rule, name, conv, seen, contrast, fill, brightness, patches, seed + place)
            weight = _scaled(weight, chosen, name, getattr(conv, "mask", None))
            conv.weight.copy_(weight.to(conv.weight))
            if chosen == "lsuv":
                assert seen is not None
                _unit_variance(conv, seen, layer)
            done.append(layer)
    frozen = (0 if train == "train" else None) if isinstance(train, str) else train
    design = Design(rule, chosen, frozen, done)
    if frozen != 0:
        for name in names:
            model.get_submodule(name).requires_grad_(False)
    return design


def _check(rule: str, scale: str | None, train: Any, fill: str, pictures: Any) -> None:
    check_rule(rule)
    for what, value, allowed in (("scale", scale, get_args(Scale)), ("fill", fill, get_args(Fill))):
        if value is not None and value not in allowed:
            raise UsageError(f"{what}={value!r}: expected one of {', '.join(allowed)}.")
    number = isinstance(train, int) and not isinstance(train, bool)
    if train not in ("train", "freeze") and not (number and train >= 0):
        raise UsageError(f"train={train!r}: expected 'train', 'freeze' or a number of epochs to freeze.")
    if pictures is None and (rule in LEARNED_RULES or "lsuv" in (rule, scale)):
        raise UsageError(f"{rule}{' with scale lsuv' if scale == 'lsuv' else ''} needs pictures; give pictures=.")


def _are_pictures(seen: torch.Tensor, table: torch.Tensor | None) -> bool:
    return table is not None and seen.shape[1:] == table.shape[1:]


def _scaled(weight: torch.Tensor, scale: Scale, name: str, mask: torch.Tensor | None) -> torch.Tensor:
    """Filters of the norm asked for; taps outside a kernel's shape are 0."""
    if mask is not None:
        weight = weight * mask.cpu()
    if scale == "own":
        return weight
    norms = weight.flatten(1).norm(dim=1)
    if not bool((norms > 0).all()):
        raise UsageError(f"{name}: {int((norms == 0).sum())} filters are 0 and cannot be scaled; expected scale='own'.")
    if scale == "lsuv":  # one factor for the layer; a rule's own proportions stay
        return weight / norms.mean()
    return weight / norms.view(-1, 1, 1, 1) * (HE_NORM**0.5 if scale == "he" else 1.0)


def _unit_variance(conv: nn.Conv2d, seen: torch.Tensor, layer: DesignedLayer) -> None:
    """Divide the weights by the output's deviation until its variance is 1 (LSUV)."""
    inputs = seen[:CALIBRATION].to(conv.weight)

    def variance() -> float:
        output = conv(inputs)
        return float((output if conv.bias is None else output - conv.bias.view(1, -1, 1, 1)).var())

    for _ in range(LSUV_ROUNDS):
        layer.variance = variance()
        if abs(layer.variance - 1) < LSUV_TOLERANCE or layer.variance == 0:
            break
        conv.weight.div_(layer.variance**0.5)
    layer.variance = variance()
    if abs(layer.variance - 1) >= LSUV_TOLERANCE:
        layer.notes.append(f"the output's variance is {layer.variance:.3g} after {LSUV_ROUNDS} rounds")
