"""Folds of rows with several labels: groups whole, every label spread as evenly over the test parts as it goes.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011), with groups in place of rows: the rarest label that
is left is dealt out first, each group to the fold that still wants most of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from offshelf.errors import DataError, UsageError
from offshelf.evaluate.groups import group_codes
from offshelf.evaluate.splits import Fold, check_folds, given_test_part


def label_folds(
    labels: np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    splits: Sequence[Any] | np.ndarray | None = None,
    n_folds: int = 5,
    seed: int = 0,
) -> list[Fold]:
    """Divide rows with several labels for measuring, as `offshelf.evaluate.splits.outer_folds` does with one.

    Parameters
    ----------
    labels
        ``(n, K)`` of 1 and 0, NaN unknown (counted as 0 here).
    groups, splits, n_folds, seed
        As there.

    Raises
    ------
    DataError
        Fewer than two groups, or a split column that cannot be used.
    UsageError
        ``n_folds`` below 2.
    """
    if n_folds < 2:
        raise UsageError(f"n_folds={n_folds}: at least 2 folds are needed; each row is tested by the others")
    codes = group_codes(groups, len(labels))
    part = None if splits is None else given_test_part(codes, groups, splits)
    if part is not None:
        return [Fold(np.flatnonzero(~part[0]), np.flatnonzero(part[0]), part[1])]
    number = int(codes.max()) + 1 if len(codes) else 0
    if number < 2:
        raise DataError(
            f"{len(labels)} images in {number} groups: at least 2 groups are needed, one to train and one to test. "
            "Add images of another group, or leave the group column out if its groups are not real"
        )
    folds = min(n_folds, number)
    note = f"{folds} folds instead of {n_folds}: there are {number} groups" if folds < n_folds else ""
    fold_of = dealt_out(np.nan_to_num(labels) > 0.5, codes, folds, seed)[codes]
    found = [
        Fold(np.flatnonzero(fold_of != k), np.flatnonzero(fold_of == k), f"fold {k + 1} of {folds}", note)
        for k in range(folds)
    ]
    check_folds(found, codes, whole=True)
    return found


def dealt_out(has: np.ndarray, codes: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """The fold (G,) of every group, from ``has (n, K)`` bool and group codes ``(n,)``; no fold stays empty."""
    draws = np.random.default_rng(seed)
    sizes = np.bincount(codes)
    counts = np.zeros((len(sizes), has.shape[1]))
    np.add.at(counts, codes, has)
    wanted = np.tile(counts.sum(axis=0) / n_folds, (n_folds, 1))
    room = np.full(n_folds, len(codes) / n_folds)
    fold_of = np.full(len(sizes), -1)
    order = draws.permutation(len(sizes))
    # One more round at the end, for the groups without any label.
    for _ in range(has.shape[1] + 1):
        open_ = order[fold_of[order] < 0]
        left = counts[open_].sum(axis=0)
        rarest = int(np.argmin(np.where(left > 0, left, np.inf))) if (left > 0).any() else None
        holders = open_ if rarest is None else open_[counts[open_, rarest] > 0]
        # The largest first: what comes late evens out what they left uneven.
        weight = sizes[holders] if rarest is None else counts[holders, rarest]
        for unit in holders[np.argsort(-weight, kind="stable")]:
            wish = room if rarest is None else wanted[:, rarest]
            best = np.flatnonzero(wish >= wish.max() - 1e-9)
            best = best[room[best] >= room[best].max() - 1e-9]
            chosen = int(draws.choice(best))
            fold_of[unit] = chosen
            wanted[chosen] -= counts[unit]
            room[chosen] -= sizes[unit]
    for empty in np.setdiff1d(np.arange(n_folds), fold_of):
        crowded = int(np.argmax(np.bincount(fold_of, minlength=n_folds)))
        fold_of[np.flatnonzero(fold_of == crowded)[-1]] = empty
    return fold_of
