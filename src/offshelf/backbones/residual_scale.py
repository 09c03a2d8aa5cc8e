"""The factor of every residual branch of a network, read and set: ``y = x + s F(x)`` (arXiv 1602.07261, section 3.3).

It works on Inception-ResNets, timm's and ours, whose blocks hold their own factor, and on every network whose blocks
have timm's ``drop_path`` slot (ResNets, RegNets, EfficientNets, ConvNeXts, vision transformers and more): what passes
through that slot is the residual branch, so a factor there scales exactly it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from offshelf.errors import BackboneError, UsageError

SLOT = "drop_path"


class BranchScale(nn.Module):
    """What stood in a block's ``drop_path`` slot, and a factor: ``x -> s drop(x)``.

    The factor is no part of the state dict, so that weights fit with and without it.
    """

    def __init__(self, drop: nn.Module | None, scale: float) -> None:
        super().__init__()
        self.drop = nn.Identity() if drop is None else drop
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The scaled branch, in the shape of ``x``."""
        return self.scale * self.drop(x)


def residual_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a network that add a branch to their input, by name, in the order of the network; may be empty.

    A transformer block with attention and a multilayer perceptron has two branches and is one block.
    """
    return {name: module for name, module in model.named_modules() if _own_scale(module) or any(_slots(module))}


def residual_scales(model: nn.Module) -> list[float]:
    """s of each residual block, in the order of `residual_blocks`."""
    found = []
    for block in residual_blocks(model).values():
        if _own_scale(block):
            found.append(float(block.scale))  # type: ignore[arg-type]
            continue
        held = getattr(block, next(_slots(block)))
        found.append(held.scale if isinstance(held, BranchScale) else 1.0)
    return found


def set_residual_scale(model: nn.Module, scale: float | Sequence[float]) -> list[float]:
    """Multiply the residual branches of a network by ``scale`` before they are added; in place.

    Parameters
    ----------
    model : a timm network or one of ours.
    scale : one number for all blocks, or one for each block in the order of `residual_blocks`. 0 leaves the identity
        (and the ReLU after it, where there is one).

    Returns
    -------
    list of float
        The scales before, one for each block: ``set_residual_scale(model, before)`` puts them back.

    Notes
    -----
    Our own Inception-ResNets keep their scales with their weights. In a timm network they are settings of this object
    alone: saved and loaded again it has timm's, so set them again.

    Raises
    ------
    BackboneError
        For a network without residual blocks.
    UsageError
        For another number of scales than blocks, or one that is no number.
    """
    blocks = residual_blocks(model)
    if not blocks:
        raise BackboneError(
            f"{type(model).__name__} has no residual blocks, so there is no residual scale to set; expected a network "
            "that adds branches to its input, such as inception_resnet_mini, inception_resnet_v2, resnet18 or a "
            "vision transformer."
        )
    scales = [float(scale)] * len(blocks) if isinstance(scale, int | float) else [float(one) for one in scale]
    if len(scales) != len(blocks):
        raise UsageError(
            f"{len(scales)} scales for {len(blocks)} residual blocks: expected one number, or one a block."
        )
    if not all(abs(one) < float("inf") for one in scales):
        raise UsageError(f"residual scale {scale}: expected finite numbers, such as 0.1.")
    before = residual_scales(model)
    for block, one in zip(blocks.values(), scales):
        if not _own_scale(block):
            for slot in list(_slots(block)):
                held = getattr(block, slot)
                if isinstance(held, BranchScale):
                    held.scale = one
                else:
                    setattr(block, slot, BranchScale(held, one).train(block.training))
        elif isinstance(block.scale, torch.Tensor):
            block.scale.fill_(one)
        else:
            block.scale = one  # type: ignore[assignment]
    return before


def _own_scale(module: nn.Module) -> bool:
    """Whether this is an Inception-ResNet block, timm's or ours: a factor and the 1 x 1 convolution it belongs to."""
    held = vars(module).get("scale", module._buffers.get("scale"))  # not a parameter: those are layer scales
    projects = isinstance(getattr(module, "project", getattr(module, "conv2d", None)), nn.Conv2d)
    return held is not None and projects


def _slots(module: nn.Module) -> Iterator[str]:
    """Names of a block's drop_path slots, used or empty; none where a block is built without its shortcut."""
    if not getattr(module, "has_skip", True):
        return
    for name, value in [*vars(module).items(), *module._modules.items()]:
        tail = name.removeprefix(SLOT)
        if name.startswith(SLOT) and (not tail or tail.isdigit()) and (value is None or isinstance(value, nn.Module)):
            yield name
