"""The training loop: one place where the order of a step can be seen.

A step's batch, learning rate and random draws are pure functions of (seed, step), so that equal commands give equal
weights on one machine, whatever else draws random numbers in between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from offshelf.errors import OffshelfError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: epochs over n samples in batches, warm-up then cosine to zero."""

    n: int
    epochs: int
    batch_size: int
    warmup: float = 0.05
    seed: int = 0

    @property
    def steps_an_epoch(self) -> int:
        """Full batches in one pass; the remainder, another one each epoch, is left out."""
        return max(1, self.n // self.batch_size)

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_an_epoch

    def scale(self, step: int) -> float:
        """Factor of the learning rate at ``step``: linear from 0 over the warm-up, then half a cosine to 0."""
        warm = max(1, round(self.warmup * self.total))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.total - warm)))

    def batches(self) -> Iterator[tuple[int, np.ndarray]]:
        """``(step, rows)`` of every step; the order of an epoch depends on (seed, epoch) alone."""
        for epoch in range(self.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(self.n)
            for number in range(self.steps_an_epoch):
                rows = order[number * self.batch_size : (number + 1) * self.batch_size]
                yield epoch * self.steps_an_epoch + number, rows


def train(
    model: nn.Module,
    groups: list[dict[str, Any]],
    schedule: Schedule,
    make_batch: Callable[[np.ndarray, np.random.Generator], tuple[torch.Tensor, torch.Tensor]],
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    bf16: bool = False,
    clip: float = 1.0,
    after_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, numbers: None,
    advance: Callable[[int], None] = lambda n: None,
) -> list[dict[str, float]]:
    """Train ``model`` in place with AdamW and return one record an epoch (loss, learning rate, samples a second).

    Parameters
    ----------
    groups : parameter groups, each with its own base ``lr`` and ``weight_decay``.
    make_batch : ``(rows, generator) -> (input, target)``; draws only from the generator it is given.
    loss_of : ``(output fp32, target) -> scalar``; computed in fp32 also when ``bf16``.
    bf16 : run the forward pass under bf16 autocast; parameters, gradients and the loss stay fp32.
    clip : largest norm of the whole gradient.

    Raises
    ------
    OffshelfError
        When the loss stops being a number; names the step and what to try.
    """
    import torch

    if schedule.n < 2:
        raise UsageError(f"{schedule.n} training pictures: training needs at least two.")
    optimiser = torch.optim.AdamW(groups)
    bases = [group["lr"] for group in optimiser.param_groups]
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    history: list[dict[str, float]] = []
    losses: list[float] = []
    seen, clock = 0, time.perf_counter()
    model.train()
    for step, rows in schedule.batches():
        # 1. the batch and every random draw of the step hang on (seed, step)
        draws = np.random.default_rng([schedule.seed, 1, step])
        inputs, target = make_batch(rows, draws)
        torch.default_generator.manual_seed(int(draws.integers(2**63)))
        # 2. learning rates are written from the step number; there is no scheduler to remember
        for group, base in zip(optimiser.param_groups, bases):
            group["lr"] = base * schedule.scale(step)
        # 3. forward (bf16 where asked), loss in fp32, backward outside of autocast
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=bf16):
            output = model(inputs)
        loss = loss_of(output.float(), target)
        if not torch.isfinite(loss):
            raise OffshelfError(
                f"the loss became {loss.item()} at step {step + 1} of {schedule.total}. "
                "Lower the learning rate (--learning-rate), or look for broken pictures with `offshelf fit`."
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        # 4. what is said about it
        losses.append(loss.item())
        seen += len(rows)
        advance(1)
        if (step + 1) % schedule.steps_an_epoch == 0:
            epoch = step // schedule.steps_an_epoch
            now = time.perf_counter()
            record = {
                "epoch": epoch + 1,
                "loss": float(np.mean(losses)),
                "learning_rate": bases[-1] * schedule.scale(step),
                "samples_per_second": seen / (now - clock),
            }
            after_epoch(epoch, record)
            model.train()
            history.append(record)
            losses, seen, clock = [], 0, time.perf_counter()
    model.eval()
    return history
