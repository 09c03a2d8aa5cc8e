"""The two places where numbers are read from a network: before its classifier, and after it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from offshelf.errors import BackboneError, UsageError

Readout = Literal["pooled", "logits"]


def read(model: nn.Module, x: torch.Tensor, readout: Readout = "pooled") -> torch.Tensor:
    """One row of numbers for every picture.

    Parameters
    ----------
    model : nn.Module
        A network with timm's interface.
    x : torch.Tensor
        Normalised pictures (B, 3, H, W).
    readout : {"pooled", "logits"}
        ``"pooled"``: ``forward_head(forward_features(x), pre_logits=True)``, what the classifier sees, which is the
        network's own output when it has no classifier. ``"logits"``: the output of the network's own classifier.

    Returns
    -------
    torch.Tensor
        (B, d), in the precision of the network.

    Raises
    ------
    BackboneError
        When the network does not give one vector a picture.
    """
    if readout not in ("pooled", "logits"):
        raise UsageError(f"readout={readout!r}: expected 'pooled' or 'logits'")
    network: Any = model
    if readout == "logits" and getattr(network, "num_classes", 0) == 0:
        raise UsageError(
            "readout='logits': this network was loaded without a classifier; load it with num_classes=None to keep "
            "its own, or read 'pooled' features"
        )
    logits = readout == "logits"
    out = network(x) if logits else network.forward_head(network.forward_features(x), pre_logits=True)
    if not isinstance(out, torch.Tensor) or out.ndim != 2 or out.shape[0] != x.shape[0]:
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise BackboneError(
            f"{type(model).__name__}: expected one vector a picture, ({x.shape[0]}, d), and got {got}; "
            "this network cannot be read as a feature extractor, choose another"
        )
    return out
