"""Sparse twins: a dense convolutional network that sees only some square cells of a picture, with the same weights.

Tian et al. 2023 (SparK, arXiv 2301.03580, section 3.1): masking the picture alone is not enough, since dense
convolutions carry what is visible into hidden cells and batch norms count the zeros there. Every layer that could write
into hidden cells is therefore followed by the mask (submanifold sparse convolution, simulated by dense operations: the
same numbers, no gain in speed), and every statistic is taken over visible positions alone.

`make_sparse` swaps the class of such layers for a twin's and gives all of them one shared `Visible`. Parameters,
buffers, state-dict keys, hooks and ``isinstance`` stay; copies and pickles work, a copy with a `Visible` of its own.
While `Visible` shows nothing, a twin is the dense layer. `make_dense` swaps the classes back.

Networks are taken by name (`FAMILIES`), and of these only if all their layers are known: a layer with a bias or a mean
that nobody thought of would leak silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import (
    AvgPool2dSame,
    BatchNormAct2d,
    BlurPool2d,
    Conv2dSame,
    ConvNormAct,
    DropPath,
    EcaModule,
    GlobalResponseNormMlp,
    LayerNorm2d,
    LayerScale2d,
    Mlp,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    SEModule,
    StdConv2d,
    StdConv2dSame,
)
from timm.layers.grn import GlobalResponseNorm
from timm.layers.pool2d_same import MaxPool2dSame
from timm.layers.squeeze_excite import EffectiveSEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models.convnext import ConvNeXtBlock
from torch import nn

from offshelf.engine.collective import batch_normalised, part_batch_norms
from offshelf.errors import BackboneError, UsageError

FAMILIES = {
    "ResNet": "resnet",
    "ConvNeXt": "convnext",
    "EfficientNet": "efficientnet",
    "MobileNetV3": "mobilenetv3",  # and MobileNetV4
    "RegNet": "regnet",
    "DenseNet": "densenet",
    "VGG": "vgg",
    "ResNetV2": "resnetv2",
    "ByobNet": "byobnet",
    "NormFreeNet": "nfnet",
}
"""Class of the whole network -> timm's file, whose own blocks only join layers and need no twin."""


