"""A B-cos network: timm's interface for pictures in [0, 1], and the mode in which it explains itself.

`offshelf.backbones.b_cosification` makes one of a trained network by a change of its class, so that its modules and the
names of its weights stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.models import byobnet, convnext, densenet, resnet
from timm.models import vision_transformer as vit
from torch import nn

from offshelf.backbones.b_cos_layers import DYNAMIC, BCosLinear, become
from offshelf.errors import UsageError


class BCosNetwork(nn.Module):
    """A timm network after `bcosify`: the same interface, for pictures (B, 3, H, W) in [0, 1].

    Attributes
    ----------
    b : float
        The exponent B.
    per_place : bool
        The classifier reads each place by itself, and its answers are averaged.
    kept : tuple of str
        Paths of unknown layers that were left as they are; with any, explanations are not exact.
    offset : float
        What is added to every logit.
    """

    b: float
    keep_bias: bool
    per_place: bool
    has_offset: bool
    kept: tuple[str, ...]
    num_classes: int
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    @property
    def offset(self) -> float:
        """``-log(C - 1)`` for C classes, 0 without a classifier or with the offset switched off."""
        return -math.log(self.num_classes - 1) if self.has_offset and self.num_classes > 1 else 0.0

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """``(B, 3, H, W)`` in [0, 1] -> the six normalised channels ``[z, -z]`` (B, 6, H, W)."""
        z = (pictures - self.pixel_mean) / self.pixel_std
        return torch.cat([z, -z], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, 3, H, W)`` in [0, 1] -> logits (B, C)."""
        return self.forward_encoded(self.encode(x))

    def forward_encoded(self, z: torch.Tensor) -> torch.Tensor:
        """What `encode` gives (B, 6, H, W) -> logits (B, C)."""
        base: Any = super()
        return self.forward_head(base.forward_features(z))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, 3, H, W)`` in [0, 1] -> the last map or tokens, as the network without B-cos gives them."""
        base: Any = super()
        return base.forward_features(self.encode(x))

    def forward_intermediates(self, x: torch.Tensor, *arguments: Any, **settings: Any) -> Any:
        """timm's, for pictures in [0, 1]."""
        base: Any = super()
        return base.forward_intermediates(self.encode(x), *arguments, **settings)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The last map or tokens -> logits (B, C), or the pooled features (B, width)."""
        base: Any = super()
        if not self.per_place:
            out = base.forward_head(x, pre_logits=pre_logits)
        else:  # every place is a picture of one place, whose pooling is the identity
            places = x[:, :, None] if x.ndim == 3 else x.permute(0, 2, 3, 1)[..., None, None]
            out = base.forward_head(places.flatten(0, -3 if x.ndim == 3 else -4), pre_logits=pre_logits)
            out = out.unflatten(0, (len(x), -1)).mean(1)
        return out if pre_logits else out + self.offset

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new B-cos classifier, drawn from torch's global generator; 0 removes it."""
        if global_pool == "":  # timm's way to ask for the map itself
            self.per_place = False
        elif self.per_place and global_pool not in (None, "avg"):
            raise UsageError(
                f"global_pool={global_pool!r}: the classifier reads every place and takes the mean; expected 'avg' or "
                "None. Convert with swap_head=False to pool first."
            )
        base: Any = super()
        base.reset_classifier(num_classes, global_pool)
        found: Any = self.get_classifier()  # type: ignore[operator]
        if isinstance(found, nn.Linear):
            become(found, BCosLinear, b=self.b).bias = found.bias if self.keep_bias else None  # type: ignore[assignment]

    @contextmanager
    def explaining(self) -> Iterator[BCosNetwork]:
        """In the block the network is in evaluation mode and the gradient by its input is its linear map W(x).

        The scales of B-cos layers, gates, deviations of norms, queries and keys pass on no gradient. Values are the
        same as outside. Afterwards every module is in the mode it was in.
        """
        modes = [(module, module.training) for module in self.modules()]
        dynamic: list[tuple[Any, bool]] = [(m, m.detach) for m in self.modules() if isinstance(m, DYNAMIC)]
        try:
            self.eval()
            for module, _ in dynamic:
                module.detach = True
            yield self
        finally:
            for module, mode in modes:
                module.training = mode
            for module, detached in dynamic:
                module.detach = detached


class BCosResNet(BCosNetwork, resnet.ResNet):
    """A ResNet of timm, B-cosified."""


class BCosDenseNet(BCosNetwork, densenet.DenseNet):
    """A DenseNet of timm, B-cosified."""


class BCosConvNeXt(BCosNetwork, convnext.ConvNeXt):  # type: ignore[misc]
    """A ConvNeXt of timm, B-cosified."""


class BCosVisionTransformer(BCosNetwork, vit.VisionTransformer):  # type: ignore[misc]
    """A vision transformer of timm, B-cosified."""


class BCosByobNet(BCosNetwork, byobnet.ByobNet):  # type: ignore[misc]
    """A ByobNet of timm (CLIP's ResNets are among them), B-cosified."""


FAMILIES: dict[type, type[BCosNetwork]] = {
    resnet.ResNet: BCosResNet,
    densenet.DenseNet: BCosDenseNet,
    convnext.ConvNeXt: BCosConvNeXt,
    vit.VisionTransformer: BCosVisionTransformer,
    byobnet.ByobNet: BCosByobNet,
}
