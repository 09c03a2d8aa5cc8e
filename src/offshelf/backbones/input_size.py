"""The size of the pictures a network is built for, where it has a table of positions that is made for one size."""

from __future__ import annotations

from typing import Any

from timm.layers import to_2tuple
from timm.models.convit import ConVit
from torch import nn

from offshelf.backbones.convit import resize_convit
from offshelf.errors import UsageError


def set_input_size(model: nn.Module, height: int, width: int) -> None:
    """Bring a network to pictures of another size, in place, where it is built for one.

    Vision transformers and their kin have timm's ``set_input_size``, ConViT has `resize_convit`; convolutional networks
    take any size and are left as they are. Learnt tables of positions are interpolated.

    Raises
    ------
    UsageError
        For pictures smaller than a patch, and for a ConViT whose patches would make no square.
    """
    network: Any = model
    if not isinstance(model, ConVit) and not hasattr(network, "set_input_size"):
        return
    patch = to_2tuple(getattr(getattr(network, "patch_embed", None), "patch_size", 1))
    if height < patch[0] or width < patch[1]:
        raise UsageError(
            f"{height} x {width} pixels: smaller than the network's patch of {patch[0]} x {patch[1]}; give pictures of "
            "at least that size, or a network of smaller patches"
        )
    if isinstance(model, ConVit):
        resize_convit(model, (height, width))
    else:
        network.set_input_size(img_size=(height, width))
