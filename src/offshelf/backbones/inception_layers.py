"""The layers of Inception networks: convolutions side by side, concatenated or added (arXiv 1602.07261, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct
from torch import nn

from offshelf.backbones.inception_widths import Branches, Kernel, Layers


def conv(in_channels: int, width: int, kernel: Kernel = 1, stride: int = 1, valid: bool = False) -> ConvNormAct:
    """A convolution without bias, batch normalisation and ReLU; padded to keep the size unless ``valid``."""
    height, across = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    padding = 0 if valid else (height // 2, across // 2)
    return ConvNormAct(
        in_channels,
        width,
        kernel_size=(height, across),  # type: ignore[arg-type]
        stride=stride,
        padding=padding,
        norm_kwargs={"eps": 1e-3},
        act_kwargs={"inplace": True},
    )


def branch(in_channels: int, layers: Layers, stride: int = 1, valid: bool = False) -> nn.Sequential:
    """Convolutions one after the other; ``stride`` and ``valid`` are those of the last."""
    widths = [in_channels, *[width for width, _ in layers]]
    last = len(layers) - 1
    return nn.Sequential(
        *[
            conv(widths[i], width, kernel, stride if i == last else 1, valid and i == last)
            for i, (width, kernel) in enumerate(layers)
        ]
    )


class Parallel(nn.Module):
    """Branches side by side: ``(B, C, H, W)`` -> their maps, concatenated."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps of all branches."""
        return torch.cat([one(x) for one in self.branches], dim=1)


class ResidualBlock(nn.Module):
    """``y = max(0, x + s U(branches(x)))`` (section 3.2): U is a 1 x 1 convolution with bias, alone.

    Parameters
    ----------
    channels : width of x and y.
    branches : widths and kernels of the convolutions side by side.
    scale : s, a buffer: it is saved and loaded with the weights.
    """

    def __init__(self, channels: int, branches: Branches, scale: float = 1.0) -> None:
        super().__init__()
        self.branches = Parallel(*[branch(channels, layers) for layers in branches])
        self.project = nn.Conv2d(sum(layers[-1][0] for layers in branches), channels, kernel_size=1)
        self.act = nn.ReLU()
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.tensor(float(scale)))

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum before its ReLU, affine in s."""
        return x + self.scale * self.project(self.branches(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` -> the same shape."""
        return self.act(self.sum(x))


def plain_block(channels: int, branches: Branches, pooled: int) -> Parallel:
    """A block of Inception-v4: branches concatenated, the last one an average (padding not counted) and a 1 x 1."""
    average = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return Parallel(*[branch(channels, layers) for layers in branches], nn.Sequential(average, conv(channels, pooled)))


def reduction(channels: int, branches: Branches, valid: bool) -> tuple[Parallel, int]:
    """Branches with stride 2 beside a maximum, and how wide the whole is (section 3.1, table 1)."""
    pool = nn.MaxPool2d(3, stride=2, padding=0 if valid else 1)
    made = [branch(channels, layers, stride=2, valid=valid) for layers in branches]
    return Parallel(*made, pool), channels + sum(layers[-1][0] for layers in branches)


def stem_of(kind: str, in_chans: int, widths: Sequence[int]) -> tuple[nn.Sequential, list[tuple[int, int, int]]]:
    """The stem, and its taps ``(place, width, stride)``; its last layer is the first stage's input."""
    if kind == "cifar":
        a, b = widths
        return nn.Sequential(conv(in_chans, a, 3), conv(a, b, 3, stride=2)), [(0, a, 1)]
    a, b, c, d, e = widths
    first = [conv(in_chans, a, 3, 2, valid=True), conv(a, a, 3, valid=True), conv(a, b, 3)]
    if kind == "v1":  # 299 -> 149 -> 147 -> 147 -> 73 -> 73 -> 71 -> 35
        rest = [nn.MaxPool2d(3, stride=2), conv(b, c), conv(c, d, 3, valid=True), conv(d, e, 3, 2, valid=True)]
        return nn.Sequential(*first, *rest), [(2, b, 2), (5, d, 4)]
    deep = branch(b + d, ((b, 1), (b, (1, 7)), (b, (7, 1)), (d, 3)), valid=True)
    rest = [  # 147 -> 73 -> 71 -> 35
        Parallel(nn.MaxPool2d(3, stride=2), conv(b, d, 3, 2, valid=True)),
        Parallel(branch(b + d, ((b, 1), (d, 3)), valid=True), deep),
        Parallel(conv(2 * d, 2 * d, 3, 2, valid=True), nn.MaxPool2d(3, stride=2)),
    ]
    return nn.Sequential(*first, *rest), [(2, b, 2), (4, 2 * d, 4)]


class AuxiliaryHead(nn.Module):
    """A second classifier on the 17 x 17 map, for training: average 5 x 5 with stride 3, 1 x 1 to 128, 5 x 5 to 768.

    At another size of picture the pooled map is brought to 5 x 5 by adaptive averaging.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.squeeze, self.whole = conv(channels, 128), conv(128, 768, 5, valid=True)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)``, H and W at least 5 -> logits ``(B, K)``."""
        x = F.adaptive_avg_pool2d(F.avg_pool2d(x, 5, stride=3), 5)
        return self.fc(self.whole(self.squeeze(x)).flatten(1))
