"""Inception-ResNet, and the finding that a wide residual branch wants to be scaled before it is added.

Szegedy, Ioffe, Vanhoucke and Alemi: *Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning*
(2016, arXiv 1602.07261). An Inception block runs several convolutions side by side. A plain one concatenates them; a
residual one projects them back to the width of its input and adds them, scaled (section 3.3):

    plain     y = concatenation of the branches of x
    residual  y = max(0, x + s U(concatenation of the branches of x)),    s in [0.1, 0.3]

Every convolution is followed by batch normalisation (eps 1e-3) and ReLU, but U: it has a bias and neither, and there is
no normalisation on the sum. Claim: residual connections speed training up, and s below 1 keeps wide networks stable.

timm has Inception-v4 (``inception_v4``) and the *released* Inception-ResNet-v2 (``inception_resnet_v2``), with weights;
both are used as they are, and `offshelf.backbones.residual_scale.set_residual_scale` sets s in the latter. Here are
Inception-ResNet-v1, the paper's own Inception-ResNet-v2, and a pair of equal size for pictures of 32 to 64 pixels.

What is ours: widths that only the paper's figures show, and the repeats 5, 10, 5 (where the released code has 10, 20,
10), are from a reading of the text without its figures. The paper's 17 x 17 module of Inception-ResNet-v2 says 1154
channels where its own reduction gives 1152; the sum is taken. Its 8 x 8 module says 2048 where the reduction gives
2144; again the sum. The scales are those of the released code, 0.17, 0.10 and 0.20 by stage, since the paper gives a
range only. For small pictures (``stem="cifar"``) the strided layers are padded, so that maps halve exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs
from timm.models._features import feature_take_indices
from torch import nn

from offshelf.backbones.architectures import register_architectures
from offshelf.backbones.inception_layers import AuxiliaryHead, ResidualBlock, plain_block, reduction, stem_of
from offshelf.backbones.inception_widths import VERSIONS, Branches
from offshelf.backbones.residual_scale import set_residual_scale
from offshelf.errors import UsageError

Version = Literal["v1", "v2", "v2-paper", "mini", "mini-plain"]
Stem = Literal["imagenet", "cifar"]

SMALLEST = {"imagenet": 75, "cifar": 8}
"""Side of the smallest picture, in pixels: below 75 the second reduction of the large networks has nothing to stand on.
"""


# ---- the network ---------------------------------------------------------------------------------


class InceptionResNet(nn.Module):
    """An Inception network in three stages, residual or plain, speaking timm's interface.

    Parameters
    ----------
    version : "v1" (256, 896 and 1792 channels), "v2-paper" (384, 1152, 2144), "mini" (64, 96, 160; residual) or
        "mini-plain" (the same, concatenating).
    repeats : blocks of stages A, B and C; the version's own by default.
    residual_scale : s of all blocks, or of each stage; the version's own by default. Not for the plain network.
    width : factor of all widths.
    stem : "imagenet" (stride 8, from 75 pixels) or "cifar" (stride 2, from 8 pixels); the version's own by default.
    auxiliary : a second classifier for training, see `forward_with_auxiliary`; with the imagenet stem.
    drop_rate : share of the pooled features left out in training; the paper keeps 0.8 of them.

    Raises
    ------
    UsageError
        For a setting that does not exist or does not fit the version.
    """

    def __init__(
        self,
        version: str = "v1",
        repeats: Sequence[int] | None = None,
        residual_scale: float | Sequence[float] | None = None,
        width: float = 1.0,
        stem: str | None = None,
        auxiliary: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        stem = stem or _default_stem(version)
        plan = VERSIONS.get(version)
        if plan is None:
            raise UsageError(f"version={version!r}: expected one of {', '.join(VERSIONS)}.")
        plain = any(plan.pooled)
        counts = tuple(repeats or plan.repeats)
        _check(stem, counts, width, auxiliary, plain, residual_scale)
        scales = _by_stage(plan.scales if residual_scale is None else residual_scale)
        self.num_classes, self.in_chans, self.least = num_classes, in_chans, SMALLEST[stem]
        self.grad_checkpointing = False

        def wide(value: int) -> int:
            return max(1, round(value * width))

        def widened(branches: Branches) -> Branches:
            return tuple(tuple((wide(out), kernel) for out, kernel in layers) for layers in branches)

        entry = 384 if version == "v2-paper" else 256 if version == "v1" else 64
        kind = "cifar" if stem == "cifar" else "v1" if version == "v1" else "v4"
        outs = (32, entry) if kind == "cifar" else (32, 64, 80, 192, 256) if kind == "v1" else (32, 64, 0, 96, 0)
        self.stem, taps = stem_of(kind, in_chans, [wide(out) for out in outs])
        channels = 4 * wide(96) if kind == "v4" else wide(entry)
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": c, "reduction": r, "module": f"stem.{i}"} for i, c, r in taps
        ]
        stride = 2 if kind == "cifar" else 8
        stages = []
        for number, (branches, count) in enumerate(zip(plan.blocks, counts)):
            layers: list[nn.Module] = []
            if number:
                made, channels = reduction(channels, widened(plan.reductions[number - 1]), valid=stem == "imagenet")
                layers, stride = [made], stride * 2
            for _ in range(count):
                if plain:
                    layers.append(plain_block(channels, widened(branches), wide(plan.pooled[number])))
                    channels = sum(wide(one[-1][0]) for one in branches) + wide(plan.pooled[number])
                else:
                    layers.append(ResidualBlock(channels, widened(branches), scales[number]))
            stages.append(nn.Sequential(*layers))
            self.feature_info.append({"num_chs": channels, "reduction": stride, "module": f"stages.{number}"})
        self.stages = nn.Sequential(*stages)
        self.num_features = channels
        self.auxiliary = AuxiliaryHead(self.feature_info[-2]["num_chs"], num_classes) if auxiliary else None
        self.head = ClassifierHead(channels, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.head_hidden_size = self.head.num_features

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, 3, H, W)`` -> the last map ``(B, num_features, h, w)``."""
        x = self._entered(x)
        for stage in self.stages:
            x = self._passed(stage, x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The last map -> logits ``(B, K)``, or with ``pre_logits`` what the classifier sees."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, 3, H, W)`` -> logits ``(B, K)``."""
        return self.forward_head(self.forward_features(x))

    def forward_with_auxiliary(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of both classifiers; the released code trains on the loss of the first plus 0.4 that of the second."""
        if self.auxiliary is None:
            raise UsageError("this network has no second classifier; expected one built with auxiliary=True.")
        x = self._passed(self.stages[1], self._passed(self.stages[0], self._entered(x)))
        return self.forward_head(self._passed(self.stages[2], x)), self.auxiliary(x)

    def _entered(self, x: torch.Tensor) -> torch.Tensor:
        if min(x.shape[-2:]) < self.least:
            raise UsageError(
                f"a picture of {x.shape[-2]} x {x.shape[-1]} pixels: expected at least {self.least} x {self.least} "
                "for this network, or nothing is left of its last map. Raise the image size (--image-size)."
            )
        return self.stem(x)

    def _passed(self, stage: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(stage, x)
        return stage(x)

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
        """Maps of the stem and of stages A, B and C, as ``feature_info`` lists them; see timm.

        ``norm`` changes nothing, there is no final normalisation.
        """
        if output_fmt != "NCHW":
            raise UsageError(f"output_fmt={output_fmt!r}: expected 'NCHW', this network gives maps.")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        stem_taps = [int(one["module"].split(".")[1]) for one in self.feature_info[:-3]]
        found, place = [], 0
        if min(x.shape[-2:]) < self.least:
            self._entered(x)  # says so
        for number, layer in enumerate(self.stem):
            x = layer(x)
            if number in stem_taps:
                if place in taken:
                    found.append(x)
                place += 1
        for stage in self.stages:
            if stop_early and place > last:
                break
            x = self._passed(stage, x)
            if place in taken:
                found.append(x)
            place += 1
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of ``indices``, and the classifier."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        kept = max(0, last - (len(self.feature_info) - 3) + 1)
        if kept < 3:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        self.stages = self.stages[:kept]
        if prune_head or kept < 3:
            self.reset_classifier(0, "")
        return taken

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.fc

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier of so many outputs, 0 for none; dropout stays. The second classifier goes."""
        self.num_classes, self.auxiliary = num_classes, None
        self.head.reset(num_classes, pool_type=global_pool)
        if len(self.stages) == 3:
            self.head_hidden_size = self.head.num_features

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Nothing beyond what is one-dimensional."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise learning rates: the stem, then every block, or every stage."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the maps between blocks and work the rest out again in the backward pass."""
        self.grad_checkpointing = enable


def _default_stem(version: str) -> str:
    return "cifar" if version.startswith("mini") else "imagenet"


def _by_stage(scale: float | Sequence[float]) -> tuple[float, float, float]:
    a, b, c = (scale,) * 3 if isinstance(scale, int | float) else scale
    return float(a), float(b), float(c)


def _check(
    stem: str,
    repeats: tuple[int, ...],
    width: float,
    auxiliary: bool,
    plain: bool,
    scale: float | Sequence[float] | None,
) -> None:
    if stem not in SMALLEST:
        raise UsageError(f"stem={stem!r}: expected one of {', '.join(SMALLEST)}.")
    if len(repeats) != 3 or min(repeats) < 1:
        raise UsageError(f"repeats={repeats}: expected three numbers of blocks, each 1 or more.")
    if not 0 < width < float("inf"):
        raise UsageError(f"width={width}: expected a factor above 0.")
    if auxiliary and stem != "imagenet":
        raise UsageError(
            "auxiliary=True with stem='cifar': its maps are too small for a second classifier; leave it out."
        )
    if scale is None:
        return
    if plain:
        raise UsageError(f"residual_scale={scale}: a plain network has no residual branches; expected None.")
    if not isinstance(scale, int | float) and len(scale) != 3:
        raise UsageError(f"residual_scale={scale}: expected a number, or three, one for each stage.")


# ---- builders ------------------------------------------------------------------------------------


def _cfg(**settings: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 299, 299),
        "pool_size": (8, 8),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_INCEPTION_MEAN,
        "std": IMAGENET_INCEPTION_STD,
        "first_conv": "stem.0.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
        **settings,
    }


_SMALL = {"input_size": (3, 32, 32), "pool_size": (4, 4), "crop_pct": 1.0}
default_cfgs = generate_default_cfgs(
    {
        "inception_resnet_v1.untrained": _cfg(),
        "inception_resnet_v2_paper.untrained": _cfg(),
        "inception_resnet_mini.untrained": _cfg(**_SMALL),
        "inception_mini.untrained": _cfg(**_SMALL),
    }
)


def _build(name: str, pretrained: bool, version: str, settings: dict[str, Any]) -> InceptionResNet:
    small = (settings.get("stem") or _default_stem(version)) == "cifar"
    taps = 4 if small else 5  # the maps that features_only gives by default
    register_architectures()  # timm finds the network's settings by its name
    return build_model_with_cfg(
        InceptionResNet,
        name,
        pretrained,
        feature_cfg={"flatten_sequential": True, "out_indices": tuple(range(taps))},
        **{"version": version, **settings},
    )


def inception_resnet_v1(pretrained: bool = False, **settings: Any) -> InceptionResNet:
    """Inception-ResNet-v1, for 299 pixels; settings as of `InceptionResNet`."""
    return _build("inception_resnet_v1", pretrained, "v1", {"drop_rate": 0.2} | settings)


def inception_resnet_v2_paper(pretrained: bool = False, **settings: Any) -> InceptionResNet:
    """Inception-ResNet-v2 as in the paper: the stem of Inception-v4, and 5, 10 and 5 blocks."""
    return _build("inception_resnet_v2_paper", pretrained, "v2-paper", {"drop_rate": 0.2} | settings)


def inception_resnet_mini(pretrained: bool = False, **settings: Any) -> InceptionResNet:
    """A small residual Inception network for 32 to 64 pixels, s = 0.2."""
    return _build("inception_resnet_mini", pretrained, "mini", settings)


def inception_mini(pretrained: bool = False, **settings: Any) -> InceptionResNet:
    """`inception_resnet_mini` with concatenating blocks in place of residual ones, as large within 3 %."""
    return _build("inception_mini", pretrained, "mini-plain", settings)


_BUILDERS = {
    "v1": inception_resnet_v1,
    "v2-paper": inception_resnet_v2_paper,
    "mini": inception_resnet_mini,
    "mini-plain": inception_mini,
}


def inception_resnet(
    version: Version = "v1",
    *,
    repeats: Sequence[int] | None = None,
    residual_scale: float | Sequence[float] | None = None,
    width: float = 1.0,
    stem: Stem | None = None,
    **settings: Any,
) -> nn.Module:
    """An Inception-ResNet of any version with random weights; "v2" is timm's own network, whose sizes are fixed.

    Parameters
    ----------
    version, repeats, residual_scale, width, stem, settings
        As of `InceptionResNet`. With "v2", ``residual_scale`` is a number, or one for each of its 40 blocks, and the
        other settings are those of timm's ``InceptionResnetV2``.

    Raises
    ------
    UsageError
        For a setting that does not exist or does not fit the version.

    References
    ----------
    Szegedy et al. 2016, arXiv 1602.07261, sections 3.2 and 3.3.
    """
    if version in _BUILDERS:
        given: dict[str, Any] = {"repeats": repeats, "residual_scale": residual_scale, "stem": stem}
        kept = {name: value for name, value in given.items() if value is not None}
        return _BUILDERS[version](width=width, **kept, **settings)
    if version != "v2":
        raise UsageError(f"version={version!r}: expected one of v1, v2, v2-paper, mini, mini-plain.")
    if repeats is not None or width != 1.0 or stem not in (None, "imagenet"):
        raise UsageError(
            "version='v2' is timm's network, of fixed sizes; expected 'v2-paper' with repeats, width or stem."
        )
    import timm

    model = timm.create_model("inception_resnet_v2", **settings)
    if residual_scale is not None:
        set_residual_scale(model, residual_scale)
    return model
