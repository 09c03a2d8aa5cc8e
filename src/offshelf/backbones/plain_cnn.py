"""A plain convolutional network whose kernels can be chosen: what the study of filters trains.

A stem of ``filters`` kernels, then stages of one kernel each, all of the size and shape asked for, with batch norm (or
none) and ReLU, halved by maximum pooling in front of every stage; the mean over the last map, and a linear classifier.
Maps keep their size in every convolution, so that kernels of all sizes are compared on equal maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs
from timm.models._features import feature_take_indices
from torch import nn

from offshelf.backbones.architectures import register_architectures
from offshelf.backbones.kernel_shapes import MaskedConv2d, covering
from offshelf.errors import UsageError

NORMS = ("batch", "none")


class PlainCNN(nn.Module):
    """A stem and stages of one kernel each, speaking timm's interface.

    Parameters
    ----------
    filters
        Width of the stem.
    widths
        Of the stages; a stage sees half the side of what comes before it.
    size, shape
        Of the stem's kernel; see `offshelf.backbones.kernel_shapes.covering`.
    stride
        Of the stem: 2 makes the network four times as quick.
    stage_size, stage_shape
        Of the stages' kernels.
    norm
        ``"batch"`` or ``"none"``; without one the convolutions have biases.

    Raises
    ------
    UsageError
        For a kernel that cannot be built, or an unknown norm.
    """

    def __init__(
        self,
        filters: int = 48,
        widths: Sequence[int] = (64, 96, 128),
        size: int = 5,
        shape: str = "square",
        stride: int = 1,
        stage_size: int = 3,
        stage_shape: str = "square",
        norm: str = "batch",
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise UsageError(f"norm={norm!r}: expected one of {', '.join(NORMS)}.")
        if not widths or min(filters, *widths) < 1:
            raise UsageError(f"filters={filters}, widths={tuple(widths)}: expected numbers of 1 or more.")
        self.num_classes, self.in_chans, self.grad_checkpointing = num_classes, in_chans, False

        def after(width: int) -> nn.Module:
            return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU()) if norm == "batch" else nn.ReLU()

        def kernel(number: int, channels: int, width: int) -> list[nn.Module]:
            side, form = (stage_size, stage_shape) if number else (size, shape)
            return [*covering(form, side, channels, width, after, bias=norm == "none"), after(width)]

        if stride < 1:
            raise UsageError(f"stride={stride}: expected 1 or more.")
        entry = kernel(0, in_chans, filters)
        assert isinstance(entry[0], nn.Conv2d)
        entry[0].stride = (stride, stride)
        self.stem, self.stride = nn.Sequential(*entry), stride
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": filters, "reduction": stride, "module": f"stem.{len(entry) - 1}"}
        ]
        channels, stages = filters, []
        for number, width in enumerate(widths, start=1):
            stages.append(nn.Sequential(nn.MaxPool2d(2), *kernel(number, channels, width)))
            self.feature_info.append(
                {"num_chs": width, "reduction": stride * 2**number, "module": f"stages.{number - 1}"}
            )
            channels = width
        self.stages = nn.Sequential(*stages)
        self.num_features = self.head_hidden_size = channels
        self.head = ClassifierHead(channels, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.apply(_start)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, 3, H, W)`` -> the last map ``(B, num_features, h, w)``."""
        x = self._stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.stages, x)
        return self.stages(x)

    def _stem(self, x: torch.Tensor) -> torch.Tensor:
        if min(x.shape[-2:]) < self.least:
            raise UsageError(
                f"a picture of {x.shape[-2]} x {x.shape[-1]} pixels: expected at least {self.least} x {self.least} for "
                f"{len(self.stages)} stages that halve it. Raise the image size (--image-size)."
            )
        return self.stem(x)

    @property
    def least(self) -> int:
        """Side of the smallest picture in pixels."""
        return self.stride * 2 ** len(self.stages)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The last map -> logits ``(B, K)``, or with ``pre_logits`` what the classifier sees."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, 3, H, W)`` -> logits ``(B, K)``."""
        return self.forward_head(self.forward_features(x))

    # -- timm's interface ----------------------------------------------------------------------------------------------

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps of the stem and the stages, as ``feature_info`` lists them; see timm. ``norm`` changes nothing."""
        if output_fmt != "NCHW":
            raise UsageError(f"output_fmt={output_fmt!r}: expected 'NCHW', this network gives maps.")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        x = self._stem(x)
        found = [x] if 0 in taken else []
        for place, stage in enumerate(self.stages, start=1):
            if stop_early and place > last:
                break
            x = stage(x)
            if place in taken:
                found.append(x)
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of ``indices``, and the classifier."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        whole = last == len(self.stages)
        self.stages = self.stages[:last]
        if not whole:
            self.num_features = self.head_hidden_size = int(self.feature_info[last]["num_chs"])
        if prune_head or not whole:
            self.reset_classifier(0, "")
        return taken

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; 0 classes leave the pooled features."""
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Nothing beside what never decays."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for rates by depth: the stem, then every stage."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training."""
        self.grad_checkpointing = enable


def _start(module: nn.Module) -> None:
    """He's rule for every convolution, over the taps that it has."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, MaskedConv2d):
            with torch.no_grad():
                module.weight.mul_(module.mask * math.sqrt(module.mask.numel() / module.taps))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


default_cfgs = generate_default_cfgs(
    {
        "plain_cnn.untrained": {
            "url": "",
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (4, 4),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "first_conv": "stem.0",
            "classifier": "head.fc",
            "license": "apache-2.0",
        }
    }
)


def plain_cnn(pretrained: bool = False, **settings: Any) -> PlainCNN:
    """About 0.2 million parameters, 5 x 5 stem of 48 filters, three stages of 3 x 3; stride 8, made for 32 pixels."""
    register_architectures()  # timm finds the network's settings by its name
    features = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
    return build_model_with_cfg(PlainCNN, "plain_cnn", pretrained, feature_cfg=features, **settings)
