"""What the training loop needs around its steps: the optimiser, frozen leftovers, and the state to keep."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from offshelf.engine.recipe import Recipe
from offshelf.engine.undisturbed import same_buffers
from offshelf.errors import OffshelfError

if TYPE_CHECKING:
    import torch
    from torch import nn


def make_optimiser(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The recipe's optimiser over parameter groups, each with its own base ``lr`` and ``weight_decay``."""
    import torch

    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=recipe.betas[0], nesterov=recipe.betas[0] > 0)
    if recipe.optimiser == "lamb":
        from timm.optim import Lamb

        return Lamb(groups, betas=recipe.betas, max_grad_norm=None)
    if recipe.optimiser == "rmsprop":  # eps 1 inside the root, as the Inception papers have it; torch's is outside
        from timm.optim import RMSpropTF

        momentum, decay = recipe.betas
        return RMSpropTF(groups, alpha=decay, momentum=momentum, eps=1.0)
    sharded = any(hasattr(parameter, "full_tensor") for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, betas=recipe.betas, fused=None if sharded else True)  # one pass over the weights


def adaptively_clip(module: nn.Module, share: float) -> None:
    """Shorten each output unit's gradient to ``share`` of its weights' length, of which 0.001 is the least."""
    from timm.utils.agc import adaptive_clip_grad

    adaptive_clip_grad(list(module.parameters()), clip_factor=share, eps=1e-3)


def freeze_unreached(module: nn.Module, batch: dict[str, torch.Tensor]) -> list[str]:
    """Stop training parameters that the loss does not reach, and return their names.

    Data-parallel training waits for the gradient of every trained parameter, and fails in the second step where one
    never comes (a network's last layers, say, when only its maps are used). Buffers are left as they were.
    """
    import torch

    with torch.random.fork_rng(devices=[]), same_buffers(module):
        module(batch)["loss"].backward()
    unreached = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    for name, parameter in module.named_parameters():
        parameter.grad = None
        if name in set(unreached):
            parameter.requires_grad_(False)
    return unreached


def seed_step(seed: int, step: int, part: int, rank: int) -> None:
    """Seed torch, NumPy and Python for one part of a step, so that there is no generator state to save.

    Seeding torch's default generator directly takes a hundredth of the time of ``torch.manual_seed``.
    """
    import torch

    number = int(np.random.SeedSequence([seed, step, part, rank]).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(number % 2**63)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed(number % 2**63)
    np.random.seed(number % 2**32)
    random.seed(number)


class Average:
    """Exponential moving average of all weights and floating buffers, in fp32.

    decay : share of the old average kept in each step; ramped up as (1 + t) / (10 + t) at the start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {
            name: value.detach().clone().float() if value.is_floating_point() else value.clone()
            for name, value in module.state_dict().items()
        }

    def update(self, module: nn.Module, step: int) -> None:
        """Take the weights after ``step`` steps (from 1) in."""
        import torch

        keep = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in module.state_dict().items():
                if value.is_floating_point():
                    self.values[name].lerp_(value.float(), 1 - keep)
                else:
                    self.values[name].copy_(value)

    @contextmanager
    def inside(self, module: nn.Module) -> Iterator[None]:
        """``module`` holds the averaged weights in the block, and its own again, to the bit, afterwards."""
        own = {name: value.clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.values)
        try:
            yield
        finally:
            module.load_state_dict(own)


def snapshot(module: nn.Module, optimiser: Any, sharded: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """State dicts of module and optimiser on the CPU, gathered where they are sharded."""
    if not sharded:
        return module.state_dict(), optimiser.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_state_dict(module, getattr(optimiser, "optimizer", optimiser), options=options)


def restore(module: nn.Module, optimiser: Any, state: dict[str, Any], sharded: bool) -> None:
    """Undo `snapshot`."""
    if not sharded:
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    set_state_dict(
        module,
        getattr(optimiser, "optimizer", optimiser),
        model_state_dict=state["module"],
        optim_state_dict=state["optimiser"],
        options=StateDictOptions(full_state_dict=True),
    )


def packed(value: Any) -> bytes:
    """Tensors as bytes: a tensor sent between processes as it is dies with the process that sent it."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpacked(content: bytes) -> Any:
    """Undo `packed`."""
    import torch

    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")


def without_running_out(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``work``; an exhausted memory becomes a sentence that says what to lower."""
    import torch

    try:
        return work(*arguments)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _too_large() from error
    except RuntimeError as error:
        if "alloc" in str(error).lower() and "memory" in str(error).lower():
            raise _too_large() from error
        raise


def _too_large() -> OffshelfError:
    return OffshelfError(
        "the memory ran out. Lower --batch-size, split a step with --accumulate 2 or more, or lower --image-size."
    )
