"""From replicates to a metric cell: percentile intervals, Wilson's where they collapse, none where there is none.

A cell is ``{"value", "low", "high", "n", "interval"}``; undefined numbers are ``None``, so that it can be JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution
# With more undefined replicates than this, the rest no longer stand for the sampling distribution.
MOST_UNDEFINED = 0.05
Bounds = tuple[float, float]


def wilson_interval(rate: float, n: float, z: float = Z95) -> Bounds:
    """Wilson's score interval of a rate.

    Parameters
    ----------
    rate
        Observed share, 0 to 1.
    n
        Number of independent observations (groups), above 0.
    z
        Normal quantile; 1.96 for 95 %.

    Returns
    -------
    low, high
        Inside 0 to 1; never of zero width. NaN when ``n`` is 0 or the rate undefined. Source: Wilson (1927).
    """
    if not n > 0 or not np.isfinite(rate):
        return float("nan"), float("nan")
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # At the ends the formula gives 0 and 1 but for rounding.
    return (0.0 if rate == 0 else max(0.0, float(centre - half))), (
        1.0 if rate == 1 else min(1.0, float(centre + half))
    )


def f1_wilson(f1: float, n: float) -> Bounds:
    """Wilson's interval of the Jaccard share J = TP / (TP + FP + FN), carried to F1 = 2J / (1 + J)."""
    low, high = wilson_interval(f1 / (2 - f1), n)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def mean_of_intervals(values: Sequence[float], bounds: Sequence[Bounds]) -> Bounds:
    """Interval of the mean of independent rates from their own intervals.

    The distances to the bounds are added in squares (method of variance estimates recovery, Zou and Donner 2008).
    """
    value, low, high = np.asarray(values), np.asarray([b[0] for b in bounds]), np.asarray([b[1] for b in bounds])
    below = np.sqrt(np.sum((value - low) ** 2)) / len(value)
    above = np.sqrt(np.sum((high - value) ** 2)) / len(value)
    return float(value.mean() - below), float(value.mean() + above)


def metric_cell(
    value: float,
    replicates: np.ndarray | None,
    n: int,
    *,
    fallback: Callable[[], Bounds] | None = None,
    undefined_share: float | None = None,
    reflect: bool = False,
) -> dict[str, Any]:
    """One number with its 95 % interval.

    Parameters
    ----------
    value
        The number measured; NaN = undefined.
    replicates
        ``(B,)`` the same number in each resample, NaN where undefined, or ``None``.
    n
        Number of rows it rests on.
    fallback
        Gives the interval of a rate when that of the replicates has zero width ("wilson"); without one such a cell has
        no interval, since a width of nought is never the truth.
    undefined_share
        Share of undefined replicates when it is not that of ``replicates`` (mean over classes: the worst class's).
    reflect
        Turn the percentiles about the value (basic interval), for a metric whose resamples lie systematically above
        it; bounds are kept at 0 or above. Simulated calibration error of 0.05, n = 100: 89 % covered, percentiles 27 %;
        without any miscalibration about 73 % and 0 %.

    Returns
    -------
    cell
        ``interval`` is "bootstrap", "wilson", or "none" (null bounds): value undefined, or over 5 % of the replicates
        undefined.
    """
    empty: dict[str, Any] = {"value": None, "low": None, "high": None, "n": int(n), "interval": "none"}
    if not np.isfinite(value):
        return empty
    empty["value"] = float(value)
    if replicates is None:
        return empty
    defined = replicates[np.isfinite(replicates)]
    share = float(np.mean(~np.isfinite(replicates))) if undefined_share is None else undefined_share
    if share > MOST_UNDEFINED or not len(defined):
        return empty
    low, high = (float(bound) for bound in np.percentile(defined, [2.5, 97.5]))
    kind = "bootstrap"
    if high - low < 1e-12:
        if fallback is None:
            return empty
        (low, high), kind = fallback(), "wilson"
        if not (np.isfinite(low) and np.isfinite(high)):
            return empty
    elif reflect:
        low, high = max(0.0, 2 * float(value) - high), max(0.0, 2 * float(value) - low)
    return {"value": float(value), "low": low, "high": high, "n": int(n), "interval": kind}
