"""Which rows train and which rows test: given splits, or stratified folds that keep groups whole.

The assignment is a pure function of (labels, groups, seed) in the order given: the same rows in another order may fall
into other folds, so callers keep the order of the data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from offshelf.errors import DataError, UsageError
from offshelf.evaluate.groups import group_codes, is_missing

SPLIT_NAMES = ("train", "validation", "test")
# Greedy group stratification can leave a class out of a training part; other shuffles are tried, in this number.
ATTEMPTS = 20


@dataclass(frozen=True, eq=False)
class Fold:
    """One division of the rows.

    Attributes
    ----------
    train, test
        Row positions, ``(n_train,)`` and ``(n_test,)`` int64, ascending, without a common row or group.
    name
        What the test part is: ``"test split"``, ``"validation split, used as test part"`` or ``"fold 2 of 5"``.
    note
        A sentence for the reader when something differs from what was asked; empty otherwise. Equal in all folds.
    """

    train: np.ndarray
    test: np.ndarray
    name: str
    note: str = ""


def outer_folds(
    labels: Sequence[Any] | np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    splits: Sequence[Any] | np.ndarray | None = None,
    n_folds: int = 5,
    seed: int = 0,
    *,
    classes: Sequence[str] | None = None,
) -> list[Fold]:
    """Divide the rows for measuring.

    With ``splits`` there is one fold: training and validation rows train, test rows test; without test rows the
    validation rows are the test part, and the fold's name says so. Otherwise rows are cross-validated, stratified by
    class, groups whole; every row is in exactly one test part, and the number of folds falls to what the rarest class
    allows (its number of groups), with a note.

    Parameters
    ----------
    labels
        ``(n,)`` class of each row, none missing.
    groups
        ``(n,)`` group of each row or ``None``; a row whose group is missing stands alone.
    splits
        ``(n,)`` of ``"train"``, ``"validation"``, ``"test"``, or ``None``. When only ``"train"`` occurs, the rows are
        cross-validated.
    n_folds
        Wanted number of folds, at least 2.
    seed
        Seed of the shuffle.
    classes
        Names of the classes for messages; label ``k`` is called ``classes[k]``.

    Returns
    -------
    folds
        List of :class:`Fold`.

    Raises
    ------
    DataError
        One class only, a class with one row or one group, an unknown split name, no training rows, or a group on both
        sides of a given split.
    UsageError
        ``n_folds`` below 2.
    """
    y = np.asarray(labels)
    if n_folds < 2:
        raise UsageError(f"n_folds={n_folds}: at least 2 folds are needed; each row is tested by the others")
    codes = group_codes(groups, len(y))
    _check_two_classes(y, "the data", classes)
    given = None if splits is None else _given_split(y, codes, groups, splits, classes)
    if given is not None:
        return [given]
    possible = _possible_folds(y, codes, classes)
    folds = min(n_folds, possible)
    pairs = _stratified(y, codes, folds, seed)
    while pairs is None and folds > 2:
        folds -= 1
        pairs = _stratified(y, codes, folds, seed)
    if pairs is None:
        raise DataError(
            "groups: no division into two parts leaves every class in both; a few large groups hold most of the rows. "
            "Give a split column (train/test), or leave the group column out if its groups are not real"
        )
    note = ""
    if folds < n_folds:
        rarest = _rarest(y, codes)
        note = (
            f"{folds} folds instead of {n_folds}: class {_name(rarest, classes)} has "
            f"{np.count_nonzero(y == rarest)} images in {np.unique(codes[y == rarest]).size} groups, "
            "and every fold needs its share"
        )
        if groups is None:
            count = np.count_nonzero(y == rarest)
            note = f"{folds} folds instead of {n_folds}: class {_name(rarest, classes)} has {count} images"
    result = [Fold(train, test, f"fold {k} of {folds}", note) for k, (train, test) in enumerate(pairs, start=1)]
    check_folds(result, codes, whole=True)
    return result


def inner_folds(
    labels: Sequence[Any] | np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    n_folds: int = 3,
    seed: int = 0,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Index pairs inside the training rows for choosing regularisation; groups whole.

    A class that lies in one group only cannot be on both sides: its group always trains and is never in an inner test
    part. The number of folds falls to what the rarest other class allows.

    Parameters
    ----------
    labels
        ``(n,)`` labels of the training rows alone.
    groups
        ``(n,)`` groups of the same rows, or ``None``.
    n_folds
        Wanted number, at least 2.
    seed
        Seed of the shuffle.

    Returns
    -------
    pairs
        List of ``(train, test)`` positions into ``labels``. Empty when fewer than two classes can be divided: then
        nothing can be chosen and the caller takes its stated default.
    """
    y = np.asarray(labels)
    if n_folds < 2:
        raise UsageError(f"n_folds={n_folds}: at least 2 inner folds are needed")
    codes = group_codes(groups, len(y))
    dividable = np.ones(len(y), dtype=bool)
    while True:
        counts = {c: np.unique(codes[dividable & (y == c)]).size for c in np.unique(y[dividable])}
        single = [c for c, size in counts.items() if size < 2]
        if not single:
            break
        # The whole group stays in training, rows of other classes included; that may make another class single.
        dividable &= ~np.isin(codes, codes[dividable & np.isin(y, single)])
    if len(counts) < 2:
        return []
    rows, always = np.flatnonzero(dividable), np.flatnonzero(~dividable)
    for folds in range(min(n_folds, *counts.values()), 1, -1):
        pairs = _stratified(y[rows], codes[rows], folds, seed)
        if pairs is not None:
            return [(np.sort(np.concatenate([rows[train], always])), rows[test]) for train, test in pairs]
    return []


