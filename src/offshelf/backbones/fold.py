"""Folding: a batch normalisation that follows a convolution becomes a part of it, exactly.

In evaluation mode a BatchNorm is ``y = g (x - m) / sqrt(v + e) + b`` per channel; after a convolution ``x = W * i + c``
this is another convolution with ``W' = s W`` and ``c' = s (c - m) + b``, ``s = g / sqrt(v + e)``.

Which pairs there are is not guessed from names or positions. The network runs once on one picture while every operation
is watched: a pair is folded when the convolution's output is read exactly once, by that BatchNorm, and both modules run
exactly once. The folded network is kept only when its output equals the original's.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from offshelf.backbones.readout import read

EXACT = 1e-4
"""Largest difference of the folded network's output, as a share of the largest output, that counts as equal."""

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMALISATIONS = (nn.BatchNorm2d, BatchNormAct2d)


def fold_batch_norms(model: nn.Module, x: torch.Tensor) -> int:
    """Fold, in place, every BatchNorm that can be folded, or none when the result would differ.

    Parameters
    ----------
    model : nn.Module
        A network of the caller's own (a copy), in evaluation mode and single precision.
    x : torch.Tensor
        Pictures (B, 3, H, W) on which the pairs are found and the result is checked.

    Returns
    -------
    int
        How many BatchNorms were folded.
    """
    with torch.inference_mode():
        pairs, before = _find_pairs(model, x)
    if not pairs:
        return 0
    undo = [(convolution, convolution.weight, convolution.bias) for convolution, _ in pairs]
    names = {module: name for name, module in model.named_modules()}
    for convolution, norm in pairs:
        _absorb(convolution, norm)
        _replace(model, names[norm], _remainder(norm))
    with torch.inference_mode():
        after = read(model, x)
    if _differs(before, after):
        for (_, norm), (convolution, weight, bias) in zip(pairs, undo):
            convolution.weight, convolution.bias = weight, bias
            _replace(model, names[norm], norm)
        return 0
    return len(pairs)


def _differs(before: torch.Tensor, after: torch.Tensor) -> bool:
    return not bool((before - after).abs().max() <= EXACT * before.abs().max())


class _Watch(TorchDispatchMode):
    """Count, for every piece of memory, how many operations read it."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: dict[int, int] = {}
        self.kept: list[torch.Tensor] = []  # keeps memory from being used again, so that an address names one tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor):
                self.reads[_memory(value)] = self.reads.get(_memory(value), 0) + 1
        out = func(*args, **(kwargs or {}))
        self.kept.extend(value for value in torch.utils._pytree.tree_leaves(out) if isinstance(value, torch.Tensor))
        return out


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _find_pairs(model: nn.Module, x: torch.Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], torch.Tensor]:
    made: dict[int, nn.Conv2d] = {}
    taken: list[tuple[nn.BatchNorm2d, int]] = []
    runs: dict[nn.Module, int] = {}

    def after_convolution(module: Any, inputs: Any, output: torch.Tensor) -> None:
        runs[module] = runs.get(module, 0) + 1
        made[_memory(output)] = module

    def before_norm(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        runs[module] = runs.get(module, 0) + 1
        taken.append((module, _memory(inputs[0])))

    hooks = []
    for module in model.modules():
        if type(module) in _CONVOLUTIONS:
            hooks.append(module.register_forward_hook(after_convolution))
        elif type(module) in _NORMALISATIONS and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        with _Watch() as watch:
            output = read(model, x)
    finally:
        for hook in hooks:
            hook.remove()
    shared = _used_twice(model)
    pairs = [
        (made[memory], norm)
        for norm, memory in taken
        if memory in made
        and watch.reads[memory] == 1
        and runs[norm] == runs[made[memory]] == 1
        and made[memory].out_channels == norm.num_features
        and made[memory].weight not in shared
    ]
    return pairs, output


def _used_twice(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that belong to more than one module; scaling them in one would not be wrong, but is left alone."""
    owners: dict[nn.Parameter, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(module)
    return {parameter for parameter, modules in owners.items() if len(modules) > 1}


def _absorb(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Computed in double precision: the running variance may span many orders of magnitude."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    scale = torch.rsqrt(variance.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if convolution.bias is not None:
        shift = shift + convolution.bias.double() * scale
    weight = convolution.weight.double() * scale.view(-1, 1, 1, 1)
    kind = convolution.weight.dtype
    convolution.weight = nn.Parameter(weight.detach().to(kind), requires_grad=False)
    convolution.bias = nn.Parameter(shift.detach().to(kind), requires_grad=False)


def _remainder(norm: nn.BatchNorm2d) -> nn.Module:
    """What is left of a BatchNorm once its arithmetic is in the convolution: timm's carries its activation."""
    return norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
