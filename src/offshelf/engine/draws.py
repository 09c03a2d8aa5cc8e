"""Random numbers that belong to samples: a pure function of (seed, epoch, sample), whoever computes them.

A counter is hashed instead of a generator being advanced. So a batch of samples drawn at once, one by one, by another
number of workers or over several processes gets the same numbers, and no generator has a state that must be saved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """The random numbers of ``B`` samples in one epoch; every call gives further ones, an own row for each sample.

    Parameters
    ----------
    seed : int
        The one seed of the training.
    epoch : int
    rows : (B,) integers
        Which samples of the data set these are.
    """

    def __init__(self, seed: int, epoch: int, rows: Sequence[int] | np.ndarray) -> None:
        self._keys = _mix(np.asarray(rows, dtype=np.int64).astype(np.uint64) ^ _scalar(seed, epoch))
        self._call = 0

    def __len__(self) -> int:
        return len(self._keys)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """``(B, *shape)`` float64, evenly spread over [low, high)."""
        return low + (high - low) * ((self._bits(math.prod(shape)) >> np.uint64(11)) * 2.0**-53).reshape(-1, *shape)

    def integers(self, below: int | np.ndarray, *shape: int) -> np.ndarray:
        """``(B, *shape)`` int64, evenly spread over 0 to ``below`` - 1; ``below`` may differ from sample to sample."""
        return np.floor(self.uniform(*shape) * np.asarray(below)).astype(np.int64)

    def normal(self, *shape: int) -> np.ndarray:
        """``(B, *shape)`` float64, standard normal (Box and Muller 1958)."""
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(*shape)))
        return radius * np.cos(2.0 * math.pi * self.uniform(*shape))

    def seeds(self) -> np.ndarray:
        """``(B,)`` int64 from 0 to 2^31 - 1, for libraries that keep a generator of their own."""
        return self.integers(2**31)

    def _bits(self, count: int) -> np.ndarray:
        self._call += 1
        stream = _mix(self._keys + np.uint64(self._call * int(_GOLDEN) % 2**64))
        counters = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        return _mix(stream[:, None] + counters)


def _scalar(seed: int, epoch: int) -> np.uint64:
    return np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit of the input moves every bit of the output."""
    with np.errstate(over="ignore"):
        z = z + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
