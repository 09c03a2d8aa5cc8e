"""Any table becomes a data set of ours: its columns are found by name or type, checked, and given their usual names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offshelf.data.columns import (
    GROUP_NAMES,
    IMAGE,
    PATH_NAMES,
    RESERVED,
    class_names,
    dataset_of,
    find_column,
    image_column,
    split_texts,
    texts_of,
    values_of,
    with_notes,
)
from offshelf.data.hf import datasets
from offshelf.data.labels import read_labels
from offshelf.errors import DataError

TEXT = ("string", "large_string", "string_view")
BINARY = ("binary", "large_binary", "binary_view")


@dataclass(frozen=True)
class Choices:
    """What the user said about the columns; None: find it."""

    path_column: str | None = None
    label_column: str | Sequence[str] | None = None
    group_column: str | None = None
    allow_outside: bool = False
    label_separator: str | None = None

    @property
    def any(self) -> bool:
        """Whether anything was said at all."""
        return self != Choices()


def adopt(
    raw: datasets.Dataset, name: str, choices: Choices, ids: Sequence[str], folder: Path | None = None
) -> datasets.Dataset:
    """Give a table the columns that every data set has.

    Parameters
    ----------
    raw : Dataset
        The table as it was read.
    name : str
        What to call the source in errors.
    ids : sequence of str
        Names for rows that have neither an ``id`` nor a path.
    folder : Path, optional
        Where relative paths start and outside of which none may lead; None for data already in the program's hands.
    """
    if not len(raw):
        raise DataError(f"{name}: there are no rows; expected at least one picture.")
    raw = raw.with_format(None)
    columns = raw.column_names
    old_labels = class_names(raw)
    remarks: list[str] = []
    image = find_image_column(raw, name, choices.path_column)
    used = {image}
    new: dict[str, tuple[Any, Any]] = {}  # our name -> (values, feature)

    pictures, row_names = _pictures(raw, image, name, choices, folder, remarks)
    if pictures is not None:
        new["image"] = (pictures, IMAGE)

    labels = read_labels(raw, name, choices.label_column, exclude=used, separator=choices.label_separator)
    used |= set(labels.columns)
    remarks += labels.remarks
    if labels.feature is not None:
        new[labels.kind] = (labels.values, labels.feature)
    names = labels.names if labels.kind == "labels" and labels.names else None
    if names is None and labels.kind == "labels":
        names = old_labels or None

    group = find_column(name, columns, choices.group_column, GROUP_NAMES, "group")
    for ours, column in (("group", group), ("source", find_column(name, columns, None, ("source",), "source"))):
        if column is not None and column not in used:
            used.add(column)
            new[ours] = (texts_of(raw, column, name), datasets.Value("string"))
            if column != ours:
                remarks.append(f"The {ours} of each row is read from the column {column!r}.")
    split = find_column(name, columns, None, ("split",), "split")
    if split is not None and split not in used:
        used.add(split)
        new["split"] = (split_texts(texts_of(raw, split, name), name), datasets.Value("string"))
    new["id"] = (_ids(raw, used, row_names or list(ids), name, remarks), datasets.Value("string"))
    return with_notes(_build(raw, image, used, new, remarks), remarks, names)


def find_image_column(raw: datasets.Dataset, name: str, wanted: str | None) -> str:
    """The column with pictures (bytes) or with paths to them."""
    if wanted is not None:
        column = find_column(name, raw.column_names, wanted, (), "pictures")
        assert column is not None  # find_column has raised otherwise
        if not (is_picture(raw.features[column]) or _is_text(raw.features[column])):
            raise DataError(
                f"{name}: column {wanted!r} holds {raw.features[column]}; expected pictures or their paths."
            )
        return column
    pictures = [column for column, feature in raw.features.items() if is_picture(feature)]
    if "image" in pictures or len(pictures) == 1:
        return "image" if "image" in pictures else pictures[0]
    if pictures:
        raise DataError(
            f"{name}: several columns hold pictures ({', '.join(pictures)}); expected one. Name it with path_column."
        )
    texts = [column for column, feature in raw.features.items() if _is_text(feature)]
    found = find_column(name, texts, None, PATH_NAMES, "pictures")
    if found is None:
        raise DataError(
            f"{name}: no column with pictures; expected picture bytes, or paths in a column named "
            f"{', '.join(PATH_NAMES)}. It has: {', '.join(raw.column_names)}. Name the right one with path_column."
        )
    return found


def is_picture(feature: Any) -> bool:
    """Whether a column of this type holds encoded pictures."""
    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Value) and feature.dtype in BINARY


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in TEXT


def _pictures(
    raw: datasets.Dataset, column: str, name: str, choices: Choices, folder: Path | None, remarks: list[str]
) -> tuple[Any, list[str] | None]:
    """A new image column and names of its rows, or (None, None) when the column can stay as it is."""
    if _is_text(raw.features[column]):
        texts = [None if text is None else str(text) for text in values_of(raw, column)]
        base, free = (folder, choices.allow_outside) if folder is not None else (Path.cwd(), True)
        paths, names = resolve_paths(texts, base, name, free)
        remarks += _absent(paths, name)
        return image_column([None] * len(paths), paths), names
    if folder is None or isinstance(raw.features[column], datasets.Value):
        return None, None
    stored = raw.select_columns([column]).cast_column(column, IMAGE).with_format("arrow")[:].column(column)
    if not any(chunk.field("bytes").null_count for chunk in stored.chunks):
        return None, None
    rows = [row or {"bytes": None, "path": None} for row in stored.to_pylist()]
    paths, names = resolve_paths(
        [row["path"] if row["bytes"] is None else "." for row in rows], folder, name, choices.allow_outside
    )
    kept = [row["path"] if row["bytes"] is not None else path for row, path in zip(rows, paths)]
    remarks += _absent([path for row, path in zip(rows, paths) if row["bytes"] is None], name)
    return image_column([row["bytes"] for row in rows], kept), None


def resolve_paths(
    texts: Sequence[str | None], folder: Path, name: str, allow_outside: bool
) -> tuple[list[str], list[str]]:
    """Absolute paths for the paths of a manifest, and their names relative to its folder.

    Raises
    ------
    DataError
        A row has no path, or leads outside the folder; rows are counted from 1, the header left aside.
    """
    base = os.path.abspath(folder)  # noqa: PTH100 (Path.resolve would follow links that are meant to be followed late)
    bases = {base, os.path.realpath(folder)}
    paths, names = [], []
    for row, text in enumerate(texts, start=1):
        if not text or not text.strip() or "\0" in text:
            raise DataError(
                f"{name}, row {row}: no path; expected the path of a picture. Fill it in or remove the row."
            )
        path = os.path.normpath(os.path.join(base, text))  # noqa: PTH118 (once a row)
        home = next((b for b in bases if path == b or path.startswith(b.rstrip(os.sep) + os.sep)), None)
        if home is None and not allow_outside:
            raise DataError(
                f"{name}, row {row}: the path {text!r} lies outside the table's folder {base}; expected one "
                "inside it. Move the table above its pictures, or allow it with allow_outside."
            )
        paths.append(path)
        names.append((path if home is None else os.path.relpath(path, home)).replace(os.sep, "/"))
    return paths, names


def _absent(paths: Sequence[str], name: str) -> list[str]:
    absent = [path for path in paths if not os.path.exists(path)]  # noqa: PTH110 (once a row)
    if not absent:
        return []
    first = ", ".join(absent[:3])
    if len(absent) == len(paths):
        raise DataError(
            f"{name}: not one of its {len(paths):,} files is there; looked for {first}. "
            "Expected paths relative to the table's own folder. Mend the paths or move the table."
        )
    return [f"{len(absent):,} of {len(paths):,} listed files are absent ({first}); they count as unreadable."]


def _ids(raw: datasets.Dataset, used: set[str], default: list[str], name: str, remarks: list[str]) -> list[str]:
    column = find_column(name, [column for column in raw.column_names if column not in used], None, ("id",), "id")
    if column is None:
        return default
    used.add(column)
    ids = [text or other for text, other in zip(texts_of(raw, column, name), default)]
    repeated = [text for text, n in Counter(ids).items() if n > 1]
    if repeated:
        remarks.append(f"{len(repeated):,} ids stand in more than one row ({', '.join(repeated[:3])}).")
    return ids


def _build(
    raw: datasets.Dataset, image: str, used: set[str], new: dict[str, tuple[Any, Any]], remarks: list[str]
) -> datasets.Dataset:
    extras = [c for c in raw.column_names if c not in used and c not in RESERVED and not c.startswith("__index_level_")]
    dropped = [c for c in raw.column_names if c not in used and c in RESERVED]
    if dropped:
        remarks.append(f"The column {', '.join(dropped)} was left out: it was not chosen, or its name is taken here.")
    if "image" in new:
        if not extras:
            return dataset_of({k: v for k, (v, _) in new.items()}, {k: f for k, (_, f) in new.items()})
        built = raw.select_columns(extras)
    else:
        built = raw.select_columns([image, *extras])
        if image != "image":
            built = built.rename_column(image, "image")
        built = built.cast_column("image", IMAGE)
    for column in extras:
        if isinstance(built.features[column], datasets.Image):
            built = built.cast_column(column, IMAGE)
    for column, (values, feature) in new.items():
        built = built.add_column(column, values, feature=feature)
    return built
