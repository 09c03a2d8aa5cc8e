"""Intervals over seeds and test rows together: a resample draws groups of rows, and seeds, both with replacement."""

from __future__ import annotations

import numpy as np


def over_seeds(drawn: np.ndarray, n_seeds: int, seed: int = 0) -> np.ndarray:
    """Join what each seed gave in the same resamples of the rows.

    Parameters
    ----------
    drawn
        ``(S, B)`` a number in B resamples of rows for each seed; one row serves all seeds where nothing hangs on one.
    n_seeds
        How many seeds a resample draws; S, or where S is 1 any number.
    seed
        Of the drawing; equal seeds draw alike, so that differences are paired.

    Returns
    -------
    replicates
        ``(B,)`` mean over the seeds drawn. Few seeds drawn again vary by the factor (S - 1) / S less than new ones
        would.
    """
    n_boot = drawn.shape[1]
    chosen = np.random.default_rng([seed, 13]).integers(0, n_seeds, (n_boot, n_seeds))
    return np.broadcast_to(drawn, (n_seeds, n_boot))[chosen.T, np.arange(n_boot)].mean(axis=0)
