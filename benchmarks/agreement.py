"""How alike two tables of features are, in plain NumPy and apart from the library's own guard."""

from __future__ import annotations

import numpy as np


def agreement(reference: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Compare features row by row.

    Parameters
    ----------
    reference, other : arrays, shape (n, d)
        The same rows, computed in two ways.

    Returns
    -------
    dict
        ``centred_median``, ``centred_min``: cosine of the rows after each table's mean row was taken off, which is what
        a classifier sees; ``plain_median``, ``plain_min``: cosine of the rows as they are, which flatters features with
        a large common part; ``largest_difference``: of any entry; ``typical_size``: root mean square of the reference,
        to read it by. A row of zeros has no direction and gives NaN.
    """
    if reference.shape != other.shape or reference.ndim != 2:
        raise ValueError(f"features of shapes {reference.shape} and {other.shape}: expected two equal (n, d)")
    a, b = reference.astype(np.float64), other.astype(np.float64)
    centred = _cosines(a - a.mean(axis=0), b - b.mean(axis=0))
    plain = _cosines(a, b)
    return {
        "centred_median": float(np.median(centred)),
        "centred_min": float(np.min(centred)),
        "plain_median": float(np.median(plain)),
        "plain_min": float(np.min(plain)),
        "largest_difference": float(np.abs(a - b).max()),
        "typical_size": float(np.sqrt((a**2).mean())),
    }


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
