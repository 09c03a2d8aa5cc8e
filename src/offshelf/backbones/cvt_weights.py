"""Weights of CvT from elsewhere: the names of the paper's code (microsoft/CvT) and of transformers, brought to ours.

Ours are those of the paper's code, but for ``stages.0`` in place of ``stage0``. Weights are taken whole or not at all.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from offshelf.errors import BackboneError

State = dict[str, torch.Tensor]

_TRANSFORMERS = (
    (r"^cvt\.", ""),
    (r"^encoder\.stages\.", "stages."),
    (r"\.embedding\.convolution_embeddings\.projection\.", ".patch_embed.proj."),
    (r"\.embedding\.convolution_embeddings\.normalization\.", ".patch_embed.norm."),
    (r"\.layers\.(\d+)\.", r".blocks.\1."),
    (r"\.attention\.attention\.convolution_projection_([qkv])\w+\.convolution_projection\.", r".attn.conv_proj_\1."),
    (r"(\.conv_proj_[qkv])\.convolution\.", r"\1.conv."),
    (r"(\.conv_proj_[qkv])\.normalization\.", r"\1.bn."),
    (r"\.attention\.attention\.projection_([qkv])\w+\.", r".attn.proj_\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
"""What each part of a name in transformers is called here, applied in this order."""


def our_name(name: str) -> str:
    """One weight's name in microsoft/CvT or transformers -> ours; ours stay."""
    if re.match(r"stage\d", name):
        return re.sub(r"^stage(\d+)\.", r"stages.\1.", name)
    if name.startswith(("cvt.", "encoder.", "layernorm.", "classifier.")):
        for pattern, ours in _TRANSFORMERS:
            name = re.sub(pattern, ours, name)
    return name


def convert_cvt_weights(state: State, model: nn.Module | None = None) -> State:
    """Weights by our names, from those of microsoft/CvT or transformers; timm calls it on what a file holds.

    Parameters
    ----------
    state : names -> tensors; names of ours stay.
    model : the network they are for. A file without classifier and final norm (transformers' ``CvtModel``) leaves it
        the norm it has, which is a new one: ones and zeros.

    Raises
    ------
    BackboneError
        With ``model``: when one of its tensors is not among them, or has another shape, or others are; a classifier
        that timm replaces anyway may differ.
    """
    ours = {our_name(name): value for name, value in state.items()}
    if model is None:
        return ours
    expected, config = model.state_dict(), getattr(model, "pretrained_cfg", {})
    adapted = config.get("num_classes") != model.num_classes  # then timm leaves the classifier as it was drawn
    if not any(name.startswith(("norm.", "head.")) for name in ours) and (adapted or not model.num_classes):
        ours |= {name: value for name, value in expected.items() if name.startswith("norm.")}
    loose = ("head.",) if adapted else ()
    missing = [
        name
        for name in expected
        if name not in ours and not name.startswith(loose) and not name.endswith("num_batches_tracked")
    ]
    foreign = [name for name in ours if name not in expected and not name.startswith(loose)]
    shapes = [
        f"{name} of {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
        for name, value in ours.items()
        if name in expected and value.shape != expected[name].shape and not name.startswith((*loose, _STEM))
    ]
    faults = [
        f"lack {_some(missing)} of the network's tensors, which would be random" if missing else "",
        f"hold {_some(foreign)} that this network has not" if foreign else "",
        f"have {_some(shapes)} of another shape" if shapes else "",
    ]
    if any(faults):
        place = config.get("file") or config.get("hf_hub_id") or config.get("architecture") or type(model).__name__
        raise BackboneError(
            f"{place}: the weights {'; they '.join(fault for fault in faults if fault)}; expected a complete file of "
            "this very design. Compare embed_dims, depths and class_token in config.json ('model_args') with the "
            "weights' own; a folder of transformers is read by cvt_from_transformers."
        )
    return ours


_STEM = "stages.0.patch_embed.proj."  # timm adapts it to other numbers of channels, and checks it


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


# ---- a folder of transformers ----------------------------------------------------------------------------------------
