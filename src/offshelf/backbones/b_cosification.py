"""B-cosification: a trained network becomes one whose every answer is one linear map of its input, to be looked at.

Arya, Rao, Boehle and Schiele: B-cosification: Transforming Deep Neural Networks to be Inherently Interpretable,
NeurIPS 2024, arXiv 2411.00715. The claim: a network that was trained as usual, rewritten into a B-cos network and
briefly fine-tuned, explains itself as well as a B-cos network trained from scratch, at a fraction of the cost.

The rewriting, for a picture r in [0, 1]:

1. z = (r - mean) / std, and the network sees the six channels [z, -z]; its first kernel W becomes [W, -W] / 2, which
   gives the same numbers. Normalisation lies in the network: feed it pictures in [0, 1], and do not normalise them.
2. Convolutions and linear maps become B-cos (`offshelf.backbones.b_cos_layers`); projections to queries, keys and
   values stay linear. Batch norms no longer take the mean away. Max pooling becomes average pooling.
3. The classifier reads every place (or token) by itself, and the mean over places is the logit.
4. All biases go; a constant -log(C - 1) is added to the logits of C classes.

Departures: the classifier is a linear map over places, not a 1 x 1 convolution (the same but for the stabiliser, and
the weight keeps its shape). Position tables and class tokens of vision transformers are constants that act like biases.
The class token (and register tokens) goes with step 3; the position table stays, since a transformer is blind without
it, and its part in a logit is told apart from the picture's (`offshelf.interpret.b_cos_explanation`). The position
table of CLIP's attention pooling goes, as in the paper. B is fixed; the paper's other variants (a learnt B, a slow
rise, biases that decay) are not here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from timm.layers import AttentionPool2d, SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models import vision_transformer as vit
from torch import nn

from offshelf.backbones.b_cos_layers import BCosConv2d
from offshelf.backbones.b_cos_network import FAMILIES, BCosNetwork
from offshelf.backbones.b_cos_rules import Plan, convert
from offshelf.backbones.card import weights_hash
from offshelf.backbones.export import remembered_arguments
from offshelf.errors import BackboneError, UsageError

__all__ = ["BCosNetwork", "b_cos", "bcosify", "refresh_statistics"]


def bcosify(
    model: nn.Module,
    b: float = 2.0,
    *,
    keep_bias: bool = False,
    swap_pool: bool = True,
    swap_head: bool = True,
    logit_offset: bool = True,
    keep_position: bool | None = None,
    unknown: Literal["raise", "keep"] = "raise",
) -> BCosNetwork:
    """Rewrite a trained network into a B-cos network; the given one stays as it is.

    The product must be fine-tuned, and its batch statistics belong to the network before: call `refresh_statistics`
    before anything is judged. With ``b=1`` and all else kept it computes what the given one does.

    Parameters
    ----------
    model : nn.Module
        A timm ResNet, DenseNet, ConvNeXt, VisionTransformer, or ByobNet (CLIP's ResNets) for three channels.
    b : float
        The exponent B, 1 or more; 1 is the ordinary layer.
    keep_bias : bool
        Keep biases; their part in a logit belongs to no pixel.
    swap_pool : bool
        Average pooling in the place of max pooling.
    swap_head : bool
        Classify every place or token, then average; class and register tokens go. False pools first (or reads the class
        token), as the given network does. Attention pooling stays in any case.
    logit_offset : bool
        Add ``-log(C - 1)`` to the logits.
    keep_position : bool, optional
        Keep position tables; by default those of vision transformers, not those of attention pooling (as in the paper).
    unknown : {"raise", "keep"}
        What to do about layers of types that are on no list: stop, or leave them as they are. Their paths are then
        ``.kept``, and explanations are not exact.

    Returns
    -------
    BCosNetwork
        Of the same class otherwise; its configuration names architecture "b_cos", mean 0 and deviation 1.

    Raises
    ------
    BackboneError
        For networks of other families, and for unknown layers, naming path and type of each.
    UsageError
        For an exponent below 1 or another value of ``unknown``.
    """
    if not b >= 1:
        raise UsageError(f"b={b}: expected 1 (the ordinary network) or more, such as 2.")
    if unknown not in ("raise", "keep"):
        raise UsageError(f"unknown={unknown!r}: expected 'raise' or 'keep'.")
    given: Any = model
    if type(model) not in FAMILIES:
        names = ", ".join(family.__name__ for family in FAMILIES)
        todo = "It is a B-cos network already." if isinstance(model, BCosNetwork) else "Choose a backbone of these."
        raise BackboneError(f"{type(model).__name__}: B-cosification knows the networks {names} of timm. {todo}")
    mean, std = _pixels(given)
    arguments = {
        "base": given.pretrained_cfg["architecture"],
        "base_args": remembered_arguments(given),
        "b": b,
        "keep_bias": keep_bias,
        "swap_pool": swap_pool,
        "swap_head": swap_head,
        "logit_offset": logit_offset,
        "keep_position": keep_position,
        "unknown": unknown,
        "mean": mean,
        "std": std,
    }
    network: Any = copy.deepcopy(model)
    missed = convert(network, Plan(b, keep_bias, swap_pool, drop_pool_position=not keep_position))
    if missed and unknown == "raise":
        listed = ", ".join(f"{path} ({kind})" for path, kind in missed)
        raise BackboneError(
            f"{arguments['base']}: {len(missed)} layers are of types that B-cosification does not know: {listed}. "
            "Choose another network, or leave them as they are with unknown='keep'; explanations are then not exact."
        )
    _widen_first(network, arguments["base"])
    network.per_place = swap_head and _pools_by_mean(network, arguments["base"])
    if network.per_place and isinstance(network, vit.VisionTransformer):
        _drop_tokens(network)
    if keep_position is False and isinstance(network, vit.VisionTransformer):
        network.pos_embed = None
    network.__class__ = FAMILIES[type(network)]
    network.b, network.keep_bias, network.has_offset = b, keep_bias, logit_offset
    network.kept = tuple(path for path, _ in missed)
    for name, values in (("pixel_mean", mean), ("pixel_std", std)):
        network.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
    _describe(network, arguments)
    return network


def refresh_statistics(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Estimate the running moments of all batch norms anew, as plain means over ``batches``.

    When B goes from 1 to 2 every layer's output shrinks, and moments of the network before would let the signal vanish.
    No weight changes, and every module is afterwards in the mode it was in.

    Parameters
    ----------
    batches : of pictures (B, 3, H, W) as the network takes them, B of 2 or more; a few hundred pictures will do.

    Raises
    ------
    UsageError
        When there are no batches.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_var is not None]
    modes, momenta = [(m, m.training) for m in model.modules()], [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.training = True
    try:
        count = 0
        with torch.no_grad():
            for batch in batches:
                model(batch)
                count += 1
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if not count:
        raise UsageError("refresh_statistics: no batch was given; expected at least one, of pictures (B, 3, H, W).")


# ---- the parts of the rewriting --------------------------------------------------------------------------------------


def _pixels(model: Any) -> tuple[list[float], list[float]]:
    """Mean and deviation that the given network was trained with."""
    known = getattr(model, "card", None)
    mean, std = (
        (known.mean, known.std) if known is not None else (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    )
    return [float(value) for value in mean], [float(value) for value in std]


def _widen_first(network: nn.Module, name: str) -> None:
    """``W`` -> ``[W, -W] / 2`` in the convolution that reads the picture."""
    for path, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != 3 or not isinstance(layer, BCosConv2d):
                raise BackboneError(
                    f"{name}: its first convolution {path} reads {layer.in_channels} channels and is a "
                    f"{type(layer).__name__}; expected a plain one that reads 3 (red, green, blue)."
                )
            weight = layer.weight.detach()
            trained = layer.weight.requires_grad
            layer.weight = nn.Parameter(torch.cat([weight, -weight], dim=1) / 2, requires_grad=trained)
            layer.in_channels = 6
            return
    raise BackboneError(f"{name}: it has no convolution that reads the picture.")


def _pools_by_mean(network: Any, name: str) -> bool:
    """Whether the network pools by a mean or reads a token; False for attention pooling, which stays."""
    if isinstance(network, vit.VisionTransformer):
        if network.attn_pool is not None:
            return False
        kind, fine = network.global_pool, ("avg", "token")
    elif any(isinstance(module, AttentionPool2d) for module in network.modules()):
        return False
    else:
        pools = [module for module in network.modules() if isinstance(module, SelectAdaptivePool2d)]
        kind, fine = pools[-1].pool_type if pools else "", ("avg", "fast", "fastavg")
    if kind not in fine:
        raise BackboneError(
            f"{name}: it pools by {kind or 'nothing'!r}, and a classifier of every place needs a mean; convert it with "
            "swap_head=False."
        )
    return True


def _drop_tokens(network: Any) -> None:
    """Class and register tokens go, with their rows of the position table; the mean over patches is read."""
    if network.pos_embed is not None and not network.no_embed_class and network.num_prefix_tokens:
        table = network.pos_embed
        network.pos_embed = nn.Parameter(
            table.detach()[:, network.num_prefix_tokens :].clone(), requires_grad=table.requires_grad
        )
    network.cls_token = network.reg_token = None
    network.has_class_token, network.num_prefix_tokens, network.num_reg_tokens = False, 0, 0
    network.global_pool = "avg"


def _describe(network: Any, arguments: dict[str, Any]) -> None:
    """Configuration, remembered arguments and card of the new network."""
    gone = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "tag")
    settings = {key: value for key, value in network.pretrained_cfg.items() if key not in gone}
    settings |= {"architecture": "b_cos", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    network.pretrained_cfg = network.default_cfg = settings
    network._model_args = {key: value for key, value in arguments.items() if value is not None}
    card = getattr(network, "card", None)
    if card is not None:
        network.card = replace(
            card,
            architecture="b_cos",
            mean=settings["mean"],
            std=settings["std"],
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            weights_hash=weights_hash(network),
            note=f"B-cosified with B = {arguments['b']:g} from {card.name}",
        )


# ---- known to timm ---------------------------------------------------------------------------------------------------

default_cfgs = generate_default_cfgs(
    {
        "b_cos": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": None,
            "crop_pct": 0.95,
            "interpolation": "bicubic",
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "first_conv": "conv1",
            "classifier": "fc",
        }
    }
)


def b_cos(pretrained: bool = False, **settings: Any) -> BCosNetwork:
    """A B-cos network with random weights, or with those of a folder that `save_backbone` wrote.

    ``base`` and ``base_args`` name the network it is made of (resnet18 by default), ``mean`` and ``std`` the pixel
    statistics inside it, and the other settings are those of `bcosify`; what is none of these goes to the base.
    """
    return build_model_with_cfg(
        _build, "b_cos", pretrained, feature_cfg={"feature_cls": "getter", "out_indices": None}, **settings
    )


_SETTINGS = ("b", "keep_bias", "swap_pool", "swap_head", "logit_offset", "keep_position", "unknown")


def _build(
    base: str = "resnet18",
    base_args: dict[str, Any] | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    **settings: Any,
) -> BCosNetwork:
    import timm

    ours = {key: settings.pop(key) for key in _SETTINGS if key in settings}
    model: Any = timm.create_model(base, pretrained=False, **{**(base_args or {}), **settings})
    if mean is not None and std is not None:
        model.pretrained_cfg = {**model.pretrained_cfg, "mean": mean, "std": std}
    # what the reader gives in each call is no part of what the base is
    model._model_args = {
        **(base_args or {}),
        **{k: v for k, v in settings.items() if not re.match("num_classes|drop", k)},
    }
    return bcosify(model, **ours)
