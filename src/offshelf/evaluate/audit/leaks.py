"""Leaks: what stands on both sides of a split, or would come to stand there."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np

from offshelf.evaluate.audit.finding import finding, named, several
from offshelf.evaluate.audit.material import Material

SHOWN = 12
SEEN = 0.01  # share of the pictures outside training that training has seen; from here on it is an alarm
# Names such as 00001613_000 or p12-3: share of those with a number before the last one, least share of those whose
# beginning others have too, and most pictures with one beginning.
NUMBERED, SHARING, LARGEST = 0.75, 0.05, 50


def leaks(material: Material, pairs: np.ndarray) -> dict[str, Any]:
    """Judge whether the test part of a split, or of a fold, has been seen in training.

    The rule: alarm when at least 1 % of the pictures outside training share their group, or a copy, with one in
    training; warning when fewer do, when a group or a pair of copies stands in two splits otherwise, when copies span
    two groups (then the groups are not what must stay together), when every picture of a class is of one group, or when
    there is no group column and the file names look like several pictures of one subject (at least 75 % end in a sign
    and a number, and at least 5 % share what stands before it with others, not more than 50 each); fine otherwise.

    Parameters
    ----------
    pairs : ``(m, 2)`` copies, exact ones among them.
    """
    straddling = _straddling(material)
    across_splits = _spanning(material, pairs, material.splits)
    across_groups = _spanning(material, pairs, material.groups)
    single = _single_group_classes(material)
    guessed = None if material.groups is not None else guessed_groups(material.names)
    said, todo = [], []
    if straddling:
        said.append(
            f"{several(len(straddling), 'group stands', 'groups stand')} in more than one split "
            f"({named([one['group'] for one in straddling])})."
        )
        todo.append("Move each group to one side of the split, or cross-validate with whole groups (--folds 5).")
    if len(across_splits):
        said.append(f"{several(len(across_splits), 'pair')} of copies stand on two sides of the split.")
        todo.append("Take the copies out of the training part, or move both to one side.")
    if len(across_groups):
        said.append(
            f"{several(len(across_groups), 'pair')} of copies span two groups: the groups do not hold together all "
            "that belongs together."
        )
        todo.append("Look whether the groups of such pairs are one subject under two names.")
    if single:
        said.append(f"All pictures of {named(single)} are of one group, so the class cannot be told from the group.")
        todo.append(f"Add pictures of {named(single)} from other groups.")
    if guessed is not None:
        said.append(
            f"There is no group column, but the file names look like {guessed['groups']:,} subjects with up to "
            f"{guessed['largest']} pictures each (such as {guessed['example']})."
        )
        todo.append("If these are subjects, put them into a table and name the column with --group-column.")
    if not said:
        said.append(_all_well(material))
    seen, tested = _seen(material, across_splits)
    if seen:
        said.append(
            f"In all {seen:,} of {tested:,} pictures outside training ({seen / tested:.1%}) have been seen there."
        )
    alarm = seen > 0 and seen >= SEEN * tested
    level = "alarm" if alarm else "warning" if todo else "fine"
    shown = [[material.picture(int(row)) for row in pair] for pair in [*across_splits, *across_groups][:SHOWN]]
    return finding(
        "leaks", "Groups and splits", level, " ".join(said), " ".join(todo), straddling=straddling, n_seen=seen,
        n_tested=tested, n_across_splits=len(across_splits), n_across_groups=len(across_groups),
        single_group_classes=single, guessed_groups=guessed, n_groups=_count(material.groups), shown=shown,
        pairs_across_splits=[[material.names[row] for row in pair] for pair in across_splits],
    )  # fmt: skip


def guessed_groups(names: list[str]) -> dict[str, Any] | None:
    """What stands before the last number of file names, when that looks like a subject with several pictures."""
    stems = [re.sub(r"\.\w{1,5}$", "", name.replace("\\", "/").rsplit("/", 1)[-1]) for name in names]
    parts = [re.fullmatch(r"(.*[0-9A-Za-z])[-_ .]+\(?\d{1,4}\)?", stem) for stem in stems]
    subjects = Counter(part[1] for part in parts if part)
    # The beginning must name somebody: photo_001, photo_002 have one beginning, and no number in it.
    numbered = sum(count for subject, count in subjects.items() if re.search(r"\d", subject))
    shared = sum(count for count in subjects.values() if count > 1)
    largest = max(subjects.values(), default=0)
    if numbered < NUMBERED * len(names) or shared < SHARING * len(names) or largest > LARGEST:
        return None
    example = next(stem for stem, part in zip(stems, parts) if part and subjects[part[1]] > 1)
    return {"groups": len(subjects), "largest": largest, "example": example}


def _straddling(material: Material) -> list[dict[str, Any]]:
    if material.groups is None or material.splits is None:
        return []
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for group, split in zip(material.groups, material.splits):
        if group is not None and split is not None:
            found[str(group)][str(split)] += 1
    return [{"group": group, "splits": dict(counts)} for group, counts in found.items() if len(counts) > 1]


def _spanning(material: Material, pairs: np.ndarray, column: np.ndarray | None) -> np.ndarray:
    """The pairs whose rows have different values in a column."""
    if column is None or not len(pairs):
        return pairs[:0]
    one, other = column[pairs[:, 0]], column[pairs[:, 1]]
    known = np.array([a is not None and b is not None and a != b for a, b in zip(one, other)], dtype=bool)
    return pairs[known]


def _seen(material: Material, across: np.ndarray) -> tuple[int, int]:
    """How many pictures outside training share a group or a copy with one inside, and how many are outside."""
    if material.splits is None:
        return 0, 0
    training = material.splits == "train"
    seen = np.zeros(len(material), dtype=bool)
    for pair in across:
        seen[pair] |= training[pair].any()
    if material.groups is not None:
        inside = {group for group in material.groups[training] if group is not None}
        seen |= np.array([group in inside for group in material.groups], dtype=bool)
    return int((seen & ~training).sum()), int((~training).sum())


def _single_group_classes(material: Material) -> list[str]:
    if material.groups is None or not material.labelled:
        return []
    found: dict[int, set[Any]] = defaultdict(set)
    for row, (label, group) in enumerate(zip(material.labels, material.groups)):
        if label >= 0:
            found[int(label)].add(("row", row) if group is None else group)
    return [material.classes[label] for label, groups in sorted(found.items()) if len(groups) == 1]


def _all_well(material: Material) -> str:
    given = [name for name, column in (("groups", material.groups), ("splits", material.splits)) if column is not None]
    if not given:
        return "There are neither groups nor splits, and the file names do not look like several pictures of a subject."
    if len(given) == 2:
        return "No group and no pair of copies stands on two sides of the split."
    if given == ["splits"]:
        return "No pair of copies stands on two sides of the split. There is no group column."
    return "No pair of copies spans two groups, and every class has several groups."


def _count(column: np.ndarray | None) -> int | None:
    return None if column is None else len({value for value in column if value is not None})
