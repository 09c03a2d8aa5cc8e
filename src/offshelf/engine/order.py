"""In which order samples are seen: a pure function of (seed, epoch, rank, world); the place is the step number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from offshelf.errors import UsageError

Key = tuple[int, int]


@dataclass(frozen=True)
class Order:
    """Which rows are seen at which step.

    n : samples. batch_size : samples of one optimiser step over all processes and accumulated parts. world, rank :
    processes, and which one this is. accumulate : parts of a step that are passed one after the other. An epoch is a
    permutation from (seed, epoch); its remainder, another one each time, is left out.
    """

    n: int
    batch_size: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.n < self.batch_size:
            raise UsageError(
                f"{self.n} samples for a batch of {self.batch_size}: not one full batch. Lower --batch-size."
            )
        parts = self.world * self.accumulate
        if self.batch_size % parts:
            nearest = max(parts, self.batch_size // parts * parts)
            raise UsageError(
                f"--batch-size {self.batch_size} cannot be divided over {self.world} processes and {self.accumulate} "
                f"accumulated parts; take a multiple of {parts}, such as {nearest}."
            )

    @property
    def steps_an_epoch(self) -> int:
        """Full batches in one pass."""
        return self.n // self.batch_size

    def keys(self, step: int, part: int = 0) -> list[Key]:
        """``(epoch, row)`` of what this process sees in one part of a step."""
        epoch, number = divmod(step, self.steps_an_epoch)
        size = self.batch_size // (self.world * self.accumulate)
        first = number * self.batch_size + (part * self.world + self.rank) * size
        return [(epoch, int(row)) for row in _permutation(self.n, self.seed, epoch)[first : first + size]]

    def batches(self, start: int, total: int) -> Batches:
        """A batch sampler over the parts of the steps from ``start`` to ``total`` - 1."""
        return Batches(self, start, total)


@dataclass(frozen=True)
class Batches:
    """Lists of keys for a DataLoader, in order."""

    order: Order
    start: int
    total: int

    def __len__(self) -> int:
        return max(0, self.total - self.start) * self.order.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start, self.total):
            for part in range(self.order.accumulate):
                yield self.order.keys(step, part)


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)
