"""What a protocol says about one backbone in one setting: a number, and the same number in resamples of what was asked.

The resamples hang on the seed and on which units (patients, pictures, episodes) were asked, never on the backbone. So
the replicates of two backbones in one setting are paired, whatever the metric, and their difference has an interval.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from offshelf.errors import DataError
from offshelf.evaluate.intervals import metric_cell
from offshelf.evaluate.resampling import resampled_weights

N_BOOT = 1000
DTYPE = np.dtype("<f4")


@dataclass(frozen=True, eq=False)
class Outcome:
    """One number with its replicates.

    metric : its name; higher is better. value : NaN where undefined. replicates : (B,). chance : what guessing gives.
    n : rows asked; units : independent groups among them. about : what else was measured or chosen, JSON-able.
    """

    metric: str
    value: float
    replicates: np.ndarray
    chance: float
    n: int
    units: int
    about: dict[str, Any] = field(default_factory=dict)

    def pack(self) -> tuple[dict[str, Any], bytes]:
        """As a store keeps it: a dictionary with the interval, and the replicates as little-endian float32."""
        cell = metric_cell(self.value, self.replicates, self.n)
        told = {"metric": self.metric, "chance": self.chance, "units": self.units, "about": self.about}
        return cell | told, self.replicates.astype(DTYPE).tobytes()


def replicates_of(blob: bytes) -> np.ndarray:
    """The replicates ``(B,)`` of a stored outcome."""
    return np.frombuffer(blob, dtype=DTYPE)


def of_rows(
    scores: np.ndarray,
    units: np.ndarray,
    *,
    metric: str,
    chance: float,
    strata: np.ndarray | None = None,
    seed: int = 0,
    n_boot: int = N_BOOT,
    about: dict[str, Any] | None = None,
) -> Outcome:
    """The outcome of one score a row: their mean, or the mean over strata of each stratum's mean.

    Parameters
    ----------
    scores : (n,) finite; 1 for right and 0 for wrong, or an average precision.
    units : (n,) codes 0 to G - 1 of what is drawn whole.
    strata : (n,) codes. With the class of each row as its stratum and right answers as scores this is balanced
        accuracy. A resample's mean is over the strata that it holds.

    Raises
    ------
    DataError
        When there is no row, or a score is not a number.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(scores):
        raise DataError(f"{metric}: no row was asked, so there is nothing to measure")
    if not np.isfinite(scores).all():
        raise DataError(f"{metric}: the score of row {int(np.flatnonzero(~np.isfinite(scores))[0])} is not a number")
    codes = np.zeros(len(scores), dtype=np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    inside = (codes == np.arange(codes.max() + 1)[:, None]).astype(np.float64)  # (strata, n)
    drawn = [_mean(inside, scores, weights) for weights in resampled_weights(units, n_boot, seed)]
    value = _mean(inside, scores, np.ones((len(scores), 1)))[0]
    return Outcome(
        metric, float(value), np.concatenate(drawn), chance, len(scores), int(units.max()) + 1, dict(about or {})
    )


def _mean(inside: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``(B,)`` mean over the strata present of the weighted means of each."""
    total = inside @ weights
    summed = (inside * scores) @ weights
    there = total > 0
    means = np.divide(summed, total, out=np.zeros_like(summed), where=there)
    return means.sum(axis=0) / there.sum(axis=0)