class Visible:
    """Which cells the twins of one network see; while it holds none, they are dense layers."""

    def __init__(self) -> None:
        self.cells: torch.Tensor | None = None
        self._at: dict[tuple[int, int, torch.dtype], torch.Tensor] = {}

    @contextmanager
    def only(self, cells: torch.Tensor) -> Iterator[None]:
        """See the True cells of ``(B, 1, gh, gw)`` within the block."""
        self.cells, self._at = cells, {}
        try:
            yield
        finally:
            self.cells, self._at = None, {}

    def at(self, x: torch.Tensor) -> torch.Tensor:
        """The cells (there must be some) repeated to the size of ``x`` (B, C, H, W), as 0 and 1 of its type."""
        assert self.cells is not None
        height, width = x.shape[-2:]
        key = (height, width, x.dtype)
        if key not in self._at:
            self._at[key] = repeated(self.cells, height, width).to(x.dtype)
        return self._at[key]

    def masked(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (B, C, H, W) with zeros at hidden positions."""
        return x if self.cells is None else x * self.at(x)

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """Mean over the visible positions of ``x``, which is zero elsewhere: (B, C, 1, 1)."""
        if self.cells is None:
            return x.mean((2, 3), keepdim=True)
        with torch.autocast(x.device.type, enabled=False):
            count = self.at(x).float().sum((2, 3), keepdim=True).clamp(min=1.0)
            return (x.float().sum((2, 3), keepdim=True) / count).to(x.dtype)

    def maximum(self, x: torch.Tensor) -> torch.Tensor:
        """Largest of the visible positions (B, C, 1, 1), 0 where a picture has none."""
        if self.cells is None:
            return x.amax((2, 3), keepdim=True)
        largest = x.masked_fill(self.at(x) == 0, -torch.inf).amax((2, 3), keepdim=True)
        return largest.masked_fill(largest == -torch.inf, 0.0)


def repeated(cells: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Every cell of ``(B, 1, gh, gw)`` repeated to a square of positions: (B, 1, height, width)."""
    down, right = cells.shape[-2:]
    if height % down or width % right:
        raise BackboneError(
            f"a layer gives {height} x {width} positions, which {down} x {right} cells do not divide; expected a "
            "network whose padding keeps sizes at the picture's size over the stride; choose another one"
        )
    return cells.repeat_interleave(height // down, 2).repeat_interleave(width // right, 3)


# ---- twins: the dense layer, then the mask -----------------------------------------------------------------------


class _Masked:
    sparse: Visible

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sparse.masked(super().forward(x))  # type: ignore[misc]


class SparseConv2d(_Masked, nn.Conv2d):
    """Convolution that writes into visible cells only (its bias too)."""


class SparseConv2dSame(_Masked, Conv2dSame):
    """The same with TensorFlow's padding."""


class SparseStdConv2d(_Masked, StdConv2d):
    """The same with standardised weights."""


class SparseStdConv2dSame(_Masked, StdConv2dSame):
    """The same with standardised weights and TensorFlow's padding."""


class SparseScaledStdConv2d(_Masked, ScaledStdConv2d):
    """The same with scaled standardised weights."""


class SparseScaledStdConv2dSame(_Masked, ScaledStdConv2dSame):
    """The same with scaled standardised weights and TensorFlow's padding."""


class SparseMaxPool2d(_Masked, nn.MaxPool2d):
    """Largest value; a window at the border of a hidden cell counts its zeros, as in the authors' code."""


class SparseMaxPool2dSame(_Masked, MaxPool2dSame):
    """The same with TensorFlow's padding."""


class SparseAvgPool2d(_Masked, nn.AvgPool2d):
    """Mean of a window."""


class SparseAvgPool2dSame(_Masked, AvgPool2dSame):
    """The same with TensorFlow's padding."""


class SparseBlurPool2d(_Masked, BlurPool2d):
    """Blur before a stride, which would carry values into hidden cells."""


class SparseLayerNorm2d(_Masked, LayerNorm2d):
    """Normalisation over channels; its bias is kept out of hidden cells."""


class SparseConvNeXtBlock(_Masked, ConvNeXtBlock):
    """A block whose linear layers run over (B, H, W, C), where their biases fill hidden cells."""


# ---- twins with statistics over visible positions ------------------------------------------------------------------


class SparseBatchNorm2d(nn.BatchNorm2d):
    """Moments, running ones included, over the visible positions of the joined batch."""

    sparse: Visible

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        if self.sparse.cells is None:
            return super().forward(x)
        return batch_normalised(x, self, self.sparse.at(x))


class SparseBatchNormAct2d(BatchNormAct2d):
    """timm's batch norm with an activation inside, which must keep 0 at 0."""

    sparse: Visible

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        if self.sparse.cells is None:
            return super().forward(x)
        return self.act(self.drop(batch_normalised(x, self, self.sparse.at(x))))


class SparseGlobalResponseNorm(GlobalResponseNorm):
    """ConvNeXt V2's norm: what linear layers left in hidden cells must not count, and its bias must not stay there."""

    sparse: Visible

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        if self.sparse.cells is None:
            return super().forward(x)
        if self.channel_dim == 1:
            return self.sparse.masked(super().forward(self.sparse.masked(x)))
        mask = self.sparse.at(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return super().forward(x * mask) * mask


class SparseSEModule(SEModule):
    """Squeeze-and-excitation by the mean of visible positions; zeros would dilute it."""

    sparse: Visible

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        squeezed = _squeezed(self, x)
        return x * self.gate(self.fc2(self.act(self.bn(self.fc1(squeezed)))))


class SparseEffectiveSEModule(EffectiveSEModule):
    """The same with a single layer."""

    sparse: Visible

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return x * self.gate(self.fc(_squeezed(self, x)))


class SparseSqueezeExcite(SqueezeExcite):
    """The same as EfficientNet and MobileNet have it."""

    sparse: Visible

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(self.sparse.mean(x)))))


class SparseEcaModule(EcaModule):
    """Efficient channel attention by the mean of visible positions."""

    sparse: Visible

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        y = self.conv(self.sparse.mean(x).view(len(x), 1, -1))
        if self.conv2 is not None:
            y = self.conv2(self.act(y))
        return x * self.gate(y).view(len(x), -1, 1, 1)


def _squeezed(module: Any, x: torch.Tensor) -> torch.Tensor:
    mean = module.sparse.mean(x)
    return 0.5 * mean + 0.5 * module.sparse.maximum(x) if module.add_maxpool else mean


# ---- the swap ------------------------------------------------------------------------------------------------------