def check_folds(folds: Sequence[Fold], codes: np.ndarray, *, whole: bool) -> None:
    """Refuse folds with an empty part, a row or group on both sides, or (``whole``) a row not tested exactly once.

    Parameters
    ----------
    folds
        The folds to look at.
    codes
        ``(n,)`` group codes of all rows.
    whole
        Whether the test parts together must hold every row exactly once.

    Raises
    ------
    DataError
        Naming the fold and the group.
    """
    tested = np.zeros(len(codes), dtype=np.int64)
    for fold in folds:
        if not len(fold.train) or not len(fold.test):
            raise DataError(
                f"{fold.name}: {len(fold.train)} training rows and {len(fold.test)} test rows; both need some"
            )
        shared = np.intersect1d(codes[fold.train], codes[fold.test])
        if shared.size:
            raise DataError(f"{fold.name}: {shared.size} groups lie in both parts; keep every group on one side")
        np.add.at(tested, fold.test, 1)
    if whole and not np.all(tested == 1):
        row = int(np.flatnonzero(tested != 1)[0])
        raise DataError(f"row {row} is in {tested[row]} test parts; every row must be in exactly one")


def _given_split(
    y: np.ndarray, codes: np.ndarray, groups: Any, splits: Sequence[Any] | np.ndarray, classes: Sequence[str] | None
) -> Fold | None:
    """The one fold of a split column, or ``None`` when all rows are training rows."""
    part = given_test_part(codes, groups, splits)
    if part is None:
        return None
    test, name = part
    _check_two_classes(y[~test], "the training part of the split column", classes)
    unseen = np.setdiff1d(y[test], y[~test])
    note = ""
    if unseen.size:
        note = (
            f"class {', '.join(_name(c, classes) for c in unseen)} has test images but no training image, "
            "so each of them counts as wrong"
        )
    return Fold(np.flatnonzero(~test), np.flatnonzero(test), name, note)


