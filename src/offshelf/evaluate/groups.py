"""Group columns as integer codes: rows of one group (patient, site) belong together, a row without one stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from offshelf.errors import DataError


def is_missing(value: Any) -> bool:
    """Whether a cell of a group or source column says nothing: ``None``, an empty string or NaN."""
    return value is None or value == "" or (isinstance(value, float) and np.isnan(value))


def group_codes(groups: Sequence[Any] | np.ndarray | None, n: int) -> np.ndarray:
    """Number the groups 0, 1, ... in order of first appearance; every row without a group is a group of its own.

    Parameters
    ----------
    groups
        One value a row, ``(n,)``; ``None``, ``""`` and NaN mean "no group". ``None`` for the whole: no row has one.
    n
        Number of rows.

    Returns
    -------
    codes
        ``(n,)`` int64, values 0 to G - 1, each used at least once.

    Raises
    ------
    DataError
        When the column has another number of rows.
    """
    if groups is None:
        return np.arange(n, dtype=np.int64)
    values = groups.tolist() if isinstance(groups, np.ndarray) else list(groups)
    if len(values) != n:
        raise DataError(f"group column: {len(values)} values for {n} rows; give one value (or None) a row")
    seen: dict[Any, int] = {}
    codes = np.empty(n, dtype=np.int64)
    for row, value in enumerate(values):
        # A missing group gets a key that no group can have, so that it is never shared.
        key = ("row", row) if is_missing(value) else ("group", value)
        codes[row] = seen.setdefault(key, len(seen))
    return codes


def count_groups(codes: np.ndarray, chosen: np.ndarray | None = None) -> int:
    """Number of different groups among the ``chosen`` rows (boolean mask; all rows by default)."""
    return int(np.unique(codes if chosen is None else codes[chosen]).size)
