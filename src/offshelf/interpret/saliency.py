"""Where a network looked: class-activation maps by gradients (Grad-CAM, Selvaraju et al. 2017, arXiv 1610.02391).

The last map of the network is A (C, h, w) and the score of a class, before the softmax, is s. Each channel weighs as
much as its mean gradient says, and the map shows what speaks for the class:

    weight_c = mean over places of ds / dA_c        map = max(0, sum over c of weight_c A_c)

With average pooling and one linear layer after the map this is the class-activation map of Zhou et al. (2016) but for
a factor 1 / (h w). A map says where the evidence lay, not whether it was right: a hot border or marker is a warning.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from offshelf.backbones.card import name_of
from offshelf.errors import BackboneError


def class_activation(model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Grad-CAM of one class for each picture, over the last map of the network.

    Parameters
    ----------
    model : a timm network with its classifier; judged in evaluation mode, and left in the mode it was in.
    x : float (B, 3, H, W), normalised as the network expects.
    classes : integer (B,), the class to explain in each picture.

    Returns
    -------
    float32 (B, h, w), 0 or above, at the resolution of the last map

    Raises
    ------
    BackboneError
        When the network gives no map, or its decision does not rest on one (a vision transformer that reads its class
        token).
    """
    network: Any = model
    if not hasattr(network, "forward_intermediates"):
        raise BackboneError(
            f"{name_of(network)} gives no intermediate maps; explain a network that timm can read them of."
        )
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            final, maps = network.forward_intermediates(x, indices=1, output_fmt="NCHW")
        final = final.detach().requires_grad_(True)
        with torch.enable_grad():
            scores = network.forward_head(final)
            (gradient,) = torch.autograd.grad(scores.gather(1, classes.view(-1, 1)).sum(), final)
    finally:
        network.train(training)
    grid = tuple(maps[-1].shape[-2:])
    activation, gradient = _as_map(network, final.detach(), grid), _as_map(network, gradient, grid)
    if not gradient.any():
        raise BackboneError(
            f"the decision of {name_of(network)} does not rest on its last map, as with a vision transformer that "
            "reads its class token; explain a convolutional network, or a transformer that takes the mean of its "
            "tokens."
        )
    return (gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1).relu().float()


def _as_map(network: Any, values: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """What a network ends with as ``(B, C, h, w)``: a map already, a map with channels last, or tokens of a grid."""
    if values.ndim == 3:
        patches = values[:, getattr(network, "num_prefix_tokens", 0) :]
        if patches.shape[1] == grid[0] * grid[1]:
            return patches.transpose(1, 2).reshape(len(values), -1, *grid)
    elif values.ndim == 4:
        return values.permute(0, 3, 1, 2) if str(getattr(network, "output_fmt", "NCHW")) == "NHWC" else values
    raise BackboneError(
        f"{name_of(network)} ends with an array of {tuple(values.shape)}, no map of {grid[0]} x {grid[1]} places; "
        "explain a convolutional network."
    )


def overlaid(picture: np.ndarray, heat: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """A picture with its map over it, from nothing (no evidence) over red to yellow (the most of this picture).

    Parameters
    ----------
    picture : uint8 (3, H, W)
    heat : (h, w), 0 or above; enlarged to the picture. All zero: the picture is returned in grey.

    Returns
    -------
    uint8 (3, H, W)
    """
    enlarged = F.interpolate(
        torch.from_numpy(np.asarray(heat, dtype=np.float32))[None, None],
        picture.shape[-2:],
        mode="bilinear",
        align_corners=False,
    )[0, 0].numpy()
    share = enlarged / enlarged.max() if enlarged.max() > 0 else enlarged
    grey = picture.astype(np.float32).mean(axis=0)
    colour = np.stack([np.full_like(share, 255.0), 255.0 * share, np.zeros_like(share)])
    blend = strength * share
    return ((1 - blend) * grey + blend * colour).round().clip(0, 255).astype(np.uint8)


def data_uri(picture: np.ndarray, side: int = 112) -> str:
    """``(3, H, W)`` uint8 as a JPEG data URI whose longer side is at most ``side`` pixels."""
    image = Image.fromarray(np.ascontiguousarray(np.moveaxis(picture, 0, -1)))
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
