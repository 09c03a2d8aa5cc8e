"""Only some patches of a picture enter a vision transformer of timm.

timm's own slot for it, ``patch_drop``, stands after the embedding: patches have got their positions, and class and
register tokens stand before them. In an Eva network the slot also says which rows of the rotary table go on to the
blocks. A module of ours takes that place for one pass, so that everything else is timm's own forward; with all patches
in their order it is exactly the plain one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from offshelf.errors import BackboneError, UsageError

KINDS = {"VisionTransformer": "plain", "VisionTransformerDistilled": "plain", "Eva": "rotary"}
"""Class of the network -> whether its slot also has to say which tokens are left."""

EXPECTED = (
    "expected a vision transformer of timm of the classes VisionTransformer (ViT, DeiT, DINOv2, CLIP, SigLIP) or Eva "
    "(EVA-02, ROPE-ViT, DINOv3, Perception Encoder) that cuts pictures into patches by one convolution"
)


class Keep(nn.Module):
    """What stands in the slot: the prefix tokens and the patches ``visible`` (B, K) go on.

    Parameters
    ----------
    prefix : how many class and register tokens stand before the patches.
    rotary : return the numbers of the patches too, as Eva networks expect.
    """

    def __init__(self, visible: torch.Tensor, prefix: int, rotary: bool) -> None:
        super().__init__()
        self.visible, self.prefix, self.rotary = visible, prefix, rotary

    def forward(self, x: torch.Tensor) -> Any:
        """(B, prefix + L, D) -> (B, prefix + K, D)."""
        index = self.visible[:, :, None].expand(-1, -1, x.shape[-1])
        x = torch.cat([x[:, : self.prefix], x[:, self.prefix :].gather(1, index)], dim=1)
        return (x, self.visible) if self.rotary else x


def check_patches(backbone: nn.Module, image_size: int, instead: str) -> int:
    """The side of the patches, if only some of them can enter ``backbone`` and they tile the picture.

    Parameters
    ----------
    image_size : side of the pictures, for which ``backbone`` must be built.
    instead : what the error adds, such as which methods fit other networks.

    Raises
    ------
    BackboneError
        For a network of another class, without the slot, or whose patches overlap or are not square.
    UsageError
        For a side that the patch does not divide, or for which the network is not built.
    """
    name = type(backbone).__name__
    if name not in KINDS or not hasattr(backbone, "patch_drop"):
        raise BackboneError(f"{name}: it has no slot at which patches can be left out; {EXPECTED}. {instead}")
    embed: Any = backbone.patch_embed
    if type(embed).__name__ != "PatchEmbed":
        raise BackboneError(
            f"{name} with {type(embed).__name__}: its patches are made from overlapping parts of the picture, so that "
            f"hidden ones would be seen; {EXPECTED}. {instead}"
        )
    high, wide = embed.patch_size
    if high != wide:
        raise BackboneError(f"{name}: its patches are {high} x {wide} pixels; expected square ones. {instead}")
    if image_size < high:
        raise UsageError(f"image_size={image_size}: smaller than a patch of {high} pixels; {4 * high} or more works")
    if image_size % high:
        below = image_size // high * high
        raise UsageError(
            f"image_size={image_size}: expected a multiple of the patch of {high} pixels; {below} and {below + high} "
            "work"
        )
    built = embed.img_size
    if built is not None and tuple(built) != (image_size, image_size) and not backbone.dynamic_img_size:
        raise UsageError(
            f"image_size={image_size}: the network is built for {built[0]} x {built[1]} pixels; call "
            f"backbone.set_input_size(img_size=({image_size}, {image_size})) first"
        )
    return int(high)


@contextmanager
def only(backbone: Any, visible: torch.Tensor) -> Iterator[None]:
    """Within, only patches ``visible`` (B, K) enter ``backbone``, in that order; afterwards the slot is as before."""
    before = backbone.patch_drop
    backbone.patch_drop = Keep(visible, backbone.num_prefix_tokens, KINDS[type(backbone).__name__] == "rotary")
    try:
        yield
    finally:
        backbone.patch_drop = before


def encode_visible(backbone: Any, pictures: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Tokens after the last block and the network's final norm, where it has one.

    Parameters
    ----------
    pictures : (B, 3, S, S)
    visible : int64 (B, K)
        Numbers of the patches that enter, counted row by row.

    Returns
    -------
    Tensor (B, prefix + K, D)
        Class and register tokens, then the patches in the order of ``visible``.
    """
    with only(backbone, visible):
        return backbone.forward_features(pictures)
