"""The size of the pictures a network takes: tables of positions are made for one, and strides need a least one."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models.convit import ConVit
from torch import nn

from offshelf.backbones.card import name_of
from offshelf.backbones.convit import resize_convit
from offshelf.errors import UsageError


def set_input_size(model: nn.Module, height: int, width: int) -> None:
    """Bring a network to pictures of another size, in place, where it is built for one, and see that it takes them.

    Vision transformers and their kin have timm's ``set_input_size``, ConViT has `resize_convit`; convolutional networks
    are left as they are. Learnt tables of positions are interpolated.

    Raises
    ------
    UsageError
        For pictures smaller than a patch, for a ConViT whose patches would make no square, and for what `require_size`
        refuses.
    """
    network: Any = model
    if isinstance(model, ConVit) or hasattr(network, "set_input_size"):
        _resize_table(network, height, width)
    require_size(model, height, width)


def require_size(model: nn.Module, height: int, width: int) -> None:
    """Pass one empty picture of ``height`` x ``width`` pixels through a network in evaluation mode.

    Raises
    ------
    UsageError
        When the network does not take it: too small for its strides, or another size than its table of positions has.
    """
    network: Any = model
    card = getattr(model, "card", None)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            network.forward_features(torch.zeros(1, 3, height, width))
    except (RuntimeError, AssertionError, ValueError) as error:
        own = f"; it was made for {card.input_size[0]} pixels" if card is not None else ""
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"{name_of(model)} does not take pictures of {height} x {width} pixels ({reason}){own}. Choose another "
            "size (--image-size, of fit --input-size), or another backbone."
        ) from error
    finally:
        model.train(training)


def _resize_table(network: Any, height: int, width: int) -> None:
    patch = to_2tuple(getattr(getattr(network, "patch_embed", None), "patch_size", 1))
    if height < patch[0] or width < patch[1]:
        raise UsageError(
            f"{height} x {width} pixels: smaller than the network's patch of {patch[0]} x {patch[1]}; give pictures of "
            "at least that size, or a network of smaller patches"
        )
    if isinstance(network, ConVit):
        resize_convit(network, (height, width))
    else:
        network.set_input_size(img_size=(height, width))
