"""What a data set holds: counts, a fingerprint of its content, exact duplicates, and groups that cross splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from offshelf.data.columns import class_names, label_array, notes
from offshelf.data.hf import datasets
from offshelf.data.images import read_bytes
from offshelf.engine.threads import readers
from offshelf.errors import DataError, ImageError

THREADS = 4
WINDOW = 1024  # rows whose bytes may wait in memory at once
PIECE = 32  # rows a thread takes at a time


@dataclass(frozen=True)
class Summary:
    """Counts and checks of one data set; the fields are those of ``data`` in a run's results."""

    n: int
    class_counts: dict[str, int]
    splits: dict[str, dict[str, int]]
    groups: int | None
    unlabelled: int
    fingerprint: str
    bad_files: list[dict[str, str]]
    duplicates: list[dict[str, list[str]]]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """A plain nested dictionary."""
        return asdict(self)


def summarise(dataset: datasets.Dataset, keys: Sequence[bytes | None] | None = None) -> Summary:
    """Sum a data set up; reads every picture's bytes once (nothing is decoded) unless their ``keys`` are known.

    A file that cannot be opened is listed under ``bad_files`` and left out of the fingerprint.
    """
    errors: dict[int, ImageError] = {}
    if keys is None:
        keys, errors = content_keys(dataset)
    labels = label_texts(dataset)
    readable = [row for row, key in enumerate(keys) if key]
    return Summary(
        n=len(dataset),
        class_counts=class_counts(dataset),
        splits=split_counts(dataset),
        groups=count_groups(dataset),
        unlabelled=count_unlabelled(dataset),
        fingerprint=fingerprint([keys[row] for row in readable], [labels[row] for row in readable]),
        bad_files=[{"path": error.path, "error": error.reason} for error in errors.values()],
        duplicates=duplicates(dataset, keys),
        notes=notes(dataset),
    )


def content_keys(dataset: datasets.Dataset, threads: int = THREADS) -> tuple[list[bytes | None], dict[int, ImageError]]:
    """SHA-256 of each picture's bytes (None where they cannot be had) and ``{row: error}`` for those rows."""
    images = dataset.select_columns(["image"]).with_format("arrow")
    keys: list[bytes | None] = []
    errors: dict[int, ImageError] = {}
    with readers(threads) as pool:
        for start in range(0, len(dataset), WINDOW):
            rows = images[start : start + WINDOW].column("image").to_pylist()
            pieces = [rows[first : first + PIECE] for first in range(0, len(rows), PIECE)]
            for found in (key for piece in pool.map(_keys, pieces) for key in piece):
                if isinstance(found, ImageError):
                    errors[len(keys)] = found
                keys.append(None if isinstance(found, ImageError) else found)
    return keys, errors


def _keys(images: list[dict[str, Any] | None]) -> list[bytes | ImageError]:
    return [_key(image or {}) for image in images]


def _key(image: dict[str, Any]) -> bytes | ImageError:
    try:
        data = read_bytes(image)
    except ImageError as error:
        return error
    if not data:
        return ImageError(image.get("path") or "image", "the file is empty (0 bytes); expected a picture")
    return hashlib.sha256(data).digest()


def fingerprint(keys: Sequence[bytes | None], labels: Sequence[str | None]) -> str:
    """SHA-256 over the sorted pairs of content hash and class name: equal on every machine, in any order of the rows.

    Parameters
    ----------
    keys : content hashes, see :func:`content_keys`; empty or None for a picture that cannot be read.
    labels : class names, None for no label.
    """
    lines = sorted(
        (key or b"").hex().encode() + b"\t" + (label or "").encode("utf-8") for key, label in zip(keys, labels)
    )
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