def given_test_part(
    codes: np.ndarray, groups: Any, splits: Sequence[Any] | np.ndarray
) -> tuple[np.ndarray, str] | None:
    """Which rows ``(n,)`` a split column tests, and what that part is called; ``None`` when all rows train.

    Raises
    ------
    DataError
        An unknown split name, no training rows, or a group on both sides.
    """
    values = splits.tolist() if isinstance(splits, np.ndarray) else list(splits)
    if len(values) != len(codes):
        raise DataError(f"split column: {len(values)} values for {len(codes)} rows; give one a row")
    for row, value in enumerate(values):
        if is_missing(value) or value not in SPLIT_NAMES:
            raise DataError(
                f"split of row {row}: {value!r} is not one of {', '.join(SPLIT_NAMES)}; name the split of each row, or "
                "leave the column out to cross-validate"
            )
    column = np.asarray(values)
    if np.all(column == "train"):
        return None
    if np.any(column == "test"):
        test, name = column == "test", "test split"
    else:
        test, name = column == "validation", "validation split, used as test part"
    if np.all(test):
        raise DataError(f"split column: all {len(codes)} rows are {name.split()[0]} rows; mark some as train")
    shared = np.intersect1d(codes[~test], codes[test])
    if shared.size:
        names = [str(list(groups)[int(np.flatnonzero(codes == code)[0])]) for code in shared[:3]]
        raise DataError(
            f"group {', '.join(names)}: in the training and in the test part ({shared.size} such groups); mend the "
            "split column so that every group is on one side, or leave it out to cross-validate"
        )
    return test, name


def _stratified(
    y: np.ndarray, codes: np.ndarray, n_folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Stratified pairs with every class in every training part, or ``None`` if no shuffle tried gives such."""
    n_groups = int(codes.max()) + 1 if len(codes) else 0
    alone = np.unique(codes).size == len(codes)
    kind = StratifiedKFold if alone else StratifiedGroupKFold  # the same thing when nobody shares a group, but quicker
    every = np.unique(y)
    for attempt in range(1 if alone else ATTEMPTS):
        # Attempt 0 uses the seed itself; the others derive from it.
        state = seed if attempt == 0 else int(np.random.SeedSequence([seed, attempt, n_groups]).generate_state(1)[0])
        splitter = kind(n_splits=n_folds, shuffle=True, random_state=state)
        pairs = list(splitter.split(np.zeros(len(y)), y, None if alone else codes))
        if all(len(test) and np.array_equal(np.unique(y[train]), every) for train, test in pairs):
            return pairs
    return None


def _possible_folds(y: np.ndarray, codes: np.ndarray, classes: Sequence[str] | None) -> int:
    """The number of folds that the class with the fewest groups allows; at least 2."""
    rarest = _rarest(y, codes)
    n_rows, n_groups = int(np.count_nonzero(y == rarest)), int(np.unique(codes[y == rarest]).size)
    if n_rows < 2:
        raise DataError(
            f"class {_name(rarest, classes)} has 1 image; at least 2 are needed, one to train and one to test. "
            "Add images, or leave the class out"
        )
    if n_groups < 2:
        raise DataError(
            f"class {_name(rarest, classes)}: all {n_rows} images are in one group, which must stay on one side. "
            "Add images of another group, leave the class out, or leave the group column out if its groups are not real"
        )
    return n_groups


def _rarest(y: np.ndarray, codes: np.ndarray) -> Any:
    """The class with the fewest groups; among equals the one with the fewest rows, then the first."""
    return min(np.unique(y), key=lambda c: (np.unique(codes[y == c]).size, np.count_nonzero(y == c)))


def _check_two_classes(y: np.ndarray, where: str, classes: Sequence[str] | None) -> None:
    """Refuse data in which there is nothing to tell apart."""
    present = np.unique(y)
    if present.size < 2:
        held = (
            f"all {len(y)} images of {where} are of class {_name(present[0], classes)}"
            if len(y)
            else f"{where}: no rows"
        )
        raise DataError(f"{held}; at least 2 classes are needed. Add images of another class")


def _name(label: Any, classes: Sequence[str] | None) -> str:
    """The class as a reader knows it."""
    return repr(classes[int(label)]) if classes is not None else repr(label.item() if hasattr(label, "item") else label)
