"""Selfie: a convolutional network learns to put hidden patches of a picture back where they came from.

Trinh, Luong, Le: Selfie: Self-supervised Pretraining for Image Embedding, 2019, arXiv 1906.02940. The claim: the first
three groups of blocks of a residual network, pre-trained so, give a higher accuracy and a smaller spread over runs when
the whole network is then fine-tuned on few labels.

A picture is cut into n square patches, and m of them are hidden, drawn anew for every picture. The patch network, which
is all of the backbone but its last stage, reads each patch by itself and is averaged to h_j. Attention pooling turns
the others into one vector u. For hidden position i the query is v_i = u + pos(i), the score of hidden patch j is
v_i . h_j without temperature, and the loss is the cross-entropy of choosing patch i among the m hidden ones.

Departures and readings: patches that are seen get their position before the attention pooling too (without it u could
not know where the context came from; ``context_positions=False`` leaves it out); a patch is no smaller than the patch
network's stride; widths of the attention pooling keep the paper's ratios to the backbone's; the last gain of the
attention pooling starts at 0.1 and learnt vectors with a deviation of 0.2, since scores without temperature otherwise
start so far apart that the features shrink first; pictures are cropped and mirrored; the recipe's length is that of a
small machine.

Since the query is a sum, the score is u . h_j + pos(i) . h_j: the context can prefer a patch, but cannot say at which
of the hidden positions it belongs. That is the paper's model, and is left so.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from offshelf.engine.precision import full_precision
from offshelf.engine.recipe import Recipe
from offshelf.errors import BackboneError, UsageError
from offshelf.pretrain.objective import Batch, Objective
from offshelf.pretrain.patches import CellViews

FAMILIES = {
    "ResNet": "resnet",
    "ResNetV2": "resnetv2",
    "SENet": "senet",
    "RegNet": "regnet",
    "ConvNeXt": "convnext",
    "MetaNeXt": "inception_next",
    "EfficientNet": "efficientnet",
    "MobileNetV3": "mobilenetv3",  # and MobileNetV4
    "GhostNet": "ghostnet",
    "RexNet": "rexnet",
    "DenseNet": "densenet",
    "DPN": "dpn",
    "CspNet": "cspnet",
    "VGG": "vgg",
    "DLA": "dla",
    "VovNet": "vovnet",
    "ByobNet": "byobnet",
    "NormFreeNet": "nfnet",
    "HighPerfGpuNet": "hgnet",
    "RepVit": "repvit",
    "StarNet": "starnet",
    "MambaOut": "mambaout",
}
"""Class of the network -> timm's file: chains of convolutional stages that also run on a single patch."""

_EXPECTED = (
    "expected a convolutional network of timm of the families ResNet (also SE, ECA, SK, Res2Net, ResNeSt), ResNetV2, "
    "RegNet, ConvNeXt, InceptionNeXt, EfficientNet, MobileNetV3 or V4, GhostNet, ReXNet, DenseNet, DPN, CSPNet, VGG, "
    "DLA, VoVNet, NFNet, HGNet, RepViT, StarNet, MambaOut, or a plain network of byobnet. Vision transformers can be "
    "pre-trained with mae-thorax, sit"
)
FIRST_GAIN, FIRST_DEVIATION = 0.1, 0.2
PATCHES = (32, 16, 8)  # from which a side is taken when none is asked for
RIGHT, WRONG = (0.1, 0.8, 0.1), (0.9, 0.1, 0.1)  # frames in the report's pictures


# ---- arithmetic ----------------------------------------------------------------------------------------------------


def default_patch(image_size: int) -> int:
    """The largest of 32, 16 and 8 that divides the picture into 4 x 4 patches or more; 8 at 32 px, 32 at 224 px."""
    fits = [side for side in PATCHES if image_size >= 4 * side]
    return ([side for side in fits if image_size % side == 0] or fits or [PATCHES[-1]])[0]


def hidden_count(patches: int, hidden_ratio: float) -> int:
    """Hidden patches of ``patches``, half to even: 16 at 0.25 -> 4, 49 at 0.25 -> 12."""
    return round(patches * hidden_ratio)


