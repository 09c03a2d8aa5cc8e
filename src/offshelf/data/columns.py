"""The columns that every data set has, whatever it came from, and how a source's own columns become them.

``image`` {"bytes", "path"}, ``label`` (ClassLabel), ``labels`` (multi-hot), ``group``, ``source``, ``split``, ``id``.
Any further column of the source is kept under its own name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from offshelf.data.hf import datasets
from offshelf.errors import DataError, near

IMAGE = datasets.Image(decode=False)
IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
RESERVED = ("image", "label", "labels", "group", "source", "split", "id")
PATH_NAMES = ("path", "file", "filename", "image", "image_path", "filepath")
LABEL_NAMES = ("label", "class", "target")
GROUP_NAMES = ("group", "patient", "patient_id", "subject")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
FOLDER_SPLITS = ("train", "training", "val", "validation", "valid", "test")
HEADER = "offshelf "  # first line of info.description: the mark that the following lines are ours


def normal_split(name: str) -> str | None:
    """``"Val"`` -> ``"validation"``; None for a word that names no split."""
    word = name.strip().lower()
    return next((split for split, words in SPLITS.items() if word in words), None)


def split_rank(split: str | None) -> int:
    """Place of a split in the usual order: train, validation, test; first for None."""
    return list(SPLITS).index(split) if split in SPLITS else -1


def split_of_file(stem: str) -> str | None:
    """The split a file name starts with: ``train``, ``train-00000-of-00001``, ``val_a``; otherwise None."""
    return normal_split(re.split(r"[-_.]", stem, maxsplit=1)[0])


def sort_classes(names: Iterable[str]) -> list[str]:
    """Class names in their order: numerically when all are whole numbers, by text otherwise."""
    unique = set(names)
    if all(re.fullmatch(r"[+-]?\d+", name) for name in unique):
        return sorted(unique, key=lambda name: (int(name), name))
    return sorted(unique)


def class_names(dataset: datasets.Dataset) -> list[str]:
    """Names of the classes of ``label``, or of the positions of ``labels``; empty when there are no labels."""
    feature = dataset.features.get("label")
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    return list(_state(dataset).get("labels", []))


def label_array(dataset: datasets.Dataset) -> np.ndarray:
    """``label`` as int64 ``(n,)`` with -1 where a row has none (or where there is no such column)."""
    if "label" not in dataset.column_names:
        return np.full(len(dataset), -1, dtype=np.int64)
    return np.array([-1 if value is None else value for value in dataset["label"]], dtype=np.int64)


def notes(dataset: datasets.Dataset) -> list[str]:
    """What a reader should know about how the source was read, one sentence each."""
    lines = (dataset.info.description or "").splitlines()
    return lines[1:] if lines and lines[0].startswith(HEADER) else []


def _state(dataset: datasets.Dataset) -> dict[str, Any]:
    lines = (dataset.info.description or "").splitlines()
    return json.loads(lines[0][len(HEADER) :]) if lines and lines[0].startswith(HEADER) else {}


def with_notes(
    dataset: datasets.Dataset, sentences: Sequence[str], labels: Sequence[str] | None = None
) -> datasets.Dataset:
    """The same data set with ``sentences`` added to its notes; the argument is left as it was."""
    state = _state(dataset)
    if labels is not None:
        state["labels"] = list(labels)
    lines = notes(dataset) + [" ".join(sentence.split()) for sentence in sentences]
    noted = dataset.with_format(None)  # a copy with an info of its own; the Arrow table is shared
    noted.info.description = "\n".join([HEADER + json.dumps(state), *lines])
    return noted


def image_column(byte_values: Sequence[bytes | None], paths: Sequence[str | None]) -> pa.StructArray:
    """Build the ``image`` column at once as one Arrow struct, a hundred times faster than row by row."""
    for path in paths:
        if path is not None and not path.isascii():
            _check_text(path)
    return pa.StructArray.from_arrays(
        [pa.array(byte_values, pa.binary()), pa.array(paths, pa.string())], fields=list(IMAGE_TYPE)
    )


def _check_text(path: str) -> None:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{ascii(path)}: this file name is not valid UTF-8; expected a name that can be written in a report. "
            "Rename the file."
        ) from None


def dataset_of(columns: dict[str, Any], features: dict[str, Any]) -> datasets.Dataset:
    """An in-memory data set from Arrow arrays or lists, with the given feature types."""
    schema = datasets.Features(features)
    types = schema.arrow_schema
    arrays = [
        value if isinstance(value, (pa.Array, pa.ChunkedArray)) else pa.array(value, types.field(name).type)
        for name, value in columns.items()
    ]
    table = pa.Table.from_arrays(arrays, names=list(columns))
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=schema))


def find_column(name: str, columns: Sequence[str], wanted: str | None, known: Sequence[str], what: str) -> str | None:
    """The column asked for, or the first known name that is there (letter case does not matter), or None."""
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise DataError(
            f"{name}: no column {wanted!r} for the {what}{near(wanted, columns) or '.'} "
            f"It has: {', '.join(map(str, columns))}."
        )
    lower: dict[str, str] = {}
    for column in columns:
        lower.setdefault(column.lower(), column)
    return next((lower[word] for word in known if word in lower), None)


def values_of(dataset: datasets.Dataset, column: str) -> list[Any]:
    """All values of one column as a Python list, without touching the others."""
    return dataset.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()


def texts_of(dataset: datasets.Dataset, column: str, name: str) -> list[str | None]:
    """One column as stripped text; whole numbers without a decimal point, empty and missing as None."""
    feature = dataset.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return [None if value is None or value < 0 else feature.names[value] for value in values_of(dataset, column)]
    return [_text(value, name, column) for value in values_of(dataset, column)]


def _text(value: Any, name: str, column: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, float):
        if np.isnan(value):
            return None
        if not value.is_integer():
            raise DataError(
                f"{name}: column {column!r} holds the fraction {value}; expected class names or whole numbers. "
                "Name the right column with --label-column."
            )
        value = int(value)
    if isinstance(value, (list, dict, bytes)):
        raise DataError(f"{name}: column {column!r} holds {type(value).__name__} values; expected one text a row.")
    return str(value).strip() or None


def split_texts(texts: Sequence[str | None], name: str) -> list[str]:
    """Normalise the words of a split column to train, validation and test."""
    words = {text: normal_split(text) if text else None for text in set(texts)}
    unknown = sorted(repr(text or "") for text, split in words.items() if split is None)
    if unknown:
        raise DataError(
            f"{name}: the split column holds {', '.join(unknown[:5])}; expected train, validation (val, valid, dev) "
            "or test in every row. Mend these values or remove the column."
        )
    return [str(words[text]) for text in texts]


def relative_id(path: str, root: Path) -> str:
    """A path below ``root`` as a stable name with forward slashes."""
    return path[len(str(root)) :].lstrip("/\\").replace("\\", "/") if path.startswith(str(root)) else path
