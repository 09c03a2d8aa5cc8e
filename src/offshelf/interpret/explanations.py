"""The written list of explanations: what a network went by in one picture, as a map over its pixels.

Every method is a function ``(model, x, classes) -> maps (B, h, w)``; `explain` brings the maps to the size of the
picture. A method serves some networks and refuses the others with a `BackboneError` that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from offshelf.backbones.b_cosification import BCosNetwork
from offshelf.backbones.card import name_of
from offshelf.errors import BackboneError, UsageError, near
from offshelf.interpret.attention_rollout import attention_rollout
from offshelf.interpret.b_cos_explanation import explain_b_cos
from offshelf.interpret.saliency import class_activation

PIXELS_AT_ONCE = 2**20  # of the pictures explained at once, which bounds the memory of their gradients


class Explanation(NamedTuple):
    """One line of the list: what a map shows, what it does not, which networks it serves, and whether it has signs."""

    shows: str
    caution: str
    serves: str
    signed: bool
    maps: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


def contributions(model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """What each pixel adds to the logit of a B-cos network, exactly; see `offshelf.interpret.b_cos_explanation`.

    Raises
    ------
    BackboneError
        For all other networks.
    """
    if not isinstance(model, BCosNetwork):
        raise BackboneError(
            f"{name_of(model)}: contributions are exact in B-cos networks only; take grad-cam or input-x-gradient, or "
            "make one with `offshelf finetune DATA --backbone NAME --b-cos 2`."
        )
    return explain_b_cos(model, x, classes).contributions


def grad_cam(model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """`offshelf.interpret.saliency.class_activation`, where its map has more than one place.

    Raises
    ------
    BackboneError
        Also for a last map of a single place, which cannot point at anything.
    """
    maps = class_activation(model, x, classes)
    if maps.shape[1] * maps.shape[2] == 1:
        raise BackboneError(
            f"{name_of(model)}: at {x.shape[-2]} x {x.shape[-1]} pixels its last map is a single place, which points "
            "nowhere; take input-x-gradient, or a run with a larger --image-size."
        )
    return maps


def input_x_gradient(model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Each pixel times the gradient of the class's score before the softmax, summed over colours.

    Signed ``(B, H, W)``: the first-order effect of putting the pixel to the mean colour of the network's pictures,
    which is 0 after normalisation (a B-cos network normalises within; there the six channels are taken). Shrikumar et
    al. 2016, arXiv 1605.01713.
    """
    inside = isinstance(model, BCosNetwork)
    z = (model.encode(x) if inside else x).detach().requires_grad_(True)  # type: ignore[operator]
    with torch.enable_grad():
        scores = model.forward_encoded(z) if inside else model(z)  # type: ignore[operator]
        (gradient,) = torch.autograd.grad(scores.gather(1, classes.view(-1, 1)).sum(), z)
    return (z.detach() * gradient).sum(dim=1).float()


EXPLANATIONS: dict[str, Explanation] = {  # in the order in which they are to be preferred
    "contributions": Explanation(
        "what each pixel adds to the score of the class; all pixels and a constant sum to it exactly",
        "it says what this network added up, not whether it was right to",
        "B-cos networks",
        True,
        contributions,
    ),
    "grad-cam": Explanation(
        "places of the last map of the network whose channels raise the score of the class",
        "it is as coarse as that map, shows only what speaks for the class, and leaves out all layers before it",
        "convolutional networks, and transformers that take the mean of their tokens",
        False,
        grad_cam,
    ),
    "attention-rollout": Explanation(
        "patches that the token read by the head was mixed from, by attention over all layers",
        "it is the same for every class, so it cannot say what speaks for one",
        "vision transformers whose layers attend over all tokens",
        False,
        attention_rollout,
    ),
    "input-x-gradient": Explanation(
        "how the score of the class would change, to first order, if a pixel took the mean colour",
        "it is noisy in ordinary networks: it follows the steepness at this one point, and often edges more than "
        "evidence",
        "every network",
        True,
        input_x_gradient,
    ),
}


def explain(
    model: nn.Module, x: torch.Tensor, classes: torch.Tensor, methods: Iterable[str] | None = None
) -> dict[str, torch.Tensor]:
    """Maps of what spoke for a class, a picture at a time, by one or more methods.

    Parameters
    ----------
    model : a network with its classifier; judged in evaluation mode, and left in the mode it was in.
    x : float (B, 3, H, W), normalised as the network expects.
    classes : integer (B,), the class to explain in each picture.
    methods : names of ``EXPLANATIONS``; all that serve this network by default.

    Returns
    -------
    dict of name -> float32 (B, H, W)
        Coarser maps are enlarged. Signed where the method has signs, else 0 or above; in units of their own.

    Raises
    ------
    UsageError
        For a method that is not on the list.
    BackboneError
        For a method that was named and does not serve this network.
    """
    names = check_methods(methods) if methods is not None else serving(model, x[:1])[0]
    return {name: maps_of(name, model, x, classes) for name in names}


def maps_of(name: str, model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The maps of one method, ``(B, H, W)`` float32; see `explain`."""
    height, width = x.shape[-2:]
    at_once = max(1, PIXELS_AT_ONCE // (height * width))
    training, found = model.training, []
    model.eval()
    try:
        for first in range(0, len(x), at_once):
            part = slice(first, first + at_once)
            maps = EXPLANATIONS[name].maps(model, x[part], classes[part])
            if maps.shape[-2:] != (height, width):
                maps = F.interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
            found.append(maps.detach().float())
    finally:
        model.train(training)
    return torch.cat(found)


def serving(model: nn.Module, x: torch.Tensor) -> tuple[list[str], dict[str, str]]:
    """Names of the methods that serve a network, tried on ``x``; and of each other one why it does not."""
    names, refused = [], {}
    classes = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for name in EXPLANATIONS:
        try:
            maps_of(name, model, x, classes)
        except BackboneError as error:
            refused[name] = str(error)
        else:
            names.append(name)
    return names, refused


def check_methods(names: Iterable[str]) -> list[str]:
    """The same names without repeats.

    Raises
    ------
    UsageError
        Naming near ones.
    """
    given = [names] if isinstance(names, str) else list(names)
    for name in given:
        if name not in EXPLANATIONS:
            hint = near(name, EXPLANATIONS) or ";"
            raise UsageError(f"explanation {name!r} is not known{hint} expected any of {', '.join(EXPLANATIONS)}.")
    return list(dict.fromkeys(given))
