"""Tables of pictures: CSV, TSV, JSON lines and Parquet, one file or a folder of Parquet files.

Cells of CSV and TSV are text and nothing else: an id 007 keeps its zeros, a class named NA lives, an empty label is a
missing one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from offshelf.data.adopt import Choices, adopt, find_image_column
from offshelf.data.columns import IMAGE, split_of_file, split_rank, texts_of, with_notes
from offshelf.data.hf import datasets
from offshelf.errors import DataError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
IN_MEMORY = 512 * 2**20  # bytes of Parquet held in memory; above that datasets maps a copy of its own from disk


def read_manifest(path: Path, choices: Choices) -> datasets.Dataset:
    """Read one table; relative paths in it start at its own folder."""
    raw = read_table(path)
    width = len(str(max(len(raw) - 1, 0)))
    ids = [f"{path.stem}/{row:0{max(width, 6)}d}" for row in range(len(raw))]
    return adopt(raw, str(path), choices, ids, path.parent)


def read_parquet_folder(files: Sequence[Path], root: Path, choices: Choices) -> datasets.Dataset:
    """Read a folder of Parquet files; splits come from names such as ``test-00000-of-00001.parquet``.

    Names count as splits only when each file's name starts with one; files without pictures are left out, with a note.
    """
    remarks: list[str] = []
    parts: list[tuple[str | None, datasets.Dataset, str]] = []
    for file in files:
        raw = read_table(file)
        if len(files) > 1 and not _has_pictures(raw, choices):
            remarks.append(f"{file.name} holds no pictures and was left out.")
            continue
        parts.append((split_of_file(file.stem), raw, file.stem))
    if not parts:
        raise DataError(
            f"{root}: none of its Parquet files holds pictures; expected a column of picture bytes or paths."
        )
    if any(split is None for split, _, _ in parts):
        if any(split is not None for split, _, _ in parts):
            odd = next(stem for split, _, stem in parts if split is None)
            remarks.append(f"File names are not read as splits, since {odd}.parquet names none.")
        parts = [(None, raw, stem) for _, raw, stem in parts]
    parts.sort(key=lambda part: split_rank(part[0]))
    raw, ids, more = combine(parts)
    base = files[0].parent
    return with_notes(adopt(raw, str(root), choices, ids, base), remarks + more)


def _has_pictures(raw: datasets.Dataset, choices: Choices) -> bool:
    try:
        find_image_column(raw, "", choices.path_column)
    except DataError:
        return False
    return True


def combine(
    parts: Sequence[tuple[str | None, datasets.Dataset, str]],
) -> tuple[datasets.Dataset, list[str], list[str]]:
    """Put tables of several files or splits together: ``(table, row names, notes)``.

    Class names that differ between parts are brought together by name, never by number.
    """
    remarks: list[str] = []
    ids = [f"{prefix}/{row:06d}" for _, raw, prefix in parts for row in range(len(raw))]
    tables = [_undecoded(raw.with_format(None)) for _, raw, _ in parts]
    shared = [column for column in tables[0].column_names if all(column in table.column_names for table in tables)]
    lost = sorted({column for table in tables for column in table.column_names} - set(shared))
    for column in list(shared):
        kinds = [table.features[column] for table in tables]
        if all(kind == kinds[0] for kind in kinds):
            continue
        if all(isinstance(kind, (datasets.ClassLabel, datasets.Value)) for kind in kinds):
            tables = [_as_text(table, column) for table in tables]
        else:
            shared.remove(column)
            lost.append(column)
    if lost:
        remarks.append(f"Columns that are not alike in all parts were left out: {', '.join(lost)}.")
    tables = [table.select_columns(shared) for table in tables]
    if parts[0][0] is not None and "split" not in (column.lower() for column in shared):
        tables = [
            table.add_column("split", [split] * len(table), feature=datasets.Value("string"))
            for (split, _, _), table in zip(parts, tables)
        ]
    whole = tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables)
    return whole, ids, remarks


def _undecoded(table: datasets.Dataset) -> datasets.Dataset:
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, IMAGE)
    return table


def _as_text(table: datasets.Dataset, column: str) -> datasets.Dataset:
    texts = texts_of(table, column, column)
    rest = table.remove_columns([column])
    return rest.add_column(column, texts, feature=datasets.Value("string"))


def read_table(path: Path) -> datasets.Dataset:
    """The table as it stands in the file, columns unchanged."""
    ending = path.suffix.lower()
    try:
        if ending == ".parquet":
            return _read_parquet(path)
        if ending in (".jsonl", ".ndjson"):
            return _read_json_lines(path)
        return _read_delimited(path, "\t" if ending == ".tsv" else None)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save the table as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); expected a readable table.") from error


def _read_parquet(path: Path) -> datasets.Dataset:
    try:
        if path.stat().st_size > IN_MEMORY:
            return datasets.load_dataset("parquet", data_files=[str(path)], split="train")
        table = pq.read_table(path, partitioning=None)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file, or damaged ({str(error).splitlines()[0]}).") from error
    for index, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):  # categories of pandas
            table = table.set_column(index, column.name, table.column(index).cast(column.type.value_type))
    return datasets.Dataset(table)


def _read_delimited(path: Path, delimiter: str | None) -> datasets.Dataset:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        head = lines.readline()
        lines.seek(0)
        mark = delimiter or max(",;\t", key=head.count)
        reader = csv.reader(lines, delimiter=mark, strict=True)
        try:
            header = [cell.strip() for cell in next(reader, [])]
            _check_header(path, header)
            rows = []
            for row in reader:
                if not any(row):
                    continue  # a blank line, or what a spreadsheet leaves below its last row
                if len(row) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(row)} cells; expected {len(header)} as in the header. "
                        "Put quotes around cells that hold the separator."
                    )
                rows.append(row)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {reader.line_num}: {error}; expected a table with quoted text cells."
            ) from error
    columns: list[Any] = list(zip(*rows)) if rows else [[] for _ in header]
    table = pa.table({name: pa.array(cells, pa.string()) for name, cells in zip(header, columns)})
    return datasets.Dataset(table)


def _check_header(path: Path, header: list[str]) -> None:
    if not any(header):
        raise DataError(f"{path}: the table is empty; expected a first line with column names.")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(
            f"{path}: column names stand twice in the first line ({', '.join(map(repr, repeated))}); "
            "expected each name once."
        )


def _read_json_lines(path: Path) -> datasets.Dataset:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not JSON ({error.msg}); expected one object a line."
                ) from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}.")
            rows.append(row)
    return table_of_rows(rows)


def table_of_rows(rows: Sequence[dict[str, Any]]) -> datasets.Dataset:
    """A table from dictionaries with ragged keys; a column of mixed types becomes text."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            array = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            array = pa.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string())
        columns[name] = array.cast(pa.string()) if pa.types.is_null(array.type) else array
    return datasets.Dataset(pa.table(columns))
