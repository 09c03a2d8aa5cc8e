"""Inner folds: where a head chooses its regularisation, always inside the rows it was given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold

from offshelf.errors import UsageError


@dataclass(frozen=True)
class InnerFolds:
    """Index pairs to choose on, and what had to be changed to have them.

    ``pairs`` may be empty (no class has two rows): the head then takes its stated default. In every pair the classes of
    the test part occur in the training part, which holds at least two classes.
    """

    pairs: list[tuple[np.ndarray, np.ndarray]]
    notes: list[str] = field(default_factory=list)

    def recorded(self) -> dict[str, Any]:
        """What ``chosen`` tells about the folds."""
        told: dict[str, Any] = {"inner_folds": len(self.pairs)}
        if self.notes:
            told["notes"] = list(self.notes)
        return told


def inner_folds(codes: np.ndarray, cv: Any, random_state: int | None) -> InnerFolds:
    """Split rows for the choice of a setting.

    Parameters
    ----------
    codes : int array, shape (n,)
        Each row's class.
    cv : int or None or iterable of (train, test) index arrays
        Number of stratified, shuffled folds (None: 3), or the folds themselves, so that groups stay whole. A class with
        fewer rows than folds lowers their number; a class with a single row stays in every training part.
    random_state : int, optional
        Seed of the shuffle.

    Raises
    ------
    UsageError
        When ``cv`` is below 2, or an index lies outside the rows given.
    """
    if cv is None or isinstance(cv, int | np.integer):
        return _stratified(codes, 3 if cv is None else int(cv), random_state)
    return _given(codes, list(cv))


def _stratified(codes: np.ndarray, asked: int, random_state: int | None) -> InnerFolds:
    if asked < 2:
        raise UsageError(f"cv={asked}: expected at least 2 inner folds, or (train, test) index pairs")
    counts = np.bincount(codes)
    single = np.isin(codes, np.flatnonzero(counts == 1))
    shared = np.flatnonzero(~single)
    notes = []
    if single.any():
        notes.append(f"{int(single.sum())} classes have a single row, which stays in every inner training part")
    if not len(shared):
        return InnerFolds([], [*notes, "no class has two rows, so nothing could be chosen: defaults were used"])
    folds = min(asked, int(counts[counts > 1].min()))
    if folds < asked:
        notes.append(f"{folds} inner folds instead of {asked}: the smallest class has {folds} rows")
    splitter = StratifiedKFold(folds, shuffle=True, random_state=random_state)
    alone = np.flatnonzero(single)
    pairs = [
        (np.sort(np.concatenate([shared[train], alone])), shared[test])
        for train, test in splitter.split(shared, codes[shared])
    ]
    return _usable(codes, pairs, notes)


def _given(codes: np.ndarray, pairs: Iterable[Any]) -> InnerFolds:
    checked = []
    for number, pair in enumerate(pairs):
        if len(pair) != 2:
            raise UsageError(
                f"cv: entry {number} has {len(pair)} members, expected a pair (train, test) of row indices"
            )
        train, test = (np.asarray(part, dtype=np.int64) for part in pair)
        for part in (train, test):
            if len(part) and (part.min() < 0 or part.max() >= len(codes)):
                raise UsageError(
                    f"cv: fold {number} names row {int(part.max())}, but only {len(codes)} rows were given; "
                    "make the inner folds from the rows of this training part"
                )
        if np.intersect1d(train, test).size:
            raise UsageError(f"cv: fold {number} has rows in both parts; expected disjoint training and test rows")
        checked.append((train, test))
    return _usable(codes, checked, [])


def _usable(codes: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]], notes: list[str]) -> InnerFolds:
    """Leave out what cannot be judged: test rows of a class unseen in training, and folds of one class."""
    kept, unseen = [], 0
    for train, test in pairs:
        known = np.isin(codes[test], codes[train])
        unseen += int((~known).sum())
        if known.any() and len(np.unique(codes[train])) > 1:
            kept.append((train, test[known]))
    if unseen:
        notes = [*notes, f"{unseen} inner test rows were left out: their class is absent from that training part"]
    if len(kept) < len(pairs):
        notes = [*notes, f"{len(pairs) - len(kept)} inner folds were left out: they cannot judge a setting"]
    if not kept:
        notes = [*notes, "nothing could be chosen inside the rows given: defaults were used"]
    return InnerFolds(kept, notes)


def balanced_accuracy(codes: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the classes present of the share of their rows that were found."""
    counts = np.bincount(codes)
    found = np.bincount(codes, weights=predicted == codes)
    return float((found[counts > 0] / counts[counts > 0]).mean())
