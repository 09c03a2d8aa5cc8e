"""What a training is told and what comes of it: plan, outcome, and who is told on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from offshelf.engine.recipe import Recipe
from offshelf.errors import UsageError

Record = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """What the result of a training depends on, beside module, data and number of processes.

    steps : optimiser steps. batch_size : pictures of one, over all processes. accumulate : parts it is passed in.
    freeze_trunk : first steps in which only parameters outside the backbone move. average : decay of a moving average
    of the weights, or None. log_every : steps between records. channels_last : memory layout of pictures and kernels.
    """

    recipe: Recipe
    steps: int
    batch_size: int
    seed: int = 0
    accumulate: int = 1
    freeze_trunk: int = 0
    average: float | None = None
    bf16: bool = False
    channels_last: bool = True
    compile: bool = False
    log_every: int = 0  # 0: once an epoch

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        n: int,
        *,
        epochs: float | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        parts: int = 1,
        **others: Any,
    ) -> Training:
        """A training over ``n`` pictures by a recipe, whose learning rate is scaled linearly with the batch.

        Parameters
        ----------
        epochs, steps : how long; the recipe's epochs by default.
        batch_size : the recipe's by default; never more than there are pictures.
        parts : what the batch must be divisible by (processes x accumulated parts).
        """
        wanted = batch_size or recipe.batch_size
        size = min(wanted, n)
        if size < n or size < wanted:
            size = max(parts, size // parts * parts) if size < wanted else size
        if n < 2 or n < parts:
            raise UsageError(f"{n} pictures: training needs at least {max(2, parts)}. Give more pictures.")
        total = steps if steps is not None else max(1, round((epochs or recipe.epochs) * (n // size)))
        scaled = replace(recipe, learning_rate=recipe.learning_rate * size / recipe.batch_size)
        return cls(scaled, total, size, **others)


@dataclass
class Trained:
    """What came of a training: how it ended, its records, the averaged weights, and what was left out."""

    status: Literal["complete", "stopped", "collapsed", "diverged"]
    step: int
    history: list[Record] = field(default_factory=list)
    probes: list[Record] = field(default_factory=list)
    average: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    packed: bytes | None = None  # weights and average on their way from a child process


@dataclass(frozen=True)
class Watch:
    """What is told while a training goes on, all on the first process.

    log : called with every record. advance : called with a number of steps done. probe : called with the step, ``(step,
    module) -> record``, every ``probe_every`` steps; an entry ``"stop"`` ends the training as collapsed. It sees the
    moving average of the weights with ``probe_average``, where one is kept.
    """

    log: Callable[[Record], None] = lambda record: None
    advance: Callable[[int], None] = lambda n: None
    probe: Callable[[int, Any], Record] | None = None
    probe_every: int = 0
    probe_average: bool = False
    restarted: Callable[[list[Record]], None] = lambda history: None
