"""The same network as on its first day: what it has learnt is seen against weights that have learnt nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from offshelf.backbones.architectures import register_architectures
from offshelf.backbones.card import card_of
from offshelf.errors import BackboneError


def fresh_copy(model: nn.Module, seed: int) -> nn.Module:
    """A network of the same design and settings with weights drawn anew by its own initialisation.

    Parameters
    ----------
    model : nn.Module
        A network of `load_backbone`; it is not touched.
    seed : int
        The weights hang on it; no other generator is disturbed.

    Raises
    ------
    BackboneError
        When timm does not build the same tensors from what it remembers of the network.
    """
    import timm

    register_architectures()
    name = card_of(model).architecture
    network: Any = model
    remembered = dict(getattr(network, "_model_args", {}))
    settings = {
        key: value for key, value in remembered.items() if key not in ("pretrained", "num_classes", "cache_dir")
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            again = timm.create_model(name, pretrained=False, num_classes=network.num_classes, **settings)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise BackboneError(f"{name}: timm does not build this network from {settings} ({error})") from error
    expected = {key: value.shape for key, value in model.state_dict().items()}
    if {key: value.shape for key, value in again.state_dict().items()} != expected:
        raise BackboneError(
            f"{name}: built from {settings or 'its name'} it has other tensors than these weights, so there is no "
            "fresh copy to hold it against"
        )
    return again.eval().requires_grad_(False)
