"""How wide the Inception networks are, and how often blocks are repeated (arXiv 1602.07261, figures and table 1)."""

from __future__ import annotations

from dataclasses import dataclass

Kernel = int | tuple[int, int]
Layers = tuple[tuple[int, Kernel], ...]  # one branch: width and kernel (height, width) of its convolutions
Branches = tuple[Layers, ...]


@dataclass(frozen=True)
class Widths:
    """A network's sizes: blocks and reductions by stage, and how often the blocks are repeated.

    blocks : branches of a block of stage A, B and C. pooled : width of a plain block's branch that averages first; 0 in
    a residual one. reductions : branches of the layers between the stages; their last convolution has stride 2.
    """

    blocks: tuple[Branches, Branches, Branches]
    reductions: tuple[Branches, Branches]
    repeats: tuple[int, int, int] = (5, 10, 5)
    scales: tuple[float, float, float] = (0.17, 0.10, 0.20)
    pooled: tuple[int, int, int] = (0, 0, 0)


V1 = Widths(
    blocks=(
        (((32, 1),), ((32, 1), (32, 3)), ((32, 1), (32, 3), (32, 3))),
        (((128, 1),), ((128, 1), (128, (1, 7)), (128, (7, 1)))),
        (((192, 1),), ((192, 1), (192, (1, 3)), (192, (3, 1)))),
    ),
    reductions=(
        (((384, 3),), ((192, 1), (192, 3), (256, 3))),
        (((256, 1), (384, 3)), ((256, 1), (256, 3)), ((256, 1), (256, 3), (256, 3))),
    ),
)  # fmt: skip
V2_PAPER = Widths(
    blocks=(
        (((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3))),
        (((192, 1),), ((128, 1), (160, (1, 7)), (192, (7, 1)))),
        (((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1)))),
    ),
    reductions=(
        (((384, 3),), ((256, 1), (256, 3), (384, 3))),
        (((256, 1), (384, 3)), ((256, 1), (288, 3)), ((256, 1), (288, 3), (320, 3))),
    ),
)  # fmt: skip
SMALL_REDUCTIONS: tuple[Branches, Branches] = (
    (((16, 3),), ((16, 1), (16, 3), (16, 3))),
    (((32, 1), (24, 3)), ((32, 1), (20, 3)), ((32, 1), (32, 3), (20, 3))),
)  # fmt: skip
MINI = Widths(
    blocks=(
        (((16, 1),), ((16, 1), (16, 3)), ((16, 1), (16, 3), (24, 3))),
        (((32, 1),), ((24, 1), (28, (1, 5)), (32, (5, 1)))),
        (((48, 1),), ((48, 1), (56, (1, 3)), (64, (3, 1)))),
    ),
    reductions=SMALL_REDUCTIONS,
    repeats=(4, 6, 2),
    scales=(0.2, 0.2, 0.2),
)  # fmt: skip
MINI_PLAIN = Widths(  # the same stem, reductions and widths between blocks; as many parameters as MINI within 1 %
    blocks=(
        (((16, 1),), ((20, 1), (16, 3)), ((20, 1), (22, 3), (16, 3))),
        (((24, 1),), ((28, 1), (32, (1, 5)), (48, (5, 1)))),
        (((48, 1),), ((64, 1), (64, (1, 3)), (72, (3, 1)))),
    ),
    reductions=SMALL_REDUCTIONS,
    repeats=(4, 6, 2),
    pooled=(16, 24, 40),
)  # fmt: skip
VERSIONS = {"v1": V1, "v2-paper": V2_PAPER, "mini": MINI, "mini-plain": MINI_PLAIN}
