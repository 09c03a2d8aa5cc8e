"""CvT: a pyramid of transformer stages whose tokens, queries, keys and values come from convolutions.

Wu, Xiao, Codella, Liu, Dai, Yuan, Zhang: CvT: Introducing Convolutions to Vision Transformers, ICCV 2021,
arXiv 2103.15808. The claim: with convolutions in these two places a vision transformer is more accurate at equal size,
and needs no position embedding, so that pictures of any size go through unchanged weights.

Each stage makes its tokens by an overlapping, strided convolution (section 3.1) and runs pre-norm blocks of attention
with a convolutional projection (`offshelf.backbones.cvt_stages`). The last stage has a class token, whose norm the
classifier reads.

Departures: where paper and its code differ, the code is followed (logits are scaled by the whole width, not a head's;
the activation is x sigmoid(1.702 x)); stochastic depth is off unless ``drop_path_rate`` is given (0.1, and 0.3 for
W24, in the paper). `cvt_tiny` and `cvt_mini` are ours, for small pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models._features import feature_take_indices
from torch import nn

from offshelf.backbones.cvt_stages import PROJECTIONS, SCALES, Block, ConvolutionalEmbedding, Stage
from offshelf.backbones.cvt_weights import convert_cvt_weights
from offshelf.errors import UsageError


class CvT(nn.Module):
    """A convolutional vision transformer with timm's interface.

    ``forward_features`` gives normalised tokens of the last stage ``(B, P + h w, C)``, the class token first.

    Parameters
    ----------
    embed_dims, depths, heads : width, blocks and heads of each stage.
    patch_kernels, patch_strides, patch_paddings : of each stage's embedding.
    mlp_ratio : hidden width of the MLPs over the stage's.
    qkv_kernel, kv_stride, projection, scale, qkv_bias : as `ConvolutionalAttention` takes them, alike in all stages.
    pos_embed : None, or "learned": a table added after each stage's embedding, and resized bilinearly with the picture.
    pos_embed_size : side of the pictures, in pixels, that these tables are made for.
    act_layer : timm's name; "quick_gelu" as the networks were trained, "gelu" for the exact one.
    class_token : the classifier reads a token of the last stage; else the mean over the last map.
    drop_path_rate : of the last block; it grows linearly from 0 over the blocks of the last stage, and is 0 before it.
    drop_rate : dropout before the classifier.
    global_pool : "token", "avg" or ""; by default the first where there is a class token, else the second.

    Raises
    ------
    UsageError
        For settings that do not fit each other, and for pictures too small for the strides.
    """

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 192, 384),
        depths: Sequence[int] = (1, 2, 10),
        heads: Sequence[int] = (1, 3, 6),
        patch_kernels: Sequence[int] = (7, 3, 3),
        patch_strides: Sequence[int] = (4, 2, 2),
        patch_paddings: Sequence[int] = (2, 1, 1),
        mlp_ratio: float = 4.0,
        qkv_kernel: int = 3,
        kv_stride: int = 2,
        qkv_bias: bool = True,
        projection: str = "dw_bn",
        scale: str = "dim",
        pos_embed: str | None = None,
        pos_embed_size: int = 224,
        act_layer: str = "quick_gelu",
        class_token: bool = True,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
    ) -> None:
        super().__init__()
        _check(embed_dims, depths, heads, patch_kernels, patch_strides, patch_paddings)
        _check_words(projection=(projection, PROJECTIONS), scale=(scale, SCALES), pos_embed=(pos_embed, _POSITIONS))
        if qkv_kernel % 2 == 0:
            raise UsageError(f"qkv_kernel={qkv_kernel}: expected an odd number, so that windows have a middle.")
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dims[-1]
        self.num_prefix_tokens = int(class_token)
        self.global_pool = self._pooling(global_pool)
        last = len(depths) - 1
        rates = torch.linspace(0, drop_path_rate, depths[last], device="cpu").tolist()
        stages, channels, reduction, size = [], in_chans, 1, (pos_embed_size, pos_embed_size)
        self.feature_info = []
        for i, dim in enumerate(embed_dims):
            embedding = ConvolutionalEmbedding(channels, dim, patch_kernels[i], patch_strides[i], patch_paddings[i])
            blocks = [
                Block(
                    dim,
                    heads[i],
                    mlp_ratio=mlp_ratio,
                    act_layer=act_layer,
                    drop_path=rates[j] if i == last else 0.0,
                    kernel=qkv_kernel,
                    kv_stride=kv_stride,
                    projection=projection,
                    scale=scale,
                    qkv_bias=qkv_bias,
                )
                for j in range(depths[i])
            ]
            size = embedding.size(*size) if pos_embed else size
            stages.append(Stage(embedding, blocks, dim, class_token and i == last, size if pos_embed else None))
            channels, reduction = dim, reduction * patch_strides[i]
            self.feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(self.num_features)
        self.head_drop = nn.Dropout(drop_rate)
        self.apply(_initialise)
        self.head = self._classifier()

    # -- from pictures to numbers --------------------------------------------------------------------------------------

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures ``(B, 3, H, W)`` -> normalised tokens ``(B, P + h w, C)``."""
        for stage in self.stages:
            tokens, size = stage(x)
            x = self._as_map(tokens, size)
        return self.norm(tokens)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Tokens ``(B, P + h w, C)`` -> ``(B, C)`` before the classifier, or ``(B, classes)``."""
        if self.global_pool:
            x = x[:, 0] if self.global_pool == "token" else x[:, self.num_prefix_tokens :].mean(dim=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures ``(B, 3, H, W)`` -> ``(B, classes)``, or features ``(B, C)`` without a classifier."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps ``(B, C_i, h_i, w_i)`` of the stages ``indices`` (all by default), and the final tokens with them.

        Parameters
        ----------
        indices : stages, or how many of the last.
        norm : apply the final norm to the last stage's map; the others have none of their width.
        stop_early : do not run stages after the last one asked for; the final tokens are then that stage's.
        intermediates_only : return the list of maps alone.
        """
        if output_fmt != "NCHW":
            raise UsageError(f"output_fmt={output_fmt!r}: expected 'NCHW'.")
        taken, most = feature_take_indices(len(self.stages), indices)  # type: ignore[arg-type]
        last, maps = len(self.stages) - 1, []
        for i, stage in enumerate(self.stages):
            if stop_early and i > most:
                break
            tokens, size = stage(x)
            x = self._as_map(tokens, size)
            if i in taken:
                maps.append(self._as_map(self.norm(tokens), size) if norm and i == last else x)
        if intermediates_only:
            return maps
        return (tokens if stop_early and most < last else self.norm(tokens)), maps

    @staticmethod
    def _as_map(tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """The map ``(B, C, h, w)`` without the class token."""
        return tokens[:, tokens.shape[1] - size[0] * size[1] :].transpose(1, 2).unflatten(2, size)

    # -- timm's other doors --------------------------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an identity."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier of so many classes, none for 0."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = self._pooling(global_pool)
        self.head = self._classifier().to(self.norm.weight.device, self.norm.weight.dtype)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last one asked for, and the classifier; returns the stages asked for."""
        taken, most = feature_take_indices(len(self.stages), indices)  # type: ignore[arg-type]
        cut = most + 1 < len(self.stages)
        self.stages = self.stages[: most + 1]
        if prune_norm or cut:  # the norm is the last stage's
            self.norm = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.num_classes, self.head = 0, nn.Identity()
        return taken

    def no_weight_decay(self) -> set[str]:
        """Class token and position tables."""
        return {name for name, _ in self.named_parameters() if name.endswith(("cls_token", "pos_embed"))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise decay: a block each; an embedding goes with the first block of its stage."""
        return {
            "stem": r"^stages\.0\.(?:patch_embed|pos_embed)",
            "stages": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.", (0,)),
                (r"^norm", (99999,)),
            ],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep a block's input only and run it again in the backward pass: less memory, the same numbers."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def _pooling(self, asked: str | None) -> str:
        if asked is None:
            return "token" if self.num_prefix_tokens else "avg"
        if asked not in ("token", "avg", "") or (asked == "token" and not self.num_prefix_tokens):
            options = "'token', 'avg'" if self.num_prefix_tokens else "'avg' (there is no class token)"
            raise UsageError(f"global_pool={asked!r}: expected {options} or ''.")
        return asked

    def _classifier(self) -> nn.Module:
        head = nn.Linear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()
        _initialise(head)
        return head


_POSITIONS = (None, "learned")


def _initialise(module: nn.Module) -> None:
    """Linear maps from a normal of deviation 0.02; norms and convolutions stay as torch starts them."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check(embed_dims: Sequence[int], depths: Sequence[int], heads: Sequence[int], *others: Sequence[int]) -> None:
    lengths = [len(given) for given in (embed_dims, depths, heads, *others)]
    if len(set(lengths)) != 1:
        raise UsageError(
            f"embed_dims, depths, heads, patch_kernels, patch_strides, patch_paddings have {lengths} entries; expected "
            "one a stage in each."
        )
    for dim, number in zip(embed_dims, heads):
        if dim % number:
            raise UsageError(f"a stage of width {dim} has {number} heads; expected a number that divides the width.")


def _check_words(**given: tuple[Any, tuple[Any, ...]]) -> None:
    for name, (value, options) in given.items():
        if value not in options:
            raise UsageError(f"{name}={value!r}: expected {' or '.join(repr(option) for option in options)}.")


# ---- names -----------------------------------------------------------------------------------------------------------


def _settings(side: int = 224, **others: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.patch_embed.proj",
        "classifier": "head",
        **others,
    }


default_cfgs = generate_default_cfgs(
    {
        "cvt_13": _settings(),
        "cvt_21": _settings(),
        "cvt_w24": _settings(384, crop_pct=1.0),
        "cvt_mini": _settings(64, crop_pct=1.0),
        "cvt_tiny": _settings(32, crop_pct=1.0),
    }
)


def _build(name: str, pretrained: bool, settings: dict[str, Any], **design: Any) -> CvT:
    return build_model_with_cfg(
        CvT,
        name,
        pretrained,
        pretrained_filter_fn=convert_cvt_weights,
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
        **{**design, **settings},
    )


def cvt_13(pretrained: bool = False, **settings: Any) -> CvT:
    """CvT-13: 20 million parameters, 4.5 billion multiplications at 224 pixels."""
    return _build("cvt_13", pretrained, settings)


def cvt_21(pretrained: bool = False, **settings: Any) -> CvT:
    """CvT-21: 32 million parameters, 7.1 billion multiplications at 224 pixels."""
    return _build("cvt_21", pretrained, settings, depths=(1, 4, 16))


def cvt_w24(pretrained: bool = False, **settings: Any) -> CvT:
    """CvT-W24: 277 million parameters, 193 billion multiplications at 384 pixels."""
    design = {"embed_dims": (192, 768, 1024), "depths": (2, 2, 20), "heads": (3, 12, 16)}
    return _build("cvt_w24", pretrained, settings, **design)


def cvt_mini(pretrained: bool = False, **settings: Any) -> CvT:
    """For pictures of 64 to 96 pixels, ours: maps of 16, 8 and 4 at 64, 1.4 million parameters without a classifier."""
    design = {"embed_dims": (48, 96, 192), "depths": (1, 2, 2), "heads": (1, 2, 4), "pos_embed_size": 64}
    return _build("cvt_mini", pretrained, settings, **design)


def cvt_tiny(pretrained: bool = False, **settings: Any) -> CvT:
    """For pictures of 32 pixels, ours: maps of 16, 8 and 4, half a million parameters without a classifier."""
    design = {
        "embed_dims": (32, 64, 128),
        "depths": (1, 1, 2),
        "heads": (1, 2, 4),
        "patch_kernels": (3, 3, 3),
        "patch_strides": (2, 2, 2),
        "patch_paddings": (1, 1, 1),
        "pos_embed_size": 32,
    }
    return _build("cvt_tiny", pretrained, settings, **design)
