"""Feature matrices and labels at the door of every head: finite float32 rows and one class a row, or a refusal."""

from __future__ import annotations

from typing import Any

import numpy as np

from offshelf.errors import DataError


def feature_matrix(X: Any, *, width: int | None = None, what: str = "features") -> np.ndarray:
    """Give ``X`` as a contiguous float32 array ``(n, d)``.

    Parameters
    ----------
    X : array-like, shape (n, d)
        One row an image.
    width : int, optional
        The number of columns seen when the estimator was fitted.
    what : str
        What the rows are called in a refusal.

    Raises
    ------
    DataError
        When ``X`` is not two-dimensional, has no row or no column, holds a NaN or an infinity (the rows are named), or
        has another width than ``width``.
    """
    rows = np.ascontiguousarray(np.asarray(X, dtype=np.float32))
    if rows.ndim != 2:
        raise DataError(f"{what} have shape {rows.shape}, expected two axes (n images, d values); reshape them first")
    if 0 in rows.shape:
        raise DataError(f"{what} have shape {rows.shape}, expected at least one row and one column; check the source")
    # One sum instead of a mask the size of the matrix: it is finite only when every member is.
    with np.errstate(invalid="ignore"):
        total = rows.sum(dtype=np.float64)
    if not np.isfinite(total):
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            named = ", ".join(map(str, bad[:10])) + (" ..." if len(bad) > 10 else "")
            raise DataError(
                f"{what} hold NaN or infinite values (or values beyond float32) in {len(bad)} of {len(rows)} rows: "
                f"{named}; expected finite numbers, so drop these images or compute their features again"
            )
    if width is not None and rows.shape[1] != width:
        raise DataError(
            f"{what} are {rows.shape[1]} wide, expected {width} as in fit; "
            "use the same backbones, read-out and grid as when it was fitted"
        )
    return rows


def class_codes(y: Any, n: int, *, at_least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Give the sorted classes ``(K,)`` of ``y`` and each row's position among them ``(n,)``.

    Raises
    ------
    DataError
        When there is not one label a row, a label is missing, or there are fewer than ``at_least`` classes.
    """
    if y is None:
        raise DataError("no labels were given, expected one a row; pass y to fit")
    labels = np.asarray(y)
    if labels.ndim != 1 or len(labels) != n:
        raise DataError(f"labels have shape {labels.shape}, expected ({n},): one class for each row of the features")
    missing = [i for i, v in enumerate(labels.tolist()) if v is None or v != v]
    if missing:
        named = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        raise DataError(f"{len(missing)} rows have no label: {named}; leave unlabelled rows out before fit")
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < at_least:
        raise DataError(
            f"all {n} rows have the label {classes[0]!r}, expected at least {at_least} classes to tell apart"
        )
    return classes, codes.astype(np.int64)
