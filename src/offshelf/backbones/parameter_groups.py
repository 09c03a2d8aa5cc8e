"""Parameter groups: what decays, what is the trunk, and how fast each layer of it moves."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(
    module: nn.Module,
    backbone: nn.Module,
    learning_rate: float,
    weight_decay: float,
    *,
    layer_decay: float = 1.0,
    trunk_scale: float = 1.0,
    coarse: bool | None = None,
    exempt: set[str] | None = None,
) -> list[dict[str, Any]]:
    """Groups of all trained parameters of ``module``, which holds ``backbone``.

    One-dimensional parameters (norms, biases, layer scales), what the backbone's ``no_weight_decay()`` names (position
    tables, class tokens) and ``exempt`` do not decay. Layer i of n of the backbone moves at
    ``layer_decay ** (n - i)`` of the head's rate, so that the head and, for ViTs, the final norm move at the full
    rate (Bao et al. 2022, BEiT; timm's grouping).

    Parameters
    ----------
    module : the whole trained module; its parameters outside the backbone move at ``learning_rate``.
    backbone : a submodule of it, a timm network.
    layer_decay : 1 switches it off.
    trunk_scale : factor of the rate of the whole backbone (not of its classifier).
    coarse : group the layers by stage; by default where a network has more than 16 layers, in which a decay a layer
        would freeze the first ones.
    exempt : names in ``module`` that do not decay.

    Returns
    -------
    list of dict
        ``params``, ``lr``, ``weight_decay``, ``trunk`` (bool) and ``layer`` (int, -1 outside the backbone), in the
        order of the network.
    """
    still = set(exempt or ())
    inner = set(backbone.no_weight_decay()) if hasattr(backbone, "no_weight_decay") else set()  # type: ignore[operator]
    layer_of, top = _layers(backbone, coarse) if layer_decay != 1.0 else ({}, 0)
    head = _head_names(backbone)
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    groups: dict[tuple[bool, int, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        own = names.get(id(parameter))
        trunk = own is not None and own not in head
        layer = layer_of.get(own, top) if own is not None and trunk else -1
        decays = parameter.ndim > 1 and name not in still and (own is None or own not in inner)
        key = (trunk, layer, decays)
        if key not in groups:
            scale = trunk_scale * layer_decay ** (top - layer) if trunk and layer_decay != 1.0 else trunk_scale
            groups[key] = {
                "params": [],
                "lr": learning_rate * (scale if trunk else 1.0),
                "weight_decay": weight_decay if decays else 0.0,
                "trunk": trunk,
                "layer": layer,
            }
        groups[key]["params"].append(parameter)
    return list(groups.values())


def _head_names(backbone: nn.Module) -> set[str]:
    """Names of the classifier's parameters, empty without a classifier."""
    classifier = backbone.get_classifier() if hasattr(backbone, "get_classifier") else None  # type: ignore[operator]
    parts = classifier if isinstance(classifier, tuple) else (classifier,)  # DeiT's distilled form has two
    inside = {id(p) for part in parts if isinstance(part, nn.Module) for p in part.parameters()}
    return {name for name, parameter in backbone.named_parameters() if id(parameter) in inside}


def _layers(backbone: nn.Module, coarse: bool | None) -> tuple[dict[str, int], int]:
    """Name -> layer from 0 (embedding or stem), and the number of the head (one more than the last trunk layer)."""
    from timm.models import group_parameters

    network: Any = backbone

    def grouped(by_stage: bool) -> dict[str, int]:
        return group_parameters(network, network.group_matcher(coarse=by_stage), reverse=True)

    layers = grouped(False) if not coarse else grouped(True)
    if coarse is None and max(layers.values()) > 16:
        layers = grouped(True)
    head = _head_names(backbone)
    top = max(layers.values()) if head & set(layers) else max(layers.values()) + 1
    return layers, top