def split(noise: torch.Tensor, hidden: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch numbers that are seen (B, n - m) and hidden (B, m): the m smallest of ``noise`` (B, n) are hidden."""
    order = noise.argsort(dim=1, stable=True)
    return order[:, hidden:], order[:, :hidden]


def cut_patches(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """(B, C, H, W) -> (B, n, C, side, side), patches row by row."""
    b, c, h, w = pictures.shape
    x = pictures.reshape(b, c, h // side, side, w // side, side)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c, side, side)


def join_patches(patches: torch.Tensor, grid: int) -> torch.Tensor:
    """The inverse of `cut_patches` for square pictures."""
    b, _, c, side, _ = patches.shape
    x = patches.reshape(b, grid, grid, c, side, side)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, c, grid * side, grid * side)


def taken(rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Rows ``numbers`` (B, k) of each picture's ``rows`` (B, n, ...): (B, k, ...)."""
    return rows[torch.arange(len(rows), device=rows.device)[:, None], numbers]


def match(queries: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Dot products ``(B, m, m)`` in fp32: row i is hidden position i, column j the patch of hidden position j."""
    with full_precision(queries):
        return queries.float() @ candidates.float().transpose(1, 2)


def selection_loss(scores: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of choosing patch i at position i (section 2.1); ln m where all scores are equal.

    Parameters
    ----------
    scores : (B, m, m)
    """
    with full_precision(scores):
        return F.cross_entropy(scores.float().flatten(0, 1), _places(scores).flatten())


def _places(scores: torch.Tensor) -> torch.Tensor:
    """The right answers (B, m)."""
    return torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1)


# ---- modules -------------------------------------------------------------------------------------------------------


class Positions(nn.Module):
    """A learnt vector for every patch of a grid: its own, or the sum of one for its row and one for its column."""

    def __init__(self, grid: int, width: int, factorised: bool) -> None:
        super().__init__()
        self.grid, self.factorised = grid, factorised
        rows = 2 * grid if factorised else grid * grid
        self.vectors = nn.Parameter(FIRST_DEVIATION * torch.randn(rows, width))

    def forward(self) -> torch.Tensor:
        """(n, width), patches row by row."""
        if not self.factorised:
            return self.vectors
        down, right = self.vectors.split(self.grid)
        return (down[:, None] + right[None]).flatten(0, 1)


class AttentionPooling(nn.Module):
    """Transformer layers over a learnt vector and features of patches; what comes out for that vector is kept."""

    def __init__(self, width: int, depth: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.summary = nn.Parameter(FIRST_DEVIATION * torch.randn(1, 1, width))
        # not nn.TransformerEncoder: its layers are copies of one, with the same first weights
        layers = [
            nn.TransformerEncoderLayer(width, heads, hidden, dropout, activation="gelu", batch_first=True)
            for _ in range(depth)
        ]
        nn.init.constant_(layers[-1].norm2.weight, FIRST_GAIN)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, k, width), in any order -> (B, width)."""
        return self.layers(torch.cat([self.summary.expand(len(x), -1, -1), x], dim=1))[:, 0]


# ---- the objective ---------------------------------------------------------------------------------------------------


class Selfie(Objective):
    """Choosing hidden patches by the rest of the picture (Trinh et al. 2019, section 2).

    All of the backbone but its last stage is trained; the last stage stays as it was. Parts of width C, the channels of
    the last stage but one, are left behind.

    Parameters
    ----------
    backbone : nn.Module
        A convolutional network of timm of `FAMILIES`.
    image_size : int
        A multiple of the patch.
    patch_size : int, optional
        Side of a patch in pixels, at least the stride of the patch network; by default `default_patch`.
    hidden_ratio : float
        Share of hidden patches; at least two are hidden, since one alone would have nothing to be confused with.
    context_positions : bool
        Add the position to the features of seen patches too.
    factorised_positions : bool, optional
        One vector for a row and one for a column instead of one for each patch; by default on grids above 4 x 4.
    depth : int
        Layers of the attention pooling.
    num_heads : int, optional
        Heads of its attention; by default as many of width 32 or more as divide C: 32 for 1,024 channels.
    mlp_ratio : float
        Width of its feed-forward layers over C: 640 for 1,024 channels.
    dropout : float
        In the attention pooling.
    crop_scale : (float, float)
        Bounds of the share of the area that a crop keeps.
    flip : bool
        Mirror half of the pictures; switch off where left and right have a meaning.

    Raises
    ------
    BackboneError
        For a network of another family, or one that cannot be run on a patch.
    UsageError
        For an image size that the patch does not divide, and for settings out of their range.
    """

    recipe: ClassVar[Recipe] = Recipe(
        optimiser="sgd", learning_rate=0.1, weight_decay=1e-4, betas=(0.9, 0.999), epochs=20, warmup=0.05
    )

    def __init__(
        self,
        backbone: nn.Module,
        image_size: int,
        *,
        patch_size: int | None = None,
        hidden_ratio: float = 0.25,
        context_positions: bool = True,
        factorised_positions: bool | None = None,
        depth: int = 3,
        num_heads: int | None = None,
        mlp_ratio: float = 0.625,
        dropout: float = 0.1,
        crop_scale: tuple[float, float] = (0.67, 1.0),
        flip: bool = True,
    ) -> None:
        super().__init__(backbone, image_size)
        self.patch = default_patch(image_size) if patch_size is None else patch_size
        stride = _stride(backbone)
        _check_sizes(image_size, self.patch, stride)
        self.grid = image_size // self.patch
        self.hidden = hidden_count(self.grid**2, hidden_ratio)
        if not 2 <= self.hidden < self.grid**2:
            raise UsageError(
                f"hidden_ratio={hidden_ratio}: of {self.grid**2} patches {self.hidden} would be hidden; expected 2 or "
                f"more, and one that is seen: {2 / self.grid**2:.3f} to {1 - 1 / self.grid**2:.3f}"
            )
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise UsageError(f"crop_scale={crop_scale}: expected two shares with 0 < smallest <= largest <= 1")
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout={dropout}: expected 0 or more, and less than 1, such as 0.1")
        self.crop_scale, self.flip, self.context_positions = crop_scale, flip, context_positions
        width = _width(backbone, self.patch)
        heads = num_heads or _heads(width)
        if depth < 1 or heads < 1 or width % heads or round(mlp_ratio * width) < 1:
            raise UsageError(
                f"depth={depth}, num_heads={heads}, mlp_ratio={mlp_ratio}: expected one layer or more, heads that "
                f"divide the {width} channels of the patch network (such as {_heads(width)}), and a positive ratio"
            )
        by_axes = self.grid > 4 if factorised_positions is None else factorised_positions
        self.positions = Positions(self.grid, width, by_axes)
        self.pooling = AttentionPooling(width, depth, heads, round(mlp_ratio * width), dropout)

    def views(self) -> CellViews:
        """Crop, mirror, and the numbers that decide which patches are hidden."""
        return CellViews(self.image_size, self.grid**2, self.mean, self.std, self.crop_scale, self.flip)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """``pictures`` (B, 3, S, S) and ``noise`` (B, n) -> the loss, ``accuracy`` and ``score_spread``.

        ``accuracy`` is the share of hidden positions whose patch was chosen, 1 / m by chance. ``score_spread`` is the
        standard deviation of the m scores of a position; there is no temperature to hold it.
        """
        scores = self.scores(batch["pictures"], *split(batch["noise"], self.hidden))
        still = scores.detach()
        return {
            "loss": selection_loss(scores),
            "accuracy": (still.argmax(-1) == _places(still)).float().mean(),
            "score_spread": still.std(-1).mean(),
        }

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features of every patch, read by itself: (B, 3, S, S) -> (B, n, C), patches row by row."""
        patches = cut_patches(pictures, self.patch)
        features = _partial(self.backbone, patches.flatten(0, 1)).mean((2, 3))
        return features.view(*patches.shape[:2], -1)

    def summarise(self, features: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """u: one vector (B, C) of the patches ``seen`` (B, k) among ``features`` (B, n, C)."""
        x = taken(features, seen)
        return self.pooling(x + self.positions()[seen] if self.context_positions else x)

    def scores(self, pictures: torch.Tensor, seen: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """How well each hidden patch fits each hidden position: (B, m, m), see `match`."""
        features = self.encode(pictures)
        queries = self.summarise(features, seen)[:, None] + self.positions()[hidden]
        return match(queries, taken(features, hidden))

    def no_weight_decay(self) -> set[str]:
        """Positions and the learnt vector of the attention pooling."""
        return {"positions.vectors", "pooling.summary"}

    def illustrate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The picture, what is seen of it, and the patch chosen for each hidden position, framed green if right."""
        pictures = self.pictures(batch["pictures"])
        seen, hidden = split(batch["noise"], self.hidden)
        scores = self.scores(batch["pictures"], seen, hidden)
        choice = scores.argmax(-1)
        patches = cut_patches(pictures, self.patch)
        rows = torch.arange(len(patches), device=patches.device)[:, None]
        blank, filled = patches.clone(), patches.clone()
        blank[rows, hidden] = 0.0
        chosen = taken(patches, hidden.gather(1, choice))
        filled[rows, hidden] = _framed(chosen, choice == _places(scores))
        return {
            "picture": pictures,
            "seen": join_patches(blank, self.grid),
            "chosen": join_patches(filled, self.grid),
        }


def _framed(patches: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``patches`` (B, m, 3, p, p) within a thin frame, of one colour where ``right`` (B, m), of another elsewhere."""
    thickness = max(1, patches.shape[-1] // 16)
    colours = torch.where(right[..., None], patches.new_tensor(RIGHT), patches.new_tensor(WRONG))
    framed = colours[..., None, None].expand_as(patches).clone()
    inner = slice(thickness, -thickness)
    framed[..., inner, inner] = patches[..., inner, inner]
    return framed


def _partial(backbone: Any, x: torch.Tensor) -> torch.Tensor:
    """The last map but one, (B, C, h, w); the last stage is not computed."""
    (found,) = backbone.forward_intermediates(
        x, indices=[-2], stop_early=True, intermediates_only=True, output_fmt="NCHW"
    )
    return found


def _stride(backbone: Any) -> int:
    """The stride of the patch network of a fitting backbone."""
    name = type(backbone).__name__
    if name not in FAMILIES or type(backbone).__module__ != f"timm.models.{FAMILIES[name]}":
        raise BackboneError(f"{name}: it is no network whose first stages can read single patches; {_EXPECTED}")
    info = backbone.feature_info
    return int((info if isinstance(info, list) else info.info)[-2]["reduction"])


def _check_sizes(image_size: int, patch: int, stride: int) -> None:
    if patch < stride:
        least = -(-stride // 8) * 8
        raise UsageError(
            f"patch_size={patch}: the patch network has a stride of {stride} pixels and would see single positions "
            f"only; expected {stride} or more. Give pictures of {4 * least} pixels (patches of {least}), "
            f"patch_size={least}, or a network of smaller stride"
        )
    if image_size % patch or image_size < 2 * patch:
        below = image_size // patch * patch
        near = f"{2 * patch} works" if below < 2 * patch else f"{below} and {below + patch} work"
        raise UsageError(
            f"image_size={image_size}: expected a multiple of the patch of {patch} pixels, and at least 2 x 2 patches; "
            f"{near}, or set patch_size"
        )


def _width(backbone: Any, patch: int) -> int:
    """Channels of the patch network, found by one pass over an empty patch; moments and modes are left alone."""
    was = {module: module.training for module in backbone.modules()}
    try:
        with torch.no_grad():
            width = _partial(backbone.eval(), next(backbone.parameters()).new_zeros(1, 3, patch, patch)).shape[1]
    except (RuntimeError, AssertionError) as error:
        raise BackboneError(
            f"{type(backbone).__name__}: it cannot be run on a patch of {patch} pixels "
            f"({error or type(error).__name__}); give larger patches, or another network: {_EXPECTED}"
        ) from error
    finally:
        for module, training in was.items():
            module.training = training
    return width


def _heads(width: int) -> int:
    """As many heads of 32 channels or more as divide ``width``: 32 for 1,024, 6 for 192, 1 below 64."""
    return max(heads for heads in range(1, max(1, width // 32) + 1) if width % heads == 0)
