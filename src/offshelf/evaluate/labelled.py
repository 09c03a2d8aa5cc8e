"""Newly labelled pictures in the classes of a finished run, matched by name: one label each, or a set of valid ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from offshelf.data.columns import LABEL_NAMES, class_names, label_array
from offshelf.data.sources import open_dataset
from offshelf.errors import DataError, UsageError, near
from offshelf.evaluate.rows import require_labels, text_column

NAMED = 5  # unknown classes named in an error


@dataclass(frozen=True)
class Columns:
    """What the user said about the columns of a manifest; ``multilabel`` names those of the sets of valid labels."""

    multilabel: Sequence[str] = ()
    label_separator: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    allow_outside: bool = False


@dataclass
class Labelled:
    """Pictures and what is right for them.

    ``labels (n,)`` are class numbers of the run, -1 for none; ``sets (n, K)`` bool the valid classes, or None;
    ``known (n,)`` whether a picture says what is right for it; ``groups (n,)`` text or None.
    """

    dataset: Dataset
    labels: np.ndarray
    sets: np.ndarray | None
    known: np.ndarray
    groups: np.ndarray | None


def read_labelled(sources: Sequence[Any], classes: Sequence[str], columns: Columns, split: str | None) -> Labelled:
    """Read one or more sources as one.

    Raises
    ------
    DataError
        Without labels, without sets where some were asked for, or with classes that the run does not know.
    """
    parts = [_read(source, classes, columns, split) for source in sources]
    if len(parts) == 1:
        return parts[0]
    sets = [part.sets for part in parts if part.sets is not None]
    groups = [_of_source(part.groups, number, len(part.labels)) for number, part in enumerate(parts)]
    joined = np.concatenate(groups)
    return Labelled(
        concatenate_datasets([part.dataset.select_columns(["image", "id"]) for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate(sets) if sets else None,
        np.concatenate([part.known for part in parts]),
        joined if any(group is not None for group in joined) else None,
    )


def _of_source(groups: np.ndarray | None, number: int, n: int) -> np.ndarray:
    """Groups of equal names in two sources are two groups."""
    if groups is None:
        return np.full(n, None, dtype=object)
    return np.array([None if group is None else f"{number + 1}: {group}" for group in groups], dtype=object)


def _read(source: Any, classes: Sequence[str], columns: Columns, split: str | None) -> Labelled:
    name = str(source) if not isinstance(source, Dataset) else "this Dataset"
    about: dict[str, Any] = {
        "path_column": columns.path_column,
        "group_column": columns.group_column,
        "allow_outside": columns.allow_outside,
    }
    if not columns.multilabel:
        dataset = open_dataset(source, split, label_column=columns.label_column, **about)
        _require_one_label(dataset, name)
        labels = _one_label(dataset, classes, name)
        return Labelled(dataset, labels, None, labels >= 0, text_column(dataset, "group"))
    dataset = open_dataset(
        source,
        split,
        label_column=list(columns.multilabel),
        label_separator=columns.label_separator,
        **about,
    )
    sets, known = _valid_labels(dataset, classes, name, columns.multilabel)
    labels = np.full(len(dataset), -1)
    taken = {column.lower() for column in columns.multilabel}
    if columns.label_column is not None or not taken & set(LABEL_NAMES):
        single = open_dataset(source, split, label_column=columns.label_column, **about)
        if "label" in single.column_names:
            labels = _one_label(single, classes, name)
    return Labelled(dataset, labels, sets, known, text_column(dataset, "group"))


def _require_one_label(dataset: Dataset, name: str) -> None:
    if "labels" in dataset.column_names:
        raise DataError(
            f"{name}: several labels a picture. Name their column with --multilabel (--multilabel labels), or the "
            "column of one class with --label-column."
        )
    require_labels(dataset, name)


def _one_label(dataset: Dataset, classes: Sequence[str], name: str) -> np.ndarray:
    """Class numbers of the run ``(n,)``, -1 where a row has no label."""
    own, numbers = class_names(dataset), label_array(dataset)
    return np.append(matched(own, np.unique(numbers[numbers >= 0]), classes, name), -1)[numbers]


def _valid_labels(
    dataset: Dataset, classes: Sequence[str], name: str, asked: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The valid classes ``(n, K)`` and which rows say all of theirs ``(n,)``; a set may be empty."""
    said = " ".join(asked)
    if "labels" not in dataset.column_names:
        raise DataError(
            f"{name}: --multilabel {said} holds one class a picture; expected several columns of 0 and 1, a column of "
            "lists, or names with a sign between them (--label-separator '|')."
        )
    own = class_names(dataset)
    table = np.array(dataset["labels"][:], dtype=float).reshape(len(dataset), -1)
    if not own:
        raise DataError(
            f"{name}: the labels of --multilabel {said} have no names, so they cannot be matched with the classes of "
            "the run. Write names, or name one column of 0 and 1 for each class."
        )
    place = matched(own, np.flatnonzero((table == 1).any(axis=0)), classes, name)
    sets = np.zeros((len(table), len(classes)), dtype=bool)
    there = place >= 0
    sets[:, place[there]] = table[:, there] == 1
    return sets, ~np.isnan(table).any(axis=1)


def matched(own: Sequence[str], used: np.ndarray, classes: Sequence[str], name: str) -> np.ndarray:
    """For each class of the data its number in the run, by name; -1 for classes that no picture has.

    Parameters
    ----------
    own
        Class names of the data.
    used
        Numbers of those that some picture has.
    classes
        Class names of the run.
    name
        Of the data, for the error.

    Raises
    ------
    DataError
        Naming classes that some picture has and the run does not know.
    """
    number = {text: k for k, text in enumerate(classes)}
    unknown = [own[k] for k in used if own[k] not in number]
    if unknown:
        first = "; ".join(f"{text!r}{near(text, classes, 1)}" for text in unknown[:NAMED])
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        raise DataError(
            f"{name}: the run does not know the class {first}{more}. It knows {', '.join(classes[:10])}"
            f"{', ...' if len(classes) > 10 else ''}. Rename the classes, or leave these pictures out."
        )
    return np.array([number.get(text, -1) for text in own], dtype=np.int64)


def check_columns(columns: Columns, against: Any) -> None:
    """Refuse options that hang on ``--multilabel`` where it is not given."""
    if columns.multilabel:
        return
    if against is not None:
        raise UsageError(
            f"--against {against}: compares two sets of pictures with several valid labels; expected --multilabel "
            "COLUMN beside it."
        )
    if columns.label_separator is not None:
        raise UsageError(
            f"--label-separator {columns.label_separator!r}: expected --multilabel COLUMN beside it, the column whose "
            "names stand apart by that sign."
        )
