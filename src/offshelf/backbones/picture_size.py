"""Whether a network takes pictures of a size, asked before anything is trained at it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from offshelf.errors import UsageError


def require_size(model: nn.Module, size: int) -> None:
    """Pass one empty picture of ``size`` pixels through a network in evaluation mode.

    Raises
    ------
    UsageError
        When the network does not take it: too small for its strides, or another size than its table of positions has.
    """
    network: Any = model
    card = getattr(model, "card", None)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            network.forward_features(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        own = f"; it was made for {card.input_size[0]} pixels" if card is not None else ""
        name = card.name if card is not None else type(model).__name__
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"{name} does not take pictures of {size} x {size} pixels ({reason}){own}. Choose another size "
            "(--image-size, of fit --input-size), or another backbone."
        ) from error
    finally:
        model.train(training)
