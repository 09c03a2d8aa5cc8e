"""``open_dataset``: one door for whatever a user points at."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offshelf.data.adopt import Choices, adopt
from offshelf.data.columns import IMAGE, dataset_of, image_column, normal_split, notes, split_rank, with_notes
from offshelf.data.folders import is_image_name, read_folder
from offshelf.data.hf import datasets
from offshelf.data.hub import load_from_hub
from offshelf.data.tables import TABLES, combine, read_manifest, read_parquet_folder
from offshelf.data.tars import is_tar_name, read_tars
from offshelf.errors import DataError, UsageError, near

__all__ = ["notes", "open_dataset"]

KINDS = (
    "a folder of class folders, a folder of pictures, a picture, a table (.csv, .tsv, .jsonl, .parquet), a folder of "
    "Parquet files or of WebDataset .tar files, a hub name (owner/name), or digits"
)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def open_dataset(
    source: Any,
    split: str | None = None,
    *,
    path_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    group_column: str | None = None,
    allow_outside: bool = False,
    label_separator: str | None = None,
) -> datasets.Dataset:
    """Open a source of pictures.

    Parameters
    ----------
    source : str, Path, list of paths, Dataset or DatasetDict
        A folder of class folders, with or without train / val / test above them; a flat folder (no labels); one picture
        or a list of them; a CSV, TSV, JSON lines or Parquet table; a folder of Parquet files or of WebDataset tars; a
        hub name (``owner/name`` or ``hf://owner/name``); ``"digits"`` (built in).
    split : str, optional
        Keep the rows of this split; names are understood as in the source (``val`` is ``validation``).
    path_column, label_column, group_column : str, optional
        Columns of a table where their names are not the usual ones. Several label columns (a list, or names joined by
        commas) give multi-hot ``labels``.
    allow_outside : bool
        Let the paths of a table lead outside its own folder.
    label_separator : str, optional
        What stands between the names where a cell of the label column holds several (``"Edema|Effusion"``: ``"|"``);
        they become multi-hot ``labels``. A cell that says "No Finding" or "none" has none of them, an empty one is
        unknown.

    Returns
    -------
    Dataset with ``image`` ({"bytes", "path"}, not decoded), ``id``, and where the source has them ``label``
    (ClassLabel) or ``labels`` (multi-hot, NaN for unknown), ``group``, ``source``, ``split`` (train, validation, test).

    Raises
    ------
    DataError
        The source does not exist or cannot be used as it stands; the message says why and what to do.
    UsageError
        Columns were named for a source that has none.
    """
    if label_separator is not None and not label_separator.strip():
        raise UsageError(f"label_separator={label_separator!r}: expected a sign or word between names, such as '|'.")
    choices = Choices(path_column, label_column, group_column, allow_outside, label_separator)
    if isinstance(source, datasets.Dataset):
        return _take(_adopt_dataset(source, choices), split, "this Dataset")
    if isinstance(source, datasets.DatasetDict):
        return _take(_adopt_dict(source, "this DatasetDict", choices, split), split, "this DatasetDict")
    if isinstance(source, (str, os.PathLike)):
        return _take(_open_named(os.fspath(source), choices, split), split, str(source))
    if isinstance(source, Sequence) and all(isinstance(item, (str, os.PathLike)) for item in source):
        _refuse_columns(choices, "a list of pictures")
        return _take(_read_list([os.fspath(item) for item in source]), split, "the list")
    raise UsageError(f"source of type {type(source).__name__}: expected {KINDS}, a list of paths or a Dataset.")


def _open_named(text: str, choices: Choices, split: str | None) -> datasets.Dataset:
    path = Path(text).expanduser()
    if not text.startswith("hf://"):
        if path.is_dir():
            return _open_folder(path, choices)
        if path.exists():
            return _open_file(path, choices)
        if text == "digits":
            _refuse_columns(choices, "digits")
            return digits()
    name = text.removeprefix("hf://")
    if HUB_NAME.fullmatch(name) and (text.startswith("hf://") or not Path(name.split("/")[0]).exists()):
        loaded = load_from_hub(name)
        if isinstance(loaded, datasets.DatasetDict):
            return _adopt_dict(loaded, name, choices, split)
        return _adopt_dataset(loaded, choices)
    raise _missing(text, path)


def _missing(text: str, path: Path) -> DataError:
    parent = path.parent
    siblings = sorted(os.listdir(parent)) if parent.is_dir() else []  # noqa: PTH208 (names are all that is needed)
    if path.parent == Path() and "digits" not in siblings:
        siblings.append("digits")
    hint = near(path.name, siblings)
    place = "" if parent.is_dir() else f" (nor is there a folder {parent})"
    return DataError(f"{text}: there is no such file or folder{place}{hint or '.'} Expected {KINDS}.")


def _open_folder(path: Path, choices: Choices) -> datasets.Dataset:
    root = Path(os.path.abspath(path))  # noqa: PTH100 (links stay as the user sees them)
    found = read_folder(root)
    if found is not None:
        _refuse_columns(choices, f"{path}, a folder of pictures,")
        return found
    files = sorted(file for file in root.iterdir() if file.is_file() and not file.name.startswith("."))
    nested = sorted((root / "data").glob("*.parquet")) if (root / "data").is_dir() else []  # as the hub lays sets out
    parquet = [file for file in files if file.suffix.lower() == ".parquet"] or nested
    if parquet:
        return read_parquet_folder(parquet, path, choices)
    tars = [file for file in files if is_tar_name(file.name)]
    if tars:
        return read_tars(tars, path, choices)
    tables = [file.name for file in files if file.suffix.lower() in TABLES]
    hint = f" To use the table, point to it: {path / tables[0]}." if tables else ""
    what = "the folder is empty" if not any(root.iterdir()) else "there is no picture in this folder"
    raise DataError(f"{path}: {what}; expected {KINDS}.{hint}")


def _open_file(path: Path, choices: Choices) -> datasets.Dataset:
    if path.suffix.lower() in TABLES:
        return read_manifest(path, choices)
    if is_tar_name(path.name):
        return read_tars([path], path, choices)
    if is_image_name(path.name):
        _refuse_columns(choices, f"{path}, a single picture,")
        return _of_paths([os.path.abspath(path)], [path.name])  # noqa: PTH100
    raise DataError(f"{path}: a file of a kind that is not read here; expected {KINDS}.")


def _read_list(paths: list[str]) -> datasets.Dataset:
    if not paths:
        raise DataError("the list of pictures is empty; expected at least one path.")
    folder = next((path for path in paths if Path(path).is_dir()), None)
    if folder is not None:
        raise DataError(
            f"{folder}: a folder in a list of pictures; expected files. Give the folder itself as the source."
        )
    absolute = [os.path.abspath(Path(path).expanduser()) for path in paths]  # noqa: PTH100
    absent = [path for path in absolute if not Path(path).exists()]
    if len(absent) == len(paths):
        raise DataError(f"not one of the {len(paths):,} listed pictures is there; looked for {', '.join(absent[:3])}.")
    found = _of_paths(absolute, paths)
    if not absent:
        return found
    return with_notes(found, [f"{len(absent):,} of {len(paths):,} listed files are absent ({', '.join(absent[:3])})."])


def _of_paths(paths: list[str], ids: list[str]) -> datasets.Dataset:
    columns = {"image": image_column([None] * len(paths), paths), "id": ids}
    return with_notes(dataset_of(columns, {"image": IMAGE, "id": datasets.Value("string")}), [])


def _adopt_dataset(dataset: datasets.Dataset, choices: Choices) -> datasets.Dataset:
    """A Dataset of ours passes as it is; any other gets its columns found."""
    ours = dataset.features.get("image") == IMAGE and "id" in dataset.column_names
    labelled = "label" not in dataset.features or isinstance(dataset.features["label"], datasets.ClassLabel)
    if ours and labelled and not choices.any and dataset.info.description.startswith("offshelf "):
        return dataset.with_format(None)
    raw, ids, remarks = combine([(None, dataset, "row")])
    return with_notes(adopt(raw, "this Dataset", choices, ids), remarks)


def _adopt_dict(parts: datasets.DatasetDict, name: str, choices: Choices, split: str | None) -> datasets.Dataset:
    """All splits in one data set. A split whose name is not a usual one must be asked for by that name."""
    if split in parts and normal_split(str(split)) is None:
        raw, ids, remarks = combine([(None, parts[split], str(split))])
        return with_notes(adopt(raw, name, choices, ids), [*remarks, f"Only the split {split!r} was read."])
    known = {key: normal_split(str(key)) for key in parts}
    unknown = [str(key) for key, normal in known.items() if normal is None]
    if unknown and len(parts) > 1:
        raise DataError(
            f"{name}: has splits named {', '.join(map(str, parts))}; expected train, validation and test. "
            f"Choose one with split, such as split={unknown[0]!r}."
        )
    ordered = sorted(parts.items(), key=lambda item: split_rank(known[item[0]]))
    raw, ids, remarks = combine([(known[key], part, str(key)) for key, part in ordered])
    return with_notes(adopt(raw, name, choices, ids), remarks)


def _refuse_columns(choices: Choices, what: str) -> None:
    if choices.any:
        raise UsageError(
            f"{what} has no columns; path_column, label_column, label_separator, group_column and allow_outside "
            "belong to tables. "
            "Leave them out, or give a table as the source."
        )


def _take(dataset: datasets.Dataset, split: str | None, name: str) -> datasets.Dataset:
    """The rows of one split; all of them when none was asked for."""
    if split is None or f"Only the split {split!r} was read." in notes(dataset):
        return dataset
    if "split" not in dataset.column_names:
        raise DataError(f"{name}: has no splits, so split={split!r} cannot be taken. Leave split out.")
    rows = np.array(dataset["split"], dtype=object)
    there = [word for word in ("train", "validation", "test") if (rows == word).any()]
    wanted = normal_split(split)
    if wanted not in there:
        raise DataError(f"{name}: has no split {split!r}{near(split, there) or '.'} It has: {', '.join(there)}.")
    return dataset.select(np.flatnonzero(rows == wanted))


def digits() -> datasets.Dataset:
    """The 1,797 handwritten digits (8 x 8 pixels, 17 levels of grey) that scikit-learn ships, as PNG."""
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    encoded = []
    for pixels in bunch.images:
        buffer = io.BytesIO()
        Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    names = [f"digits/{row:04d}" for row in range(len(encoded))]
    columns = {
        "image": image_column(encoded, [f"{name}.png" for name in names]),
        "id": names,
        "label": bunch.target.tolist(),
    }
    features = {
        "image": IMAGE,
        "id": datasets.Value("string"),
        "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)]),
    }
    return with_notes(
        dataset_of(columns, features), ["Built in: the handwritten digits of scikit-learn, 8 x 8 pixels."]
    )