_WHOLE = (SparseSEModule, SparseEffectiveSEModule, SparseSqueezeExcite, SparseEcaModule)  # inside: maps of 1 x 1
_TWINS: dict[type, type] = {
    twin.__mro__[2] if issubclass(twin, _Masked) else twin.__mro__[1]: twin
    for twin in (
        *(SparseConv2d, SparseConv2dSame, SparseStdConv2d, SparseStdConv2dSame),
        *(SparseScaledStdConv2d, SparseScaledStdConv2dSame),
        *(SparseMaxPool2d, SparseMaxPool2dSame, SparseAvgPool2d, SparseAvgPool2dSame, SparseBlurPool2d),
        *(SparseBatchNorm2d, SparseBatchNormAct2d, SparseLayerNorm2d, SparseGlobalResponseNorm, SparseConvNeXtBlock),
        *_WHOLE,
    )
}
_DENSE = {twin: dense for dense, twin in _TWINS.items()}
_HARMLESS = (nn.Identity, nn.Dropout, DropPath, LayerScale2d)  # scale or pass on: 0 stays 0
_JOINING = (nn.Sequential, nn.ModuleList, ConvNormAct, Mlp, GlobalResponseNormMlp)
_BLOCK_FILES = {f"timm.models.{file}" for file in FAMILIES.values()} | {"timm.models._efficientnet_blocks"}
_ACTIVATION_FILES = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")
_HEADS = ("head", "fc", "classifier", "global_pool", "pre_logits", "flatten")


def make_sparse(backbone: nn.Module) -> Visible:
    """Give every layer of a timm network its sparse twin, in place; return what they all look at.

    The classifier is left alone. Undo with `make_dense`.

    Raises
    ------
    BackboneError
        For a network of another family, or with a layer that has no twin; nothing is changed then.
    UsageError
        For a network that has twins already.
    """
    name = type(backbone).__name__
    part_batch_norms(backbone)
    if name not in FAMILIES or not type(backbone).__module__ == f"timm.models.{FAMILIES[name]}":
        raise BackboneError(f"{_called(backbone)}: there are no sparse twins for {name}; {_EXPECTED}")
    swaps = list(_swaps(backbone))
    visible = Visible()
    for module, twin in swaps:
        module.__class__ = twin
        module.sparse = visible
    return visible


def make_dense(backbone: nn.Module) -> nn.Module:
    """Undo `make_sparse`, in place; returns ``backbone``."""
    for module in backbone.modules():
        if type(module) in _DENSE:
            module.__class__ = _DENSE[type(module)]
            del module.sparse
    return backbone


def _swaps(backbone: nn.Module) -> Iterator[tuple[Any, type]]:
    inside = tuple(f"{head}." for head in _HEADS)
    for name, module in backbone.named_modules():
        kind = type(module)
        if name.startswith(inside) or name in (*_HEADS, ""):
            continue
        if kind in _DENSE:
            raise UsageError(
                f"{_called(backbone)}: its layers are sparse already; give each objective its own network."
            )
        if kind in _TWINS:
            yield module, _TWINS[kind]
            if _TWINS[kind] in _WHOLE:
                inside = (*inside, f"{name}.")
            elif kind is ConvNeXtBlock and not module.use_conv_mlp:
                inside = (*inside, *(f"{name}.{part}" for part in ("norm", "mlp.fc", "mlp.norm")))
        elif kind not in (*_HARMLESS, *_JOINING) and kind.__module__ not in _BLOCK_FILES and not _still(module):
            raise BackboneError(
                f"{_called(backbone)}: there is no sparse twin for {kind.__name__} ({name}); {_EXPECTED}"
            )


def _still(module: nn.Module) -> bool:
    """Whether this is an activation, and 0 stays 0 in it."""
    if type(module).__module__ not in _ACTIVATION_FILES or isinstance(module, nn.MultiheadAttention):
        return False
    parameter = next(module.parameters(), torch.zeros(()))
    with torch.no_grad():
        return bool((module(parameter.new_zeros(1, max(1, parameter.numel()), 1, 1)) == 0).all())


def _called(backbone: nn.Module) -> str:
    config = getattr(backbone, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(backbone).__name__)


_EXPECTED = (
    "expected ResNet (also with squeeze-excite or ECA), ConvNeXt, EfficientNet, MobileNetV3 or V4 without attention, "
    "RegNet, DenseNet, VGG, ResNetV2 with batch norm, NFNet or a plain network of timm's byobnet. Other convolutional "
    "networks can be pre-trained with selfie, vision transformers with mae-thorax or sit"
)
