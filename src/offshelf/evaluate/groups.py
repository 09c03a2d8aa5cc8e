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


def equal_pairs(keys: Sequence[bytes]) -> np.ndarray:
    """Pairs ``(m, 2)`` that join each row to the first one with the same key."""
    first: dict[bytes, int] = {}
    found = [(first[key], row) for row, key in enumerate(keys) if first.setdefault(key, row) != row]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def united(n: int, groups: np.ndarray | None, pairs: np.ndarray) -> np.ndarray:
    """Units ``(n,)`` 0, 1, ...: rows of one group, and rows joined by ``pairs (m, 2)``, belong together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = [np.asarray(pairs).reshape(-1, 2)[:, k].astype(np.int64) for k in (0, 1)]
    if groups is not None:
        named = np.array([not is_missing(value) for value in groups], dtype=bool)
        rows = np.flatnonzero(named)
        _, codes = np.unique(groups[rows].astype(str), return_inverse=True)
        holder = np.full(codes.max() + 1 if len(codes) else 0, -1)
        holder[codes[::-1]] = rows[::-1]  # the first row of each group
        first, second = np.concatenate([first, rows]), np.concatenate([second, holder[codes]])
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)
