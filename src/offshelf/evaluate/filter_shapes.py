"""Sizes, shapes and numbers of filters at matched cost: what a network costs, what it sees, and widths that equal both.

Two networks are compared at equal parameters or equal multiply-adds; what cannot be matched within the tolerance is
refused, never compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from offshelf.backbones.kernel_shapes import MaskedConv2d
from offshelf.backbones.plain_cnn import PlainCNN
from offshelf.engine.undisturbed import undisturbed
from offshelf.errors import UsageError

Matched = Literal["parameters", "multiply-adds"]
TOLERANCE = 0.02
WIDEST, ROUNDS = 64.0, 8  # largest factor of the widths, and how many are tried


class Cost(NamedTuple):
    """What a network costs: trained numbers (holes of masked kernels not counted), and multiply-adds of a picture."""

    parameters: int
    multiply_adds: int

    def of(self, what: Matched) -> int:
        """The one that is matched."""
        return self.parameters if what == "parameters" else self.multiply_adds


def cost_of(model: nn.Module, side: int) -> Cost:
    """Parameters, and multiply-adds of convolutions and linear layers on one picture of ``side`` pixels."""
    adds = 0

    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal adds
        if isinstance(module, nn.Conv2d):
            adds += _taps(module) * output[0, 0].numel()
        elif isinstance(module, nn.Linear):
            adds += module.weight.numel()

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    try:
        with undisturbed(model):
            model(torch.zeros(2, 3, side, side, device=next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    holes = sum(m.weight.numel() - _taps(m) for m in model.modules() if isinstance(m, nn.Conv2d))
    return Cost(sum(parameter.numel() for parameter in model.parameters()) - holes, adds)


def _taps(conv: nn.Conv2d) -> int:
    if isinstance(conv, MaskedConv2d):
        return conv.taps * int(conv.weight.shape[0] * conv.weight.shape[1])
    return conv.weight.numel()


def receptive_field(layers: Sequence[tuple[int, int, int]]) -> int:
    """Side in pixels that one output sees, from (kernel, stride, dilation) of each layer in order.

    ``r_l = r_(l-1) + (k_l - 1) d_l`` times the strides of all layers before.
    """
    field, jump = 1, 1
    for kernel, stride, dilation in layers:
        field += (kernel - 1) * dilation * jump
        jump *= stride
    return field


def field_of(model: nn.Module) -> int:
    """`receptive_field` of a network whose layers stand in a row, such as `PlainCNN`; the larger side of kernels."""
    layers = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            reach = [(side - 1) * step for side, step in zip(module.kernel_size, module.dilation)]
            layers.append((max(reach) + 1, int(module.stride[0]), 1))
        elif isinstance(module, nn.MaxPool2d):
            layers.append((int(module.kernel_size), int(module.stride), 1))  # type: ignore[arg-type]
    return receptive_field(_joined(layers, model))


def _joined(layers: list[tuple[int, int, int]], model: nn.Module) -> list[tuple[int, int, int]]:
    """1 x k and k x 1 in a row reach along one axis each, so the second of such a pair adds nothing."""
    kernels = [m.kernel_size for m in model.modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d))]
    upright = [isinstance(one, tuple) and one[0] > 1 and one[1] == 1 for one in kernels]
    return [(1, stride, 1) if tall else (k, stride, d) for (k, stride, d), tall in zip(layers, upright)]


def matched(
    settings: dict[str, Any],
    target: Cost,
    side: int,
    *,
    what: Matched = "parameters",
    tolerance: float = TOLERANCE,
    keep_filters: bool = False,
) -> tuple[dict[str, Any], Cost]:
    """Settings of a `PlainCNN` whose widths are scaled so that it costs what another one does.

    Parameters
    ----------
    settings
        Of the network; ``filters`` and ``widths`` are scaled together, with ``keep_filters`` the widths alone.
    target
        What it shall cost.

    Raises
    ------
    UsageError
        When no width comes within the tolerance.
    """
    plan: dict[str, Any] = {"filters": 48, "widths": (64, 96, 128)} | settings
    wanted = target.of(what)

    def at(factor: float, more: int = 0) -> tuple[float, dict[str, Any], Cost]:
        widths = [max(1, round(factor * width)) for width in plan["widths"]]
        widths[-1] = max(1, widths[-1] + more)
        filters = plan["filters"] if keep_filters else max(1, round(factor * plan["filters"]))
        chosen = plan | {"filters": filters, "widths": widths}
        with torch.device("meta"):  # shapes alone
            cost = cost_of(PlainCNN(**chosen), side)
        return cost.of(what) / wanted, chosen, cost

    factor, found = 1.0, [at(1.0)]
    for _ in range(ROUNDS):  # a cost grows at most with the square of the widths, so this comes near from either side
        factor = min(WIDEST, max(1 / WIDEST, factor * found[-1][0] ** -0.5))
        found.append(at(factor))
        if abs(found[-1][0] - 1) < tolerance / 4:
            break
    slope = at(factor, 1)[0] - found[-1][0]
    if slope > 0:  # what rounding has left is made up by the last width
        found.append(at(factor, round((1 - found[-1][0]) / slope)))
    _, chosen, cost = min(found, key=lambda one: abs(one[0] - 1))
    check_matched(str(settings), cost, target, what, tolerance)
    return chosen, cost


def check_matched(name: str, cost: Cost, target: Cost, what: Matched, tolerance: float = TOLERANCE) -> None:
    """Refuse to compare what costs differently (UsageError)."""
    apart = cost.of(what) / target.of(what) - 1
    if abs(apart) > tolerance + 1e-9:
        raise UsageError(
            f"{name}: {cost.of(what):,} {what} are {100 * apart:+.1f} % of {target.of(what):,}; expected at most "
            f"{100 * tolerance:g} % apart, or the comparison is not fair. Leave it out, match the other cost "
            "(--match), or raise --tolerance and say so."
        )
