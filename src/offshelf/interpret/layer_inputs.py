"""What the convolutions of a network are called, in which order they are used, and what each gets to see."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from offshelf.data.augment import normalised
from offshelf.engine.undisturbed import same_buffers, undisturbed
from offshelf.errors import UsageError, near

CALIBRATION, HELD = 256, 40_000_000  # pictures passed at once; numbers of activations kept in memory


def convolutions(model: nn.Module, layers: Sequence[str] | str | None = None) -> list[str]:
    """Names of the convolutions that ``layers`` names or matches; of the first one by default.

    Raises
    ------
    UsageError
        For a network that has none, or a name that leads to none.
    """
    known = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if not known:
        raise UsageError(f"{type(model).__name__} has no convolutions, so there are no filters to design.")
    if layers is None:
        config = getattr(model, "pretrained_cfg", None) or {}
        first = config.get("first_conv")
        return [str(first) if first in known else known[0]]
    found: list[str] = []
    for pattern in [layers] if isinstance(layers, str) else layers:
        matching = [name for name in known if name == pattern or fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            shown = ", ".join(known[:6]) + (", ..." if len(known) > 6 else "")
            raise UsageError(
                f"layer {pattern!r}: no convolution of this name{near(pattern, known) or '.'} There are {shown}."
            )
        found += [name for name in matching if name not in found]
    if not found:
        raise UsageError("layers: none were named. Leave it out for the first convolution.")
    return found


def as_seen(model: nn.Module, pictures: Any, seed: int) -> torch.Tensor:
    """Pictures as the network takes them, in a drawn order, since folders come class by class."""
    table = torch.as_tensor(pictures)
    if table.ndim != 4 or not len(table):
        raise UsageError(f"pictures of shape {tuple(table.shape)}: expected (n, channels, height, width), n > 0.")
    order = torch.from_numpy(np.random.default_rng([seed, 25]).permutation(len(table)))
    if table.dtype != torch.uint8:
        return table[order].float()
    most = max(1, HELD // max(1, table[0].numel()))
    mean, std = normalisation(model)
    return normalised(table[order[:most]].float() / 255, mean, std)


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel that the network's pictures are normalised by."""
    card = getattr(model, "card", None)
    if card is not None:
        return tuple(card.mean), tuple(card.std)
    config = getattr(model, "pretrained_cfg", None) or {}
    return tuple(config.get("mean", (0.5,) * 3)), tuple(config.get("std", (0.5,) * 3))


def picture_contrast(model: nn.Module, pictures: Any) -> float | None:
    """10 / 255^2 of pictures in [0, 1], as these are normalised."""
    if torch.as_tensor(pictures).dtype != torch.uint8:
        return None
    return 10 / 255**2 / float(np.mean(np.square(normalisation(model)[1])))


class _Seen(Exception):  # noqa: N818 (it ends a forward pass where enough is known)
    pass


def inputs_of(model: nn.Module, conv: nn.Conv2d, table: torch.Tensor) -> torch.Tensor:
    """What ``conv`` gets to see of the pictures ``(N, C, H, W)``, as many as memory allows."""
    kept: list[torch.Tensor] = []

    def catch(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        kept.append(inputs[0].detach().float().cpu())
        raise _Seen

    device, held = conv.weight.device, 0
    handle = conv.register_forward_pre_hook(catch)
    try:
        with looked_at(model):
            for part in table.split(CALIBRATION):
                before = len(kept)
                with suppress(_Seen):
                    model(part.to(device))
                if len(kept) == before:
                    raise UsageError("a layer named is not used when the network sees a picture; expected one that is.")
                held += kept[-1].numel()
                if held >= HELD:
                    break
    finally:
        handle.remove()
    return torch.cat(kept)


def in_forward_order(model: nn.Module, names: list[str], table: torch.Tensor | None) -> list[str]:
    """The layers as a picture passes them; each once, at its first use."""
    order: list[str] = []

    def hook(name: str) -> Any:
        return lambda module, inputs: order.append(name) if name not in order else None

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        with looked_at(model):
            model(_probe(model) if table is None else table[:2].to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return order + [name for name in names if name not in order]


def _probe(model: nn.Module) -> torch.Tensor:
    config = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size", (3, 64, 64))
    return torch.zeros(2, *size, device=next(model.parameters()).device)


@contextmanager
def looked_at(model: nn.Module) -> Iterator[None]:
    """The network as its training will find it: batch norms that have seen nothing yet use the batch's statistics.

    Modes, buffers and random states are put back.
    """
    with undisturbed(model), same_buffers(model):
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.num_batches_tracked == 0:
                module.train()
        yield
