"""Labels of a table: one class a row, several columns of yes and no, or several names a row (a list, or one text)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from offshelf.data.columns import LABEL_NAMES, find_column, sort_classes, texts_of, values_of
from offshelf.data.hf import datasets
from offshelf.errors import DataError, UsageError

YES, NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
UNKNOWN = {"-1", "-1.0", "nan", "na"}  # -1 is how chest X-ray sets write "uncertain"
NOTHING = {"no finding", "no findings", "none"}  # in place of names: none of them, and no name itself
NAN = float("nan")


@dataclass
class Labels:
    """What was found: ``kind`` is the name of the new column, ``feature`` its type (None: there are no labels)."""

    kind: str = "label"
    columns: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    feature: Any = None
    names: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def read_labels(
    raw: datasets.Dataset,
    name: str,
    wanted: str | Sequence[str] | None,
    exclude: set[str] | None = None,
    separator: str | None = None,
) -> Labels:
    """Find and read the labels of a table.

    Parameters
    ----------
    wanted : str, comma list or sequence of str, optional
        The column, or several for multi-hot ``labels``. Without it: ``label``, ``class``, ``target``, the only column
        typed as a class label, or ``labels``.
    exclude : set of str, optional
        Columns already taken for something else.
    separator : str, optional
        What stands between the names where one cell holds several.
    """
    columns = [column for column in raw.column_names if column not in (exclude or set())]
    several = _wanted(wanted, columns)
    if len(several) > 1:
        if separator is not None:
            raise UsageError(
                f"label_separator={separator!r} with {len(several)} label columns: a separator belongs to one column "
                "of names, several columns hold 0 and 1. Leave one of the two out."
            )
        return _from_columns(raw, name, [_existing(name, columns, column) for column in several])
    if several:
        column = _existing(name, columns, several[0])
    else:
        found = _find(raw, name, columns)
        if found is None:
            return Labels(remarks=["No label column (label, class or target) was found; read without labels."])
        column = found
    if _is_list(raw.features[column]):
        labels = _from_lists(raw, name, column)
        if column != "labels" and labels.feature is not None:
            labels.remarks.append(f"Labels are read from the column {column!r}.")
        return labels
    if separator is not None:
        return _from_separated(raw, name, column, separator)
    return _one_class(raw, name, column)


def _wanted(wanted: str | Sequence[str] | None, columns: Sequence[str]) -> list[str]:
    if wanted is None:
        return []
    if not isinstance(wanted, str):
        return list(wanted)
    if wanted in columns:
        return [wanted]
    return [part.strip() for part in wanted.split(",") if part.strip()]


def _existing(name: str, columns: Sequence[str], column: str) -> str:
    found = find_column(name, columns, column, (), "labels")
    assert found is not None  # find_column has raised otherwise
    return found


def _find(raw: datasets.Dataset, name: str, columns: Sequence[str]) -> str | None:
    found = find_column(name, columns, None, LABEL_NAMES, "labels")
    if found is not None:
        return found
    typed = [column for column in columns if isinstance(raw.features[column], datasets.ClassLabel)]
    if len(typed) == 1:
        return typed[0]
    if len(typed) > 1:
        raise DataError(
            f"{name}: several columns hold classes ({', '.join(typed)}); expected one named label. "
            "Name it with label_column."
        )
    return "labels" if "labels" in columns and _is_list(raw.features["labels"]) else None


def _is_list(feature: Any) -> bool:
    return isinstance(feature, list) or type(feature).__name__ in ("List", "LargeList", "Sequence")


def _one_class(raw: datasets.Dataset, name: str, column: str) -> Labels:
    feature = raw.features[column]
    texts = texts_of(raw, column, name)
    if all(text is None for text in texts):
        return Labels(columns=[column], remarks=[f"The label column {column!r} is empty; read without labels."])
    if isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
    else:
        names = sort_classes(text for text in texts if text is not None)
    number = {text: index for index, text in enumerate(names)}
    labels = Labels(columns=[column], feature=datasets.ClassLabel(names=names), names=names)
    labels.values = [None if text is None else number[text] for text in texts]
    if column != "label":
        labels.remarks.append(f"Labels are read from the column {column!r}.")
    missing = texts.count(None)
    if missing:
        labels.remarks.append(f"{missing:,} of {len(texts):,} rows have no label.")
    return labels


def _from_columns(raw: datasets.Dataset, name: str, columns: list[str]) -> Labels:
    table, uncertain = [], 0
    for column in columns:
        cells = []
        for row, text in enumerate(texts_of(raw, column, name), start=1):
            word = (text or "").lower()
            if word in YES or word in NO:
                cells.append(1.0 if word in YES else 0.0)
            elif not word or word in UNKNOWN:
                uncertain += bool(word)
                cells.append(NAN)
            else:
                raise DataError(
                    f"{name}, row {row}: column {column!r} holds {text!r}; expected 0 or 1 (yes, no, true, false), or "
                    "nothing for unknown, since several label columns were given."
                )
        table.append(cells)
    remarks = [f"{uncertain:,} label cells say -1 or NA and count as unknown."] if uncertain else []
    return _multi_hot([list(row) for row in zip(*table)], columns, columns, remarks)


def _from_lists(raw: datasets.Dataset, name: str, column: str) -> Labels:
    feature = raw.features[column]
    inner = feature[0] if isinstance(feature, list) else feature.feature
    rows = values_of(raw, column)
    if isinstance(inner, datasets.ClassLabel):
        names = list(inner.names)
        rows = [None if row is None else [names[index] for index in row] for row in rows]
    elif _are_hot(rows):
        width = max(len(row) for row in rows if row is not None)
        hot = [[NAN] * width if row is None else [NAN if v is None else float(v) for v in row] for row in rows]
        return _multi_hot(hot, [], [column], [])
    elif not isinstance(inner, datasets.Value):
        raise DataError(f"{name}: column {column!r} holds {feature}; expected lists of class names.")
    texts = [None if row is None else [str(value) for value in row] for row in rows]
    names = names if isinstance(inner, datasets.ClassLabel) else sort_classes(t for row in texts for t in row or [])
    if not names:
        return Labels(columns=[column], remarks=[f"The label column {column!r} is empty; read without labels."])
    hot = [[NAN] * len(names) if row is None else [float(text in row) for text in names] for row in map(_as_set, texts)]
    return _multi_hot(hot, names, [column], [])


def _from_separated(raw: datasets.Dataset, name: str, column: str, separator: str) -> Labels:
    texts = texts_of(raw, column, name)
    rows = [None if text is None else [part.strip() for part in text.split(separator)] for text in texts]
    rows = [None if row is None else [part for part in row if part] for row in rows]
    named = [None if row is None else {part for part in row if part.lower() not in NOTHING} for row in rows]
    names = sort_classes(part for row in named for part in row or ())
    if not names:
        return Labels(columns=[column], remarks=[f"The label column {column!r} names no label; read without labels."])
    remarks = [f"Labels are read from the column {column!r}, names between {separator!r}."]
    nothing = sum(row is not None and not row for row in named)
    words = sorted({part for row in rows for part in row or () if part.lower() in NOTHING})
    if nothing and words:
        remarks.append(
            f"{nothing:,} rows say {' or '.join(map(repr, words))} and have none of the {len(names)} labels."
        )
    missing = named.count(None)
    if missing:
        remarks.append(f"{missing:,} of {len(named):,} rows have an empty label and count as unknown.")
    hot = [[NAN] * len(names) if row is None else [float(part in row) for part in names] for row in named]
    return _multi_hot(hot, names, [column], remarks)


def _as_set(row: list[str] | None) -> set[str] | None:
    return None if row is None else set(row)


def _are_hot(rows: list[Any]) -> bool:
    """Whether lists are rows of one 0/1 table and not lists of names or numbers of classes."""
    filled = [row for row in rows if row is not None]
    if len({len(row) for row in filled}) != 1 or len(filled[0]) < 2:
        return False
    values = {v for row in filled for v in row if v is not None}
    return all(isinstance(v, (int, float)) and (v in (0, 1) or math.isnan(v)) for v in values)


def _multi_hot(rows: list[list[float]], names: list[str], columns: list[str], remarks: list[str]) -> Labels:
    feature = datasets.Sequence(datasets.Value("float32"), length=len(rows[0]))
    return Labels("labels", columns, rows, feature, names, remarks)
