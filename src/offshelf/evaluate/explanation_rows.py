"""Rows of explained pictures: numbers of a map, which rows stand for all, and files that are named after pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from offshelf.engine.files import write_through
from offshelf.interpret.map_pictures import Mapped

TEXTS = ("path", "truth", "predicted", "explained", "method", "file")
NUMBERS = ("confidence", "probability", "logit", "sum", "positive", "negative", "half", "offset")
AREAS = ("deletion", "insertion", "random_deletion", "random_insertion")


def summary(found: Mapped, row: int) -> dict[str, Any]:
    """Numbers of one map: its sum, the sums of what speaks for and against, and how close together its evidence lies.

    ``half`` is the smallest share of the picture that holds half of what speaks for the class: 0.5 for a map alike
    everywhere, near 0 for one of few places, None where nothing speaks for it.
    """
    values = found.maps[row].double().flatten().numpy()
    positive = np.sort(values[values > 0])[::-1]
    gathered = positive.cumsum()
    half = None if not len(positive) else int(np.searchsorted(gathered, gathered[-1] / 2) + 1) / len(values)
    return {
        "sum": float(values.sum()),
        "positive": float(positive.sum()),
        "negative": float(values[values < 0].sum()),
        "half": half,
        "offset": None if found.offset is None else float(found.offset[row]),
    }


def spread(n: int, most: int) -> np.ndarray:
    """At most ``most`` of the rows 0 to n - 1, evenly over all of them; rising."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def unique_stems(ids: Sequence[str]) -> list[str]:
    """File names without an ending, one a picture, from names that may hold folders; equal ones are numbered."""
    found: list[str] = []
    taken: set[str] = set()
    for text in ids:
        path = Path(text)
        plain = re.sub(r"[^\w.-]+", "-", str(path.with_suffix("")) if path.suffix else text).strip("-.")[-120:]
        stem, number = plain or "picture", 1
        while stem.lower() in taken:  # file systems that take A for a
            number += 1
            stem = f"{plain or 'picture'}-{number}"
        taken.add(stem.lower())
        found.append(stem)
    return found


def write_rows(path: Path, table: list[dict[str, Any]]) -> None:
    """A row a picture and method; areas are null where no scores were asked for."""
    schema = pa.schema([(name, pa.string()) for name in TEXTS] + [(name, pa.float64()) for name in (*NUMBERS, *AREAS)])
    found = pa.Table.from_pylist(table, schema)
    write_through(path, lambda temporary: pq.write_table(found, temporary))
