"""Look at a network in the middle of its training, and leave the training as if nobody had looked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def same_random_states() -> Iterator[None]:
    """Whatever the block draws or seeds, the global random states of torch, numpy and Python are put back after it."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    # A process that has not touched its graphics card has no state there, and must not be made to.
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cards:
            torch.cuda.set_rng_state_all(cards)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Inside the block ``module`` is in evaluation mode and records no gradients; afterwards all is as it was.

    Every submodule gets back its own ``training`` flag: ``module.train()`` would also wake a batch norm that was frozen
    on purpose. The global random states of torch (processor and graphics cards), numpy and Python are put back, also
    when the block ends with an error. Parameters and buffers are the block's own business.
    """
    import torch

    flags = [(part, part.training) for part in module.modules()]
    with same_random_states():
        try:
            module.eval()
            with torch.no_grad():
                yield
        finally:
            for part, flag in flags:
                part.training = flag


@contextmanager
def same_buffers(module: nn.Module) -> Iterator[None]:
    """Buffers, such as a batch norm's statistics, are put back after the block.

    One that the block's first pass made in place of a placeholder of another shape stays: put back into it, the
    placeholder would be spread over all of it.
    """
    import torch

    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if buffer.shape == before[name].shape:
                    buffer.copy_(before[name])
