"""Folders of pictures: class folders, with or without train / validation / test above them, or one flat folder.

Scanned here and not by the image-folder loader of ``datasets``: that one takes words such as *test* anywhere in a
name for splits and leaves the remaining pictures out without a word, and it labels by the innermost folder.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from offshelf.data.columns import (
    FOLDER_SPLITS,
    IMAGE,
    dataset_of,
    image_column,
    normal_split,
    relative_id,
    sort_classes,
    split_rank,
    with_notes,
)
from offshelf.data.hf import datasets
from offshelf.errors import DataError

IMAGE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".apng",
    ".gif",
    ".webp",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
) + (".jp2", ".j2k", ".avif", ".ico", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".pcx", ".dcm", ".dicom")
TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx"})  # left by operating systems, nobody's data


@dataclass
class Level:
    """What lies directly in one folder."""

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


@dataclass
class Scan:
    """All pictures at or below one folder, and the files that are none."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    nested: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is no file at all."""
        return not self.images and not self.others


def is_image_name(name: str) -> bool:
    """Whether the ending is that of a picture format that can be read."""
    return name.lower().endswith(IMAGE_ENDINGS)


def list_folder(path: str) -> Level:
    """Sort the entries of a folder into pictures, folders and other files; hidden ones are passed over."""
    level = Level()
    try:
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda item: item.name):
                if entry.name.startswith(".") or entry.name.lower() in JUNK:
                    continue
                if entry.is_dir():
                    level.folders.append(entry.path)
                elif is_image_name(entry.name) and (entry.is_file() or entry.is_symlink()):
                    level.images.append(entry.path)  # a dangling link too: it is reported when it is read
                else:
                    level.others.append(entry.path)
    except OSError as error:
        raise DataError(
            f"{path}: this folder cannot be opened ({error.strerror}); expected a readable folder. "
            "Check its permissions or move it elsewhere."
        ) from error
    return level


def walk(path: str, above: Iterable[str] = ()) -> Scan:
    """Collect everything at or below ``path``; each real folder is entered once, so links cannot go in circles.

    ``above`` are folders that links must not lead back into.
    """
    scan = Scan()
    seen = {os.path.realpath(folder) for folder in above}
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        level = list_folder(folder)
        scan.images += level.images
        scan.others += level.others
        scan.nested = scan.nested or (folder != path and bool(level.images))
        waiting += reversed(level.folders)
    return scan


@dataclass
class Labelled:
    """Pictures of one split: the scan of each class folder, and those directly in the split's folder."""

    split: str | None
    root: str
    loose: list[str]
    classes: dict[str, Scan]


def read_folder(root: Path) -> datasets.Dataset | None:
    """Read a folder of pictures; None when there is not one picture in it.

    Returns
    -------
    Dataset
        ``image`` (absolute path), ``id`` (path relative to ``root``), ``label`` when there are class folders, ``split``
        when every folder with pictures directly below the root is named train, training, val, validation, valid or test
        (letter case does not matter).

    Raises
    ------
    DataError
        Loose pictures lie beside class folders with pictures.
    """
    top = list_folder(str(root))
    scans = {Path(folder).name: walk(folder, [str(root)]) for folder in top.folders}
    filled = [name for name, scan in scans.items() if scan.images]
    if not filled and not top.images:
        return None
    remarks: list[str] = []
    others = list(top.others)
    split_like = [name for name in filled if name.lower() in FOLDER_SPLITS]
    if filled and len(split_like) == len(filled):
        if top.images:
            raise _mixed(str(root), top.images, filled)
        parts = sorted((_read_split(root, name) for name in filled), key=lambda part: split_rank(part.split))
        others += [path for name in scans for path in scans[name].others]
        merged = Counter(part.split for part in parts)
        remarks += [
            f"Several folders are read as the split {split}: "
            f"{', '.join(Path(part.root).name for part in parts if part.split == split)}."
            for split, n in merged.items()
            if n > 1
        ]
    else:
        if split_like:
            rest = next(name for name in filled if name not in split_like)
            remarks.append(
                f"The folder {split_like[0]} is read as a class, since {rest} stands beside it; folders are read as "
                "splits only when all of them are named train, val, validation, valid or test."
            )
        parts = [Labelled(None, str(root), top.images, scans)]
        others += [path for scan in scans.values() for path in scan.others]
    return _assemble(root, parts, others, remarks)


