"""WebDataset archives: in a .tar, files that share a name up to its first dot are one sample (a.jpg, a.cls, a.json).

Read with the standard library, in order, nothing unpacked to disk.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from offshelf.data.adopt import Choices, adopt
from offshelf.data.columns import IMAGE_TYPE, split_of_file, split_rank, with_notes
from offshelf.data.folders import is_image_name
from offshelf.data.hf import datasets
from offshelf.data.tables import combine, table_of_rows
from offshelf.errors import DataError

TARS = (".tar", ".tar.gz", ".tgz")
IN_MEMORY = 4 * 2**30  # bytes: rows of archives carry their pictures, so all of them are in memory
CHUNK = 512 * 2**20  # an Arrow array of bytes ends at 2 GiB


def is_tar_name(name: str) -> bool:
    """Whether the ending is that of an archive that is read."""
    return name.lower().endswith(TARS)


def read_tars(files: Sequence[Path], root: Path, choices: Choices) -> datasets.Dataset:
    """Read WebDataset archives.

    A sample's picture is the member with an ending of a picture; ``cls`` is its class (a number or a name), and the
    fields of ``json`` (``label``, ``group``, ``id``, ...) become columns. Splits come from the archives' names when
    each starts with one (``train-0000.tar``). ``id`` is ``archive/key``.

    Raises
    ------
    DataError
        A damaged archive, no picture in any, or more than 4 GiB in all.
    """
    size = sum(file.stat().st_size for file in files)
    if size > IN_MEMORY:
        raise DataError(
            f"{root}: {size / 2**30:.1f} GiB of archives; expected at most {IN_MEMORY // 2**30} GiB, since they "
            "are held in memory. Unpack them into a folder and use that."
        )
    splits = [split_of_file(file.name.split(".")[0]) for file in files]
    known = all(split is not None for split in splits)
    parts = []
    remarks: list[str] = []
    ids: list[str] = []
    for file, split in sorted(zip(files, splits), key=lambda pair: split_rank(pair[1]) if known else 0):
        keys, table = _read_archive(file, remarks)
        if keys:
            stem = file.name.split(".")[0]
            ids += [f"{stem}/{key}" for key in keys]
            parts.append((split if known else None, table, stem))
    if not parts:
        raise DataError(f"{root}: no picture in any archive; expected members such as 0001.jpg beside 0001.cls.")
    raw, _, more = combine(parts)
    return with_notes(adopt(raw, str(root), choices, ids), remarks + more)


def _read_archive(file: Path, remarks: list[str]) -> tuple[list[str], datasets.Dataset]:
    keys: list[str] = []
    pictures: list[dict[str, Any]] = []
    fields: list[dict[str, Any]] = []
    bare = 0
    for key, members in _samples(file):
        images = sorted((suffix for suffix in members if is_image_name("." + suffix)), key=len)
        if not images:
            bare += 1
            continue
        keys.append(key)
        pictures.append({"bytes": members[images[0]], "path": f"{key}.{images[0]}"})
        fields.append(_fields(file, key, members))
    if bare:
        remarks.append(f"{bare:,} samples of {file.name} hold no picture and were left out.")
    if not keys:
        return [], datasets.Dataset(pa.table({}))
    table = table_of_rows(fields).data.table if any(fields) else pa.table({})
    if "image" in table.column_names:
        table = table.drop_columns(["image"])  # a field of the JSON; the picture itself is the image
    return keys, datasets.Dataset(table.append_column("image", _chunked(pictures)))


def _chunked(pictures: list[dict[str, Any]]) -> pa.ChunkedArray:
    chunks, start, size = [], 0, 0
    for index, picture in enumerate(pictures):
        size += len(picture["bytes"])
        if size > CHUNK:
            chunks.append(pa.array(pictures[start : index + 1], IMAGE_TYPE))
            start, size = index + 1, 0
    chunks.append(pa.array(pictures[start:], IMAGE_TYPE))
    return pa.chunked_array(chunks, IMAGE_TYPE)


def _samples(file: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples in the archive's order: key and, by suffix, the bytes of its members."""
    current: str | None = None
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(file, "r|*") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                if not member.isfile() or base.startswith(".") or "." not in base:
                    continue
                stem, suffix = base.split(".", 1)
                key = f"{folder}/{stem}" if folder else stem
                if key != current:
                    if current is not None:
                        yield current, members
                    current, members = key, {}
                handle = archive.extractfile(member)
                assert handle is not None  # isfile() holds
                members[suffix.lower()] = handle.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{file}: not a tar archive, or cut short ({error}). Copy or make it again.") from error
    if current is not None:
        yield current, members


def _fields(file: Path, key: str, members: dict[str, bytes]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    try:
        if "json" in members:
            found = json.loads(members["json"])
            row.update(found if isinstance(found, dict) else {})
        if "cls" in members:
            row["label"] = members["cls"].decode("utf-8").strip()
        if "txt" in members:
            row["text"] = members["txt"].decode("utf-8").strip()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file}, sample {key}: its json, cls or txt member cannot be read ({error}).") from error
    return row
