"""From any bit depth to eight bits, and from alpha to white: arithmetic on NumPy arrays."""

from __future__ import annotations

import numpy as np

TWELVE_BIT = 4_095


def to_eight_bit(values: np.ndarray, integer_bits: int | None = None) -> np.ndarray:
    """Scale grey values or colours of a deeper format to uint8.

    Parameters
    ----------
    values : array of any shape, integer or float
        Not finite values count as 0.
    integer_bits : int, optional
        16 when the file declares 16 unsigned bits: scaled by 65,535, or by 4,095 when no value exceeds that, since
        12-bit data in a 16-bit file would come out almost black. Without it the range decides: floats within
        [0, 1] are scaled by 255; values within [0, 255] stay; within [0, 4095] and [0, 65535] they are scaled by that
        maximum; anything else (negative, larger) is stretched from its own minimum to its own maximum.

    Returns
    -------
    uint8 array of the same shape, rounded to the nearest.
    """
    if values.dtype == np.uint8:
        return values
    floats = np.issubdtype(values.dtype, np.floating)
    if floats:
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if integer_bits == 16 and low >= 0:
        low, high = 0.0, float(TWELVE_BIT if high <= TWELVE_BIT else 65_535)
    elif low >= 0 and high <= 65_535:
        tops = ([1.0] if floats else []) + [255.0, float(TWELVE_BIT), 65_535.0]
        low, high = 0.0, next(top for top in tops if high <= top)
    return stretch(values, low, high)


def stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map ``low`` to 0 and ``high`` to 255, clip, round to uint8; all 0 when ``high`` is not above ``low``."""
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    scaled = (values.astype(np.float64) - low) * 255.0 / (high - low)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def composite_on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """``colour * alpha + 255 * (1 - alpha)`` for uint8 colour ``(C, H, W)`` and alpha ``(1, H, W)`` in [0, 1]."""
    return np.rint(colour * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8)