def _read_split(root: Path, name: str) -> Labelled:
    folder = str(root / name)
    level = list_folder(folder)
    classes = {Path(child).name: walk(child, [str(root), folder]) for child in level.folders}
    return Labelled(normal_split(name), folder, level.images, classes)


def _assemble(root: Path, parts: list[Labelled], others: list[str], remarks: list[str]) -> datasets.Dataset:
    paths: list[str] = []
    labels: list[str | None] = []
    splits: list[str | None] = []
    names: set[str] = set()
    nested = False
    for part in parts:
        filled = [name for name, scan in part.classes.items() if scan.images]
        if part.loose and filled:
            raise _mixed(part.root, part.loose, filled)
        if part.loose:
            part.classes = {}  # a flat folder: an empty folder beside the pictures is not a class
        for name, scan in part.classes.items():
            if scan.images or scan.empty:  # a folder that holds only other files, such as notes, is not a class
                names.add(name)
            nested = nested or scan.nested
            paths += scan.images
            labels += [name] * len(scan.images)
        paths += part.loose
        labels += [None] * len(part.loose)
        splits += [part.split] * (len(paths) - len(splits))
    ids = [relative_id(path, root) for path in paths]
    columns: dict[str, object] = {"image": image_column([None] * len(paths), paths), "id": ids}
    features: dict[str, object] = {"image": IMAGE, "id": datasets.Value("string")}
    if names:
        ordered = sort_classes(names)
        number = {name: index for index, name in enumerate(ordered)}
        columns["label"] = [None if label is None else number[label] for label in labels]
        features["label"] = datasets.ClassLabel(names=ordered)
        remarks += _class_remarks(ordered, labels, nested)
    if parts[0].split is not None:
        columns["split"] = splits
        features["split"] = datasets.Value("string")
    return with_notes(dataset_of(columns, features), remarks + other_files(others))


def _class_remarks(names: list[str], labels: list[str | None], nested: bool) -> list[str]:
    remarks = []
    empty = sorted(set(names) - {label for label in labels if label is not None})
    if empty:
        remarks.append(f"No picture in the class {_listed(empty)}; the name is kept among the classes.")
    if nested:
        remarks.append("Class folders hold folders of their own; the first level below the root gives the label.")
    missing = sum(label is None for label in labels)
    if missing:
        remarks.append(f"{missing:,} pictures lie in no class folder and are read without a label.")
    return remarks


def other_files(paths: list[str]) -> list[str]:
    """Sentences that count the files which are not pictures and name tables that were not read."""
    if not paths:
        return []
    endings = Counter(Path(path).suffix.lower() or "no ending" for path in paths)
    counts = ", ".join(f"{n:,} {ending}" for ending, n in endings.most_common(5))
    noun = "file is not a picture and was" if len(paths) == 1 else "files are not pictures and were"
    remarks = [f"{len(paths):,} {noun} left out ({counts})."]
    tables = [Path(path).name for path in paths if path.lower().endswith(TABLE_ENDINGS)]
    if tables:
        remarks.append(
            f"{_listed(tables)} was not read; to use its labels, groups or splits give the table itself as the source."
        )
    return remarks


def _mixed(root: str, loose: list[str], folders: list[str]) -> DataError:
    return DataError(
        f"{root}: holds loose pictures ({len(loose):,}, such as {Path(loose[0]).name}) beside folders with pictures "
        f"({_listed(folders)}); expected either one folder a class or loose pictures alone. "
        "Move the loose pictures into class folders, or point to one of the folders."
    )


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
