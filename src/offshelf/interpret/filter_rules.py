"""Random rules that start a convolution: textbook initialisations, and three controls that should fail.

``fan_in`` is I x kh x kw, where I counts the channels that one filter sees (channels / groups), ``fan_out`` is
O x kh x kw. Drawn by ``torch.nn.init`` where it has the rule.

Sources: LeCun et al. (1998); Glorot and Bengio (2010); He et al. (2015); Saxe et al. (2014) for orthogonal; Xiao et al.
(2018) for delta-orthogonal; Mishkin and Matas (2016) for LSUV, whose scaling by data is in `filter_design`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from offshelf.engine.undisturbed import same_random_states

RELU_GAIN = math.sqrt(2)
GAUSSIAN_STD = 0.01  # of the early practice that the survey names
LECUN_REACH = 2.4
CONSTANT = 0.1


def random_filters(rule: str, shape: tuple[int, int, int, int], groups: int = 1, seed: int = 0) -> torch.Tensor:
    """Weights ``(O, I / groups, kh, kw)`` by a rule of `RANDOM_RULES`; the global random state is left as it was."""
    with same_random_states():
        torch.manual_seed(seed)
        weight = torch.empty(shape)
        RANDOM_RULES[rule](weight, groups)
    return weight


def _gaussian(weight: torch.Tensor, groups: int) -> None:
    nn.init.normal_(weight, std=GAUSSIAN_STD)


def _lecun_uniform(weight: torch.Tensor, groups: int) -> None:
    reach = LECUN_REACH / weight[0].numel()
    nn.init.uniform_(weight, -reach, reach)


def _xavier(weight: torch.Tensor, groups: int) -> None:
    nn.init.xavier_normal_(weight)


def _he(weight: torch.Tensor, groups: int) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def _orthogonal(weight: torch.Tensor, groups: int) -> None:
    """Rows or columns of each group's (O, fan_in) matrix are orthonormal, times sqrt(2)."""
    for part in weight.chunk(groups):
        nn.init.orthogonal_(part, gain=RELU_GAIN)


def _delta_orthogonal(weight: torch.Tensor, groups: int) -> None:
    """The centre tap is orthogonal, all others are 0."""
    nn.init.zeros_(weight)
    row, column = (int(side - 1) // 2 for side in weight.shape[2:])
    for part in weight.chunk(groups):
        centre = torch.empty(part.shape[:2])
        nn.init.orthogonal_(centre, gain=RELU_GAIN)
        part[:, :, row, column] = centre


def _zero(weight: torch.Tensor, groups: int) -> None:
    nn.init.zeros_(weight)


def _constant(weight: torch.Tensor, groups: int) -> None:
    nn.init.constant_(weight, CONSTANT)


def _dirac(weight: torch.Tensor, groups: int) -> None:
    nn.init.dirac_(weight, groups)


RANDOM_RULES: dict[str, Callable[[torch.Tensor, int], None]] = {
    "gaussian": _gaussian,
    "lecun-uniform": _lecun_uniform,
    "xavier": _xavier,
    "he": _he,
    "orthogonal": _orthogonal,
    "delta-orthogonal": _delta_orthogonal,
    "lsuv": _orthogonal,
    "zero": _zero,
    "constant": _constant,
    "dirac": _dirac,
}