def duplicates(dataset: datasets.Dataset, keys: Sequence[bytes | None]) -> list[dict[str, list[str]]]:
    """Rows whose pictures are the same byte for byte, within and across splits.

    Returns
    -------
    list of {"paths": names of the rows, "splits": their splits, "labels": their class names}, in the order of the rows;
    the last two are empty where the data set has none.
    """
    places: dict[bytes, list[int]] = {}
    for row, key in enumerate(keys):
        if key:
            places.setdefault(key, []).append(row)
    twins = [rows for rows in places.values() if len(rows) > 1]
    if not twins:
        return []
    ids = _texts(dataset, "id") or [str(row) for row in range(len(dataset))]
    splits, labels = _texts(dataset, "split"), label_texts(dataset)
    return [
        {
            "paths": [str(ids[row]) for row in rows],
            "splits": [str(splits[row]) for row in rows] if splits else [],
            "labels": [str(labels[row]) for row in rows if labels[row] is not None],
        }
        for rows in twins
    ]


def class_counts(dataset: datasets.Dataset) -> dict[str, int]:
    """Rows of each class, classes without rows included; for multi-hot labels the rows that have it."""
    names = class_names(dataset)
    if "labels" in dataset.column_names:
        table = np.array(dataset["labels"][:], dtype=float).reshape(len(dataset), -1)
        names = names or [str(position) for position in range(table.shape[1])]
        return {name: int((table[:, position] > 0.5).sum()) for position, name in enumerate(names)}
    labels = label_array(dataset)
    return {name: int((labels == number).sum()) for number, name in enumerate(names)}


def split_counts(dataset: datasets.Dataset) -> dict[str, dict[str, int]]:
    """``{split: {class: rows}}`` in the order train, validation, test; empty when no splits are given."""
    splits = np.array(_texts(dataset, "split"), dtype=object)
    there = [split for split in ("train", "validation", "test") if (splits == split).any()]
    return {split: class_counts(dataset.select(np.flatnonzero(splits == split))) for split in there}


def count_groups(dataset: datasets.Dataset) -> int | None:
    """Number of distinct groups; None when there is no such column."""
    return len(set(_texts(dataset, "group")) - {None, ""}) if "group" in dataset.column_names else None


def count_unlabelled(dataset: datasets.Dataset) -> int:
    """Rows without any label."""
    if "labels" in dataset.column_names:
        return int(np.isnan(np.array(dataset["labels"][:], dtype=float)).all(axis=1).sum())
    return int((label_array(dataset) < 0).sum())


def label_texts(dataset: datasets.Dataset) -> list[str | None]:
    """Class name of each row, None for no label; for multi-hot labels the names joined by ``|``."""
    names = class_names(dataset)
    if "labels" in dataset.column_names:
        rows = dataset["labels"][:]
        names = names or [str(position) for position in range(len(rows[0]))]
        return ["|".join(name for name, value in zip(names, row) if value > 0.5) for row in rows]
    return [names[number] if number >= 0 else None for number in label_array(dataset)]


def check_groups(dataset: datasets.Dataset) -> None:
    """Refuse a data set in which one group (patient, site) stands in more than one split.

    Raises
    ------
    DataError
        Names up to three groups with their splits. Test pictures of a patient seen in training flatter every number.
    """
    groups, splits = _texts(dataset, "group"), _texts(dataset, "split")
    if not groups or not splits:
        return
    found: dict[str, Counter[str]] = {}
    for group, split in zip(groups, splits):
        if group and split:
            found.setdefault(group, Counter())[split] += 1
    leaking = {group: counts for group, counts in found.items() if len(counts) > 1}
    if leaking:
        named = "; ".join(f"{group} in {' and '.join(sorted(counts))}" for group, counts in islice(leaking.items(), 3))
        noun = "1 group stands" if len(leaking) == 1 else f"{len(leaking):,} groups stand"
        raise DataError(
            f"{noun} in more than one split ({named}); expected each group in one split alone. "
            "Mend the split column, or cross-validate instead with --folds 5."
        )


def _texts(dataset: datasets.Dataset, column: str) -> list[Any]:
    return list(dataset[column][:]) if column in dataset.column_names else []
