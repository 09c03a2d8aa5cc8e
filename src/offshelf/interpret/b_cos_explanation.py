"""Why a B-cos network says so: the one linear map it applied to this picture, as numbers and as a picture.

Boehle, Fritz and Schiele: B-cos Networks, CVPR 2022, arXiv 2205.10268, and Arya et al.: B-cosification, NeurIPS 2024,
arXiv 2411.00715. In explanation mode the gradient of a logit by the network's six-channel input z = [z, -z] is the row
of W(x) for that class, and

    logit = sum over pixels and channels of z * W(x)  +  offset

holds to rounding. It holds for the *normalised* z, which is what is reported here, and not for the raw [r, 1 - r]:
normalising adds a constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from offshelf.backbones.b_cosification import BCosNetwork
from offshelf.errors import UsageError

SMOOTH = 15
"""Side in pixels of the box over which the paper smooths the opacity of a coloured explanation."""


@dataclass(frozen=True)
class BCosExplanation:
    """What spoke for one class in each of B pictures.

    Attributes
    ----------
    classes : int64 (B,)
    logits : float32 (B, C), of all classes
    weights : float32 (B, 6, H, W)
        The row of W(x) of the class: red, green, blue, and the same for their negatives.
    contributions : float32 (B, H, W)
        Signed; what each pixel adds to the class's logit.
    offset : float32 (B,)
        What belongs to no pixel: the constant ``-log(C - 1)``, and the part of a transformer's position table.
    pixel_weights : float32 (B, 6, H, W)
        The same row by the pixels ``[r, 1 - r]``, from which the paper's colours are drawn: ``weights`` over the
        standard deviation of each channel.
    pixels : float32 (B, 6, H, W)
        ``[r, 1 - r]``.
    smooth : int
        Side of the box that smooths the opacity of `colours`.
    """

    classes: torch.Tensor
    logits: torch.Tensor
    weights: torch.Tensor
    contributions: torch.Tensor
    offset: torch.Tensor
    pixel_weights: torch.Tensor
    pixels: torch.Tensor
    smooth: int = SMOOTH

    @property
    def logit(self) -> torch.Tensor:
        """(B,), of the class that is explained."""
        return self.logits.gather(1, self.classes.view(-1, 1))[:, 0]

    @property
    def remainder(self) -> torch.Tensor:
        """``logit - offset - sum of contributions`` (B,): rounding, unless biases or unknown layers were kept."""
        return self.logit - self.offset - self.contributions.sum(dim=(1, 2))

    @property
    def colours(self) -> torch.Tensor:
        """Red, green, blue and opacity in [0, 1] (B, 4, H, W), as the paper draws them; see `coloured`."""
        return coloured(self.pixel_weights, (self.pixel_weights * self.pixels).sum(dim=1), self.smooth)


def explain_b_cos(
    model: BCosNetwork, pictures: torch.Tensor, classes: torch.Tensor | None = None, *, smooth: int = SMOOTH
) -> BCosExplanation:
    """The linear map of each picture for one class, and what every pixel contributes.

    Parameters
    ----------
    model : BCosNetwork
        Judged in evaluation mode, and left in the mode it was in.
    pictures : float (B, 3, H, W) in [0, 1], not normalised: the network does that.
    classes : int (B,), optional
        The class to explain in each; the most probable one by default.
    smooth : int
        For the coloured picture: side of the box in pixels, odd; 3 suits pictures of 32 pixels.

    Raises
    ------
    UsageError
        For a network that is no B-cos network, pictures outside [0, 1], or classes that do not fit.
    """
    if not isinstance(model, BCosNetwork):
        raise UsageError(
            f"{type(model).__name__} is no B-cos network: its gradient is not the map it applies. Make one with "
            "`offshelf finetune DATA --backbone NAME --b-cos 2`, or bcosify()."
        )
    _check(model, pictures, classes, smooth)
    with torch.enable_grad(), model.explaining(), _constants(model) as constants:
        z = model.encode(pictures.detach()).requires_grad_()
        logits = model.forward_encoded(z)
        if classes is None:
            classes = logits.detach().argmax(dim=1)
        picked = logits.gather(1, classes.view(-1, 1).to(logits.device)).sum()
        found = torch.autograd.grad(picked, [z, *(after for after, _ in constants)])
    weights = found[0].float()
    offset = torch.full((len(z),), model.offset, device=z.device)
    for gradient, (_, part) in zip(found[1:], constants):
        offset = offset + (gradient * part).flatten(1).sum(1)
    return BCosExplanation(
        classes.long().to(z.device),
        logits.detach().float(),
        weights,
        (weights * z.detach()).sum(dim=1),
        offset,
        weights / model.pixel_std.repeat(1, 2, 1, 1),
        torch.cat([pictures, 1 - pictures], dim=1).detach(),
        smooth,
    )


def coloured(weights: torch.Tensor, contributions: torch.Tensor, smooth: int = SMOOTH) -> torch.Tensor:
    """W(x) as a picture (Boehle et al. 2022, appendix): the hue of each pixel's weight, its length as opacity.

    At each pixel the weights are divided by the largest absolute one of the six and cut off at 0; a colour is its share
    of itself and its negative. Opacity is the length of the weight, 0 where the pixel speaks against the class,
    smoothed, and divided by its 99.5th percentile in the picture.

    Parameters
    ----------
    weights : (B, 6, H, W)
    contributions : (B, H, W)
    smooth : side of the box, odd

    Returns
    -------
    float32 (B, 4, H, W) in [0, 1]
    """
    tiny = 1e-12
    scaled = (weights / weights.abs().amax(dim=1, keepdim=True).clamp(min=tiny)).clamp(min=0)
    plus, minus = scaled[:, :3], scaled[:, 3:]
    colour = plus / (plus + minus).clamp(min=tiny)
    alpha = torch.where(contributions < 0, tiny, weights.norm(dim=1))
    alpha = F.avg_pool2d(alpha[:, None], smooth, stride=1, padding=(smooth - 1) // 2)
    top = alpha.flatten(1).quantile(0.995, dim=1).view(-1, 1, 1, 1).clamp(min=tiny)
    return torch.cat([colour, (alpha / top).clamp(0, 1)], dim=1)


@contextmanager
def _constants(model: Any) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Where a transformer adds its position table and tokens: the sum (with gradient), and the part that is constant.

    All of it is what the layer after the addition receives, less what the patches gave.
    """
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    if not hasattr(model, "pos_drop") or not hasattr(model, "patch_embed"):
        yield found
        return
    patches: list[torch.Tensor] = []

    def before(module: Any, inputs: Any, output: torch.Tensor) -> None:
        patches.append(output.detach().reshape(len(output), -1, output.shape[-1]))

    def after(module: Any, inputs: tuple[torch.Tensor]) -> None:
        (total,) = inputs
        given = patches.pop()
        empty = given.new_zeros(len(given), total.shape[1] - given.shape[1], given.shape[2])
        found.append((total, total.detach() - torch.cat([empty, given], dim=1)))

    hooks = [model.patch_embed.register_forward_hook(before), model.pos_drop.register_forward_pre_hook(after)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _check(model: BCosNetwork, pictures: torch.Tensor, classes: torch.Tensor | None, smooth: int) -> None:
    if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
        raise UsageError(f"pictures: {pictures.dtype} {tuple(pictures.shape)}; expected float (B, 3, H, W) in [0, 1].")
    low, high = (float(pictures.min()), float(pictures.max())) if pictures.numel() else (0.0, 0.0)
    if low < 0 or high > 1:
        raise UsageError(
            f"pictures: values from {low:.3g} to {high:.3g}; expected [0, 1]. A B-cos network normalises by itself."
        )
    if classes is not None and (
        tuple(classes.shape) != (len(pictures),)
        or classes.is_floating_point()
        or (len(classes) and (int(classes.min()) < 0 or int(classes.max()) >= model.num_classes))
    ):
        raise UsageError(
            f"classes: {classes.dtype} {tuple(classes.shape)}; expected a class number from 0 to "
            f"{model.num_classes - 1} for each of {len(pictures)} pictures."
        )
    if smooth < 1 or smooth % 2 == 0:
        raise UsageError(f"smooth={smooth}: expected an odd number of pixels, such as 15.")
